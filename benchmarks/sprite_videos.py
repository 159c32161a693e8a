"""The sprite score of a folder of videos whose contents are known, and its speed.

    python benchmarks/sprite_videos.py                 all 324 prompts, 2 processes
    python benchmarks/sprite_videos.py --trained 26 --held-out 14 --processes 1

Real clips of the prompts are written as mp4: as the sprite world has them (128x128 pixels, 16
frames, 8 a second), in other forms (96x160 pixels, 24 frames, 12 a second), and still (the first
frame of each). Still videos are judged by the prompts that ask for a motion. Shuffled captions
judge each real clip by the prompt of another one.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from demo_t2v.core.atomic_io import atomic_write
from demo_t2v.data.sprites import render, trajectory
from demo_t2v.data.video import write_video
from demo_t2v.evaluation.report import Report, VideoScore, accuracies
from demo_t2v.evaluation.sprites.prompts import HELD_OUT, TRAINED, SpritePrompt, list_prompts
from demo_t2v.evaluation.sprites.video_folder import score_folder

Frames = NDArray[np.uint8]


def real(prompt: SpritePrompt, frames: int = 16, side: int = 128) -> Frames:
    """The sprite world's video of a prompt."""
    path = trajectory(prompt.motion, prompt.speed, np.random.default_rng(prompt.seed), frames)
    return render(prompt.thing, prompt.background, path, side)


def wide(prompt: SpritePrompt) -> Frames:
    """24 frames of 96x160 pixels: a clip between two bands of the colours at its edges."""
    return np.pad(real(prompt, 24, 96), ((0, 0), (0, 0), (32, 32), (0, 0)), mode="edge")


def still(prompt: SpritePrompt) -> Frames:
    """The first frame, 16 times."""
    return real(prompt)[:1].repeat(16, axis=0)


def measure(
    prompts: Sequence[SpritePrompt],
    draw: Callable[[SpritePrompt], Frames],
    fps: int,
    processes: int,
) -> tuple[Report, float]:
    """The report of the videos that `draw` makes, and the seconds that it takes."""
    with tempfile.TemporaryDirectory() as folder:
        for prompt in prompts:
            write_video(draw(prompt), Path(folder) / f"{prompt.id}.mp4", fps, "mp4")
        start = time.perf_counter()
        report = score_folder(Path(folder), prompts, processes=processes)
        return report, time.perf_counter() - start


def shuffled(videos: Sequence[VideoScore]) -> list[VideoScore]:
    """The videos, each with the request of another one."""
    order = np.random.default_rng(0).permutation(len(videos))
    return [
        replace(videos[a], thing=videos[b].thing, motion=videos[b].motion)
        for a, b in zip(order, np.roll(order, 1), strict=True)
    ]


def shown(videos: Sequence[VideoScore]) -> dict[str, str]:
    """Right videos with 95 % intervals."""
    return {name: str(share) for name, share in accuracies(videos).items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--trained", type=int, default=TRAINED)
    parser.add_argument("--held-out", type=int, default=HELD_OUT)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, help="JSON of all figures")
    options = parser.parse_args()
    prompts = list_prompts(options.trained, options.held_out)
    moving = [prompt for prompt in prompts if prompt.motion != "still"]
    figures: dict[str, object] = {}
    for name, of, draw, fps in (
        ("real clips", prompts, real, 8),
        ("96x160 pixels, 24 frames, 12 a second", prompts, wide, 12),
        ("still videos", moving, still, 8),
    ):
        report, seconds = measure(of, draw, fps, options.processes)
        videos = report.subjects[0].videos
        figures[name] = shown(videos) | {"videos": len(videos), "seconds": round(seconds, 1)}
        if draw is real:
            figures["shuffled captions"] = shown(shuffled(videos))
        print(json.dumps(figures, indent=1), flush=True)
    if options.out:
        with atomic_write(options.out) as partial:
            partial.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
