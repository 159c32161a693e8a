"""Measures the time of each phase of one video, from the imports to the written file.

    python benchmarks/prompt_to_file.py --rounds 3

Each round is a new process that makes one video with the built-in model and its defaults, followed
by `demo-t2v generate`. The figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROMPT = "a balloon moves up in the sky"


def measure(file: Path) -> dict[str, float]:
    """Seconds of each phase. The process has imported nothing before."""
    seconds: dict[str, float] = {}
    last = time.perf_counter()

    def done(phase: str) -> None:
        nonlocal last
        seconds[phase], last = time.perf_counter() - last, time.perf_counter()

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one)))
        return
    rounds, commands = [], []
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            one = [sys.executable, __file__, "--one", f"{folder}/video.mp4"]
            out = subprocess.run(one, check=True, capture_output=True, text=True).stdout
            rounds.append(json.loads(out.splitlines()[-1]))
            began = time.perf_counter()
            program = [sys.executable, "-m", "demo_t2v", "generate", PROMPT, "--out", folder]
            subprocess.run(program, check=True, capture_output=True)
            commands.append(time.perf_counter() - began)
    phases = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
    total = sum(phases.values())
    for name, seconds in phases.items():
        print(f"{name:10} {seconds:6.2f} s  {seconds / total:4.0%}")
    print(f"{'generate':10} {statistics.median(commands):6.2f} s  (the complete command)")


if __name__ == "__main__":
    main()
