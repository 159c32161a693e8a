"""Cost of one denoising step against frames and pixels, with exponents, and the planned memory.

    python benchmarks/scaling.py --plot scaling.svg
    python benchmarks/scaling.py --shapes published --rounds 1

A step is one pass of the network with two samples, which is guidance. `sprites` are the shapes of
the built-in network, `published` those of the published one with a tenth of the channels. All sizes
are timed in turn. The exponent is the slope of the line through the logarithms of cost and size:
1 is linear. FLOPs are counted, and show the exponent without the machine. Memory is what
`--max-memory` plans for 64 frames at 256x256 with the published sizes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import AutoencoderKL
from full_size import TEXT
from tables import markdown
from timing import Variant, count_flops, environment, in_turn
from torch import nn
from transformers import CLIPTextModel

from demo_t2v.checkpoints.memory import (
    ITEM_BYTES,
    Network,
    Request,
    choose,
    show,
)
from demo_t2v.checkpoints.original.key_maps import modelscope_autoencoder
from demo_t2v.checkpoints.resolve import BUILT_IN
from demo_t2v.core.atomic_io import atomic_write
from demo_t2v.model_folder import ModelError
from demo_t2v.models.unet import DemoUNet

FRAMES, SIDES = (8, 16, 32, 64), (128, 256, 384, 512)
WIDTH, HEIGHT, MARGIN = 360, 260, 44
CLIP = 16
"""Frames of the sizes that differ in pixels."""
Shapes = Literal["sprites", "published"]
Size = tuple[int, int]
"""Frames, and the side of a frame in pixels."""


@dataclass(frozen=True)
class Curve:
    """The cost of a step for several sizes, as counts of `title`."""

    title: str
    labels: Sequence[str]
    counts: Sequence[float]
    seconds: Sequence[float]
    flops: Sequence[float]


def make_network(shapes: Shapes) -> tuple[DemoUNet, int]:
    """A network with random weights, and the pixels of a frame's side for one of its latents."""
    if shapes == "published":
        sizes = {"block_out_channels": (32, 64, 128, 128), "attention_head_dim": 16}
        return DemoUNet(**sizes, cross_attention_dim=128, norm_num_groups=8).eval(), 8
    folder = BUILT_IN["sprites"]
    config = json.loads((folder / "unet/config.json").read_text(encoding="utf-8"))
    vae = json.loads((folder / "vae/config.json").read_text(encoding="utf-8"))
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    return DemoUNet.from_config(config).eval(), factor


def step(network: DemoUNet, factor: int, size: Size) -> Variant:
    """One pass of two samples of this size."""
    frames, side = size
    latents = torch.randn(2, network.config.in_channels, frames, side // factor, side // factor)
    states = torch.randn(2, 77, network.config.cross_attention_dim)
    conditioning = network.prepare_conditioning(states, states)

    def run() -> None:
        with torch.inference_mode():
            network(latents, torch.tensor(500), conditioning=conditioning)

    return run


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The slope of the line that fits the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def planned_memory() -> list[dict[str, str]]:
    """The plan and its peak within some limits, for 64 frames at 256x256 and published sizes."""
    with torch.device("meta"):
        modules: dict[str, nn.Module] = {
            "content_encoder": CLIPTextModel(TEXT),
            "motion_encoder": CLIPTextModel(TEXT),
            "unet": DemoUNet(),
            "vae": modelscope_autoencoder(),
        }
    networks = {name: describe(name, module) for name, module in modules.items()}
    rows = []
    for device, dtype in (("cuda", "float16"), ("cpu", "float32")):
        for window in (16, 64):
            request = Request(1, 64, 256, 256, 2, ITEM_BYTES[dtype], window)
            for limit in (4, 8, 16, 32):
                try:
                    plan, need = choose(networks, request, 16, device, limit * 10**9)
                    chosen = f"{plan}: {show(need)}"
                except ModelError:
                    chosen = "none fits"
                row = {"device": f"{device}, {dtype}", "window": f"{window} frames"}
                rows.append(row | {"limit": f"{limit} GB", "plan": chosen})
    return rows


def describe(name: str, module: Any) -> Network:
    """A network for the estimate of memory."""
    sizes = [weight.numel() for weight in module.parameters()]
    config = module.config if isinstance(module, DemoUNet | AutoencoderKL) else TEXT.to_dict()
    return Network(name, type(module).__name__, sum(sizes), max(sizes), config)


def plot(curves: Sequence[Curve]) -> str:
    """The curves side by side, as SVG on logarithmic axes."""
    panels = [
        f'<g transform="translate({number * WIDTH},0)">{panel(curve)}</g>'
        for number, curve in enumerate(curves)
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH * len(panels)}" height="{HEIGHT}" '
        'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>'
        f"{''.join(panels)}</svg>\n"
    )


