"""Measures the time of each phase of one video, from the start of the process to the written file.

    python benchmarks/prompt_to_file.py --rounds 3
    python benchmarks/prompt_to_file.py --against "../before/.venv/bin/demo-t2v"

Each round has a new process that makes one video with the built-in model and its defaults, phase
by phase, `demo-t2v generate`, and the help of the program; with `--against` also `generate` of
another program, in turn. The figures are the median, the lowest and the highest of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

PROMPT = "a balloon moves up in the sky"
PROGRAM = (sys.executable, "-m", "demo_t2v")
PHASES = ("imports", "loading", "text", "denoising", "decoding", "writing")
PACKAGES = ("torch", "diffusers", "transformers")


def measure(file: Path) -> dict[str, float]:
    """Seconds of each phase. The process has imported nothing before."""
    seconds: dict[str, float] = {}
    last = time.perf_counter()

    def done(phase: str) -> None:
        nonlocal last
        seconds[phase], last = time.perf_counter() - last, time.perf_counter()

    from demo_t2v.core.imports import uncollected

    with uncollected():
        import numpy as np
        import torch

        import demo_t2v.pipeline  # noqa: F401 - loading would import it
        from demo_t2v.checkpoints.resolve import load_pipeline
        from demo_t2v.data.video import write_video

    done("imports")
    pipeline = load_pipeline("sprites", "cpu")
    done("loading")
    states, negatives = pipeline.encode_prompt(PROMPT, negative_prompt="")
    done("text")
    latents = pipeline(
        prompt_embeds=states,
        negative_prompt_embeds=negatives,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).frames
    done("denoising")
    with torch.no_grad():
        frames = pipeline.decode_latents(latents)
    done("decoding")
    write_video(np.round(frames[0].numpy() * 255).astype(np.uint8), file, 8, "mp4")
    done("writing")
    return seconds


def seconds_of(command: Sequence[str]) -> float:
    """Seconds from the start of a process to its end."""
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def one_round(against: Sequence[str]) -> dict[str, float]:
    """The seconds of each phase, and of each complete command by its name in the table."""
    with tempfile.TemporaryDirectory() as folder:
        one = [sys.executable, __file__, "--one", f"{folder}/video.mp4"]
        out = subprocess.run(one, check=True, capture_output=True, text=True).stdout
        found: dict[str, float] = json.loads(out.splitlines()[-1])
        words = ("generate", PROMPT, "--out")
        found["generate"] = seconds_of([*PROGRAM, *words, f"{folder}/ours"])
        if against:
            found["against"] = seconds_of([*against, *words, f"{folder}/theirs"])
            found["ratio"] = found["generate"] / found["against"]
        found["help"] = seconds_of([*PROGRAM, "--help"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--against", type=shlex.split, default=[], metavar="COMMAND")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for all figures")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one)))
        return
    rounds = [one_round(args.against) for _ in range(args.rounds)]
    figures: dict[str, Any] = {name: [one[name] for one in rounds] for name in rounds[0]}
    medians = {name: statistics.median(values) for name, values in figures.items()}
    total = sum(medians[name] for name in PHASES)
    for name, values in figures.items():
        unit = " " if name == "ratio" else "s"
        share = f"{medians[name] / total:4.0%}" if name in PHASES else ""
        spread = f"({min(values):.2f} to {max(values):.2f})"
        print(f"{name:10} {medians[name]:6.2f} {unit} {share:5} {spread}")
    if args.json:
        figures["versions"] = {name: version(name) for name in PACKAGES}
        figures["versions"]["python"] = platform.python_version()
        figures["cores"] = os.cpu_count()
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
