"""Videos longer than the training's: motion in each window, flicker at the seams, peak memory.

    python benchmarks/longer.py                       24 videos of 64 frames; peaks of 16, 64, 256
    python benchmarks/longer.py --videos 8 --stride 4

Half of the videos have a timeline of directions with one segment a window, the other half one
prompt with a motion that goes on (circles, swings, shakes, bounces, stands still). In the frames
of each window that follows the one before without an overlap, the judge of
`benchmarks/timeline.py` looks for the motion.

Flicker is the mean absolute difference of neighbouring frames in grey levels. A seam is a pair of
frames where a window begins or ends. The ratio of the flicker at the seams to that of the other
pairs is 1 for windows that leave no trace. Peak memory is the largest resident size of
`demo-t2v generate` with one video on the CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from timeline import DIRECTIONS, draw_cases, judge

from demo_t2v.checkpoints.resolve import resolve
from demo_t2v.config import InferenceConfig
from demo_t2v.core.atomic_io import atomic_write
from demo_t2v.data.sprites import caption
from demo_t2v.diffusion.windows import split_windows
from demo_t2v.evaluation.report import Proportion
from demo_t2v.inference.jobs import make_jobs
from demo_t2v.inference.runner import Runner

ENDLESS = ["circles", "swings", "shakes", "bounces", "still"]


def flicker(frames: NDArray[np.uint8], windows: Sequence[slice]) -> tuple[float, float]:
    """Mean absolute difference of neighbouring frames at the seams and elsewhere, in [0, 255]."""
    differences = np.abs(np.diff(frames.astype(np.int16), axis=0)).mean(axis=(1, 2, 3))  # (F - 1,)
    seam = np.zeros(len(differences), dtype=bool)
    for window in windows:
        if window.start > 0:
            seam[window.start - 1] = True
        if window.stop < len(frames):
            seam[window.stop - 1] = True
    return float(differences[seam].mean()), float(differences[~seam].mean())


def measure(
    runner: Runner, rows: Sequence[tuple[str, ...]], wanted: Sequence[Sequence[str]], window: int
) -> dict[str, str]:
    """Right windows, and the flicker."""
    config = runner.config
    assert config.num_frames is not None
    starts = list(range(0, config.num_frames, window))
    windows = split_windows(config.num_frames, window, config.window_stride or window // 2)
    right: list[bool] = []
    pairs = []
    jobs = make_jobs([(str(number), *row) for number, row in enumerate(rows)], 1, 0)
    for motions, video in zip(wanted, runner.videos(jobs), strict=True):
        found = judge(video.frames, starts, window)
        right += [one == other for one, other in zip(found, motions, strict=True)]
        pairs.append(flicker(video.frames, windows))
    seams, inside = np.mean(pairs, axis=0)
    return {
        "windows with their motion": str(Proportion(sum(right), len(right))),
        "flicker at seams / inside": f"{seams:.2f} / {inside:.2f} = {seams / inside:.2f}",
    }


def peak_memory(model: str, frames: int, stride: int | None) -> float:
    """MiB of a process that makes one video of so many frames, on a timeline."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["generate", "a car in the sky", "--model", model, "--device", "cpu"]
        words += [
            "--motion",
            "0: a car moves up in the sky",
            "--motion",
            "8: a car falls in the sky",
        ]
        words += ["--frames", str(frames), "--steps", "1", "--out", folder]
        words += ["--window-stride", str(stride)] * (stride is not None)
        process = subprocess.Popen(
            [sys.executable, "-m", "demo_t2v", *words], stdout=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise RuntimeError(f"generate ended with status {status}")
        return usage.ru_maxrss / 1024  # Linux counts in KiB


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="sprites")
    parser.add_argument("--videos", type=int, default=24)
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--window", type=int, help="default: the model's frames")
    parser.add_argument("--stride", type=int, help="default: half a window")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--out", type=Path, help="JSON of all figures")
    options = parser.parse_args()
    # A child's peak includes that of the process it is forked from: no model is loaded yet.
    peaks = {frames: peak_memory(options.model, frames, options.stride) for frames in (16, 64, 256)}
    memory = {
        str(frames): f"{peak:.0f} ({peak / peaks[16]:.2f} of that of 16 frames)"
        for frames, peak in peaks.items()
    }
    model = resolve(options.model)
    window = options.window or model.defaults.frames
    config = InferenceConfig(
        device="cpu",
        num_frames=options.frames,
        window_frames=window,
        window_stride=options.stride,
        num_inference_steps=options.steps,
        batch_size=4,
    )
    runner = Runner.load(model, config)
    starts = list(range(0, options.frames, window))
    timelines = draw_cases(DIRECTIONS, options.videos // 2, len(starts))
    single = draw_cases(ENDLESS, options.videos - options.videos // 2, 1)
    figures: dict[str, object] = {
        "peak memory, MiB": memory,
        "timeline of directions": measure(
            runner,
            [(case.content, case.timeline(starts)) for case in timelines],
            [case.motions for case in timelines],
            window,
        ),
        "one motion that goes on": measure(
            runner,
            [(caption(case.thing, case.motions[0], "", case.background),) for case in single],
            [case.motions * len(starts) for case in single],
            window,
        ),
    }
    print(json.dumps(figures, indent=1), flush=True)
    if options.out:
        with atomic_write(options.out) as partial:
            partial.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
