"""Copy trained `sprites` models into the package, in half precision, with their loss curves.

python scripts/ship_sprites.py --demo runs/sprites/demo --base runs/sprites/base \
    --autoencoder runs/sprites/encoder

Each option is optional; both models get the autoencoder. `--fast runs/sprites/fast` copies the
adapter of the four-step student, whose base is then the shipped `sprites`. `--curves RUN ...` adds
the curves of further runs. New curves are drawn to the right of the existing ones.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from demo_t2v.checkpoints.resolve import BUILT_IN
from demo_t2v.lora import WEIGHT_NAME
from demo_t2v.pipeline import DemoPipeline

WIDTH, HEIGHT, MARGIN = 320, 180, 30


def curve(stage: str, lines: list[dict[str, float]]) -> str:
    """One stage's loss over its steps as an SVG group, on a logarithmic scale."""
    steps = torch.tensor([line["step"] for line in lines])
    losses = torch.tensor([line["loss"] for line in lines]).log10()
    low, high = losses.min(), losses.max()
    x = MARGIN + (WIDTH - 2 * MARGIN) * steps / steps.max()
    y = MARGIN + (HEIGHT - 2 * MARGIN) * (high - losses) / (high - low)
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x.tolist(), y.tolist(), strict=True))
    left, right = MARGIN, WIDTH - MARGIN
    return (
        f'<text x="{left}" y="18" font-weight="bold">{stage}</text>'
        f'<text x="{right}" y="{HEIGHT - 10}" text-anchor="end">{int(steps.max())} steps</text>'
        f'<text x="{left}" y="{MARGIN + 10}">{10 ** float(high):.3g}</text>'
        f'<text x="{left}" y="{HEIGHT - 10}">{10 ** float(low):.3g}</text>'
        f'<polyline fill="none" stroke="#2563eb" points="{points}"/>'
    )


def remove_origin(folder: Path) -> None:
    """Remove the training run's folder, which diffusers writes into each configuration."""
    for file in folder.rglob("*.json"):
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        text = "".join(line for line in lines if '"_name_or_path"' not in line)
        json.loads(text)
        file.write_text(text, encoding="utf-8")


def ship_adapter(source: Path, folder: Path) -> None:
    """Copy an adapted model in half precision; its base becomes the built-in model."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    file = folder / "unet" / WEIGHT_NAME
    with safe_open(file, framework="pt") as stored:
        metadata = stored.metadata()
    save_file({name: each.half() for name, each in load_file(file).items()}, file, metadata)
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    base = os.path.relpath(BUILT_IN["sprites"], folder)
    text = json.dumps(index | {"base_model": base}, indent=2, sort_keys=True) + "\n"
    (folder / "model_index.json").write_text(text, encoding="utf-8")


def draw(curves: Path, runs: list[Path]) -> None:
    """Add the runs' curves to a picture; a curve of the same name is replaced."""
    old = re.findall(r"<g [^>]*>(.*?)</g>", curves.read_text(encoding="utf-8"), re.DOTALL)
    drawn = {re.findall(r">([^<]*)</text>", group)[0]: group for group in old}
    for run in runs:
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        drawn[run.name] = curve(run.name, [json.loads(line) for line in lines])
    groups = [
        f'<g transform="translate({number * WIDTH},0)">{group}</g>'
        for number, group in enumerate(drawn.values())
    ]
    curves.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH * len(groups)}" height="{HEIGHT}" '
        f'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>'
        f"{''.join(groups)}</svg>\n",
        encoding="utf-8",
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--demo", type=Path)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--autoencoder", type=Path)
    parser.add_argument("--fast", type=Path)
    parser.add_argument("--curves", type=Path, nargs="*", default=[])
    args = parser.parse_args()
    runs = {"sprites": args.demo, "sprites-base": args.base}
    for name, run in runs.items():
        if run is None and args.autoencoder is None:
            continue
        source = BUILT_IN[name] if run is None else run / "final"
        shipped = DemoPipeline.from_pretrained(source, dtype=torch.float16)
        folder = BUILT_IN[name] if args.autoencoder is None else args.autoencoder / "final"
        vae = AutoencoderKL.from_pretrained(folder / "vae", dtype=torch.float16)
        shipped.register_modules(vae=vae)
        shipped.save_pretrained(BUILT_IN[name])
        remove_origin(BUILT_IN[name])
    assets = BUILT_IN["sprites"].parent
    if args.fast is not None:
        ship_adapter(args.fast / "final", BUILT_IN["sprites-fast"])
    trained = filter(None, [*runs.values(), args.autoencoder, args.fast])
    draw(assets / "curves.svg", [*args.curves, *trained])
    size = sum(file.stat().st_size for file in assets.parent.rglob("*.safetensors")) / 2**20
    print(f"wrote {assets.parent}: {size:.1f} MiB of weights")


if __name__ == "__main__":
    main()
