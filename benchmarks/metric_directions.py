"""Whether metrics move the right way on damaged clips of the sprite world.

    python benchmarks/metric_directions.py                         16 clips, metrics without weights
    python benchmarks/metric_directions.py --clip FOLDER --raft FILE --json directions.json

Versions of each drawn clip: shuffled frames, its first frame in place of all, blurred frames,
reversed frames, half the speed along the same path, and the caption of another clip.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from rich.console import Console
from rich.table import Table

from demo_t2v.core.atomic_io import atomic_write
from demo_t2v.data.sprites import Clip as SpriteClip
from demo_t2v.data.sprites import Trajectory, draw_clip, render
from demo_t2v.evaluation.metrics.metric import MissingWeightsError, VideoClip
from demo_t2v.evaluation.single_video_metrics import single_video_metrics
from demo_t2v.evaluation.sprites.classification import classify_video

FPS = 8
SCORE = "sprite score"

Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class Case:
    """Frames, and the clip that they should show."""

    frames: Frames
    wanted: SpriteClip


def blurred(frames: Frames) -> Frames:
    blur = ImageFilter.GaussianBlur(frames.shape[1] / 32)
    return np.stack([np.asarray(Image.fromarray(frame).filter(blur)) for frame in frames])


def at_half_speed(clip: SpriteClip) -> Frames:
    """The first half of the clip's path, in as many frames."""
    count = len(clip.frames)
    half = (np.interp(np.arange(count) / 2, np.arange(count), v) for v in vars(clip.truth).values())
    return render(clip.thing, clip.background, Trajectory(*half), clip.frames.shape[1])


def make_versions(count: int, resolution: int) -> dict[str, list[Case]]:
    """The versions of `count` clips by name; the clips are the same in each call."""
    rng = np.random.default_rng(0)
    clips = [draw_clip(rng, resolution) for _ in range(count)]
    orders = [rng.permutation(len(clip.frames)) for clip in clips]
    others = [*clips[1:], clips[0]]
    return {
        "real": [Case(clip.frames, clip) for clip in clips],
        "shuffled": [Case(c.frames[order], c) for c, order in zip(clips, orders, strict=True)],
        "frozen": [Case(c.frames[:1].repeat(len(c.frames), axis=0), c) for c in clips],
        "blurred": [Case(blurred(clip.frames), clip) for clip in clips],
        "reversed": [Case(clip.frames[::-1].copy(), clip) for clip in clips],
        "half speed": [Case(at_half_speed(clip), clip) for clip in clips],
        "wrong caption": [
            Case(clip.frames, other) for clip, other in zip(clips, others, strict=True)
        ],
    }


def sprite_score(cases: Sequence[Case]) -> float:
    """Percent of the videos that show the wanted thing and motion."""
    found = [classify_video(case.frames) for case in cases]
    right = [
        (seen.thing, seen.motion) == (case.wanted.thing, case.wanted.motion)
        for seen, case in zip(found, cases, strict=True)
    ]
    return 100 * float(np.mean(right))


def measure(cases: Sequence[Case], clip: str | None, raft: Path | None) -> dict[str, float]:
    """The value of each metric that can be computed; `sides a second` of a flow score too."""
    metrics = []
    for _, make in single_video_metrics(clip, raft):
        try:
            metrics.append(make())
        except MissingWeightsError:
            continue
    for number, case in enumerate(cases):
        video = VideoClip(str(number), case.frames, FPS, case.wanted.caption)
        for metric in metrics:
            metric.update(video)
    values = {}
    for metric in metrics:
        figure = metric.compute()
        values[metric.name] = figure.value
        values |= {f"{metric.name}, {name}": value for name, value in figure.extra.items()}
    return values | {SCORE: sprite_score(cases)}


def measure_versions(
    count: int,
    resolution: int = 64,
    clip: str | None = None,
    raft: Path | None = None,
    on_version: Callable[[str], None] = lambda _: None,
) -> dict[str, dict[str, float]]:
    """Values by version and metric."""
    values = {}
    for name, cases in make_versions(count, resolution).items():
        values[name] = measure(cases, clip, raft)
        on_version(name)
    return values


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--resolution", type=int, default=64, help="a multiple of 32")
    parser.add_argument("--clip", help="folder or hub repository of a CLIP")
    parser.add_argument("--raft", type=Path, help="RAFT's weights from torchvision")
    parser.add_argument("--json", type=Path, help="file for all values")
    options = parser.parse_args()
    values = measure_versions(
        options.clips,
        options.resolution,
        options.clip,
        options.raft,
        lambda name: print(name, flush=True),
    )
    table = Table("metric", *values, title=f"{options.clips} clips, {options.resolution} pixels")
    for metric in values["real"]:
        table.add_row(metric, *(f"{column[metric]:.3g}" for column in values.values()))
    Console(width=160).print(table)
    if options.json:
        with atomic_write(options.json) as partial:
            partial.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