def panel(curve: Curve) -> str:
    """One curve, with a label at each point."""

    def place(values: Sequence[float], start: float, end: float) -> list[float]:
        logs = np.log(values)
        return list(start + (end - start) * (logs - logs.min()) / max(np.ptp(logs), 1e-9))

    x = place(curve.counts, MARGIN, WIDTH - MARGIN)
    y = place(curve.seconds, HEIGHT - MARGIN, MARGIN)
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    labels = "".join(
        f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="#2563eb"/>'
        f'<text x="{a:.1f}" y="{HEIGHT - 20}" text-anchor="middle">{label}</text>'
        f'<text x="{a:.1f}" y="{b - 8:.1f}" text-anchor="middle">{seconds:.3g} s</text>'
        for a, b, label, seconds in zip(x, y, curve.labels, curve.seconds, strict=True)
    )
    slope = exponent(curve.counts, curve.seconds)
    return (
        f'<text x="{MARGIN}" y="18" font-weight="bold">{curve.title}, exponent {slope:.2f}</text>'
        f'<polyline fill="none" stroke="#2563eb" points="{points}"/>{labels}'
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--shapes", choices=("sprites", "published"), default="sprites")
    parser.add_argument("--frames", type=int, nargs="+", default=FRAMES)
    parser.add_argument("--sides", type=int, nargs="+", default=SIDES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plot", type=Path, help="SVG of both curves")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    network, factor = make_network(options.shapes)
    by_frames = [(frames, min(options.sides)) for frames in options.frames]
    by_pixels = [(CLIP, side) for side in options.sides]
    steps = {size: step(network, factor, size) for size in dict.fromkeys(by_frames + by_pixels)}
    results = in_turn({str(size): run for size, run in steps.items()}, options.rounds)
    flops = {size: count_flops(run) for size, run in steps.items()}
    rows = [
        {
            "frames": size[0],
            "side": size[1],
            "seconds": results[str(size)].spread,
            "GFLOP": round(flops[size] / 1e9, 2),
            "peak MiB": round(results[str(size)].peak_bytes / 2**20),
        }
        for size in steps
    ]
    print(markdown(rows))
    curves = []
    for title, sizes, labels, counts in (
        ("frames", by_frames, [str(frames) for frames, _ in by_frames], options.frames),
        ("pixels", by_pixels, [f"{side}²" for _, side in by_pixels], [s * s for _, s in by_pixels]),
    ):
        medians = [results[str(size)].median for size in sizes]
        curves.append(Curve(title, labels, counts, medians, [flops[size] for size in sizes]))
    exponents = [
        {
            "cost against": curve.title,
            "exponent of the time": f"{exponent(curve.counts, curve.seconds):.2f}",
            "exponent of the FLOPs": f"{exponent(curve.counts, curve.flops):.2f}",
        }
        for curve in curves
    ]
    print(markdown(exponents))
    memory = planned_memory()
    print(markdown(memory))
    if options.plot:
        options.plot.write_text(plot(curves), encoding="utf-8")
    if options.json:
        figures = {"environment": environment(), "shapes": options.shapes, "rows": rows}
        figures |= {"exponents": exponents, "planned memory": memory}
        with atomic_write(options.json) as partial:
            partial.write_text(json.dumps(figures, indent=1, default=vars), encoding="utf-8")


if __name__ == "__main__":
    main()
