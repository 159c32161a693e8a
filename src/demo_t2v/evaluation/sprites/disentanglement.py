"""Disentanglement: whether content stays when the motion changes, and motion when content changes.

A grid has a video of each content with each motion, all from one seed. No learned network is
involved: thing, background and motion are recognized as in the sprite score, content is compared by
colours, and motion by the track of the thing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from demo_t2v.core.atomic_io import atomic_write
from demo_t2v.data.sprites import MOTIONS as WORDINGS
from demo_t2v.data.sprites import Trajectory, caption
from demo_t2v.evaluation.bar_chart import GROUP, bar_chart
from demo_t2v.evaluation.labels import MARGIN, wrap
from demo_t2v.evaluation.metrics.metric import Figure
from demo_t2v.evaluation.report import BENCHMARK_VERSION, Proportion
from demo_t2v.evaluation.results import package_versions
from demo_t2v.evaluation.sprites.classification import VideoClassification, classify_video
from demo_t2v.inference.jobs import Job, split_batches
from demo_t2v.inference.runner import Runner

CONTENTS: Final = (
    ("car", "in the sky"),
    ("frog", "on the grass"),
    ("balloon", "at night"),
    ("duck", "on the sand"),
    ("rocket", "in the snow"),
    ("whale", "in the sky"),
    ("guitar", "at night"),
    ("pear", "on the grass"),
)
"""Things and backgrounds of the columns."""
MOTIONS: Final = ("left", "falls", "grows", "circles", "up-right", "bounces", "shrinks", "still")
"""Motions of the rows."""
HANDLES: Final = ("one prompt", "motion words", "another thing's caption")
"""Ways to combine content and motion: in one prompt; by a prompt without a motion, with bare words
("falls") as motion prompt; and with the caption of another column's thing as motion prompt."""
_LEVELS: Final = 8  # of a colour channel in a histogram

Frames = NDArray[np.uint8]
"""A video's RGB frames (F, H, W, 3)."""


@dataclass(frozen=True)
class Cell:
    """One video: what it should show, and what it shows."""

    thing: str
    background: str
    motion: str
    frames: Frames
    seen: VideoClassification

    @property
    def content_right(self) -> bool:
        """Whether thing and background are the requested ones."""
        return (self.seen.thing, self.seen.background) == (self.thing, self.background)

    @property
    def motion_right(self) -> bool:
        """Whether the motion is the requested one."""
        return self.seen.motion == self.motion


@dataclass(frozen=True)
class Distances:
    """Mean distance of two videos that share what is compared, and of two that do not."""

    same: float
    other: float

    @property
    def ratio(self) -> float | None:
        """`same` / `other`: 0 where what is compared does not change, 1 where it does freely."""
        return self.same / self.other if self.other else None


@dataclass(frozen=True)
class ContentMotionGrid:
    """The videos of one way to combine a content with a motion, row by row.

    A row has one motion, a column one content.
    """

    handle: str
    """One of HANDLES."""
    rows: Sequence[Sequence[Cell]]

    @property
    def cells(self) -> list[Cell]:
        """All videos, row by row."""
        return [cell for row in self.rows for cell in row]

    @property
    def right(self) -> dict[str, Proportion]:
        """Videos whose content is right, whose motion is, and of which both are."""
        content = [cell.content_right for cell in self.cells]
        motion = [cell.motion_right for cell in self.cells]
        both = [all(pair) for pair in zip(content, motion, strict=True)]
        counts = {"content": content, "motion": motion, "both": both}
        return {name: Proportion(sum(each), len(each)) for name, each in counts.items()}

    @property
    def relative_to_product(self) -> float | None:
        """Share of `both`, divided by the product of the two others: 1 for independent errors."""
        content, motion, both = (each.right / each.count for each in self.right.values())
        return both / (content * motion) if content and motion else None

    @property
    def colours(self) -> Distances:
        """Colour distances, the same content against others."""
        histograms = {id(cell): colour_histogram(cell.frames) for cell in self.cells}
        same_motion, same_content = self._pair_means(
            lambda a, b: total_variation(histograms[id(a)], histograms[id(b)])
        )
        return Distances(same_content, same_motion)

    @property
    def tracks(self) -> Distances:
        """Track distances, the same motion against others."""
        return Distances(*self._pair_means(lambda a, b: track_distance(a.seen.track, b.seen.track)))

    def _pair_means(self, distance: Callable[[Cell, Cell], float]) -> tuple[float, float]:
        """Mean distance of two videos in a row, and in a column."""
        columns = zip(*self.rows, strict=True)
        row, column = (
            float(np.mean([distance(*pair) for line in lines for pair in combinations(line, 2)]))
            for lines in (self.rows, columns)
        )
        return row, column

    def as_json(self) -> dict[str, Any]:
        """Figures and cells as JSON values."""
        return {
            "handle": self.handle,
            "right": {name: each.as_json() for name, each in self.right.items()},
            "both relative to the product": self.relative_to_product,
            "colour distance": _as_json(self.colours),
            "track distance": _as_json(self.tracks),
            "cells": [
                {
                    "thing": cell.thing,
                    "background": cell.background,
                    "motion": cell.motion,
                    "seen_thing": cell.seen.thing,
                    "seen_background": cell.seen.background,
                    "seen_motion": cell.seen.motion,
                }
                for cell in self.cells
            ],
        }


@dataclass(frozen=True)
class Variant:
    """The grids of one model with one choice of options; all videos have its settings."""

    name: str
    model: str
    fingerprint: str
    settings: Mapping[str, Any]
    """Options that shape the videos, as JSON values."""
    grids: Sequence[ContentMotionGrid]

    def both_right(self, handle: str) -> Figure | None:
        """The share of videos with content and motion right; None for no grid of this handle."""
        for grid in self.grids:
            if grid.handle == handle:
                both = grid.right["both"]
                return Figure(both.right / both.count, both.interval, both.count)
        return None

    def as_json(self) -> dict[str, Any]:
        """Figures and what they depend on as JSON values."""
        return {
            "variant": self.name,
            "model": self.model,
            "fingerprint": self.fingerprint,
            "settings": dict(self.settings),
            "grids": [grid.as_json() for grid in self.grids],
        }


def measure_disentanglement(
    runner: Runner, contents: int, motions: int, on_video: Callable[[], None] | None = None
) -> list[ContentMotionGrid]:
    """A grid for each of HANDLES; without a motion branch, for one prompt alone.

    They have the first `contents` of CONTENTS and the first `motions` of MOTIONS, and all videos
    have the configuration's seed. `on_video` is called after each video. Raises EvaluationError for
    videos that `classify_video` does not take.
    """
    columns = CONTENTS[:contents]
    handles = HANDLES if runner.pipeline.unet.config.motion else HANDLES[:1]
    grids = []
    for number, handle in enumerate(handles):
        requests, jobs = [], []
        for motion in MOTIONS[:motions]:
            for content, other in zip(columns, (*columns[1:], columns[0]), strict=True):
                texts = _texts(content, motion, other)[number]
                name = f"{handle}: {content[0]}, {motion}"
                requests.append((*content, motion))
                jobs.append(Job(name, texts[0], 0, runner.config.seed, texts[1]))
        cells = []
        for request, video in zip(requests, runner.videos(jobs), strict=True):
            cells.append(Cell(*request, video.frames, classify_video(video.frames)))
            if on_video:
                on_video()
        grids.append(ContentMotionGrid(handle, split_batches(cells, contents)))
    return grids


def save_variants(variants: Sequence[Variant], file: Path) -> None:
    """Write the figures of all variants as JSON, atomically. Raises OSError."""
    tree = {
        "version": BENCHMARK_VERSION,
        "variants": [variant.as_json() for variant in variants],
        "versions": package_versions(),
    }
    with atomic_write(file) as partial:
        partial.write_text(json.dumps(tree, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def both_right_chart(variants: Sequence[Variant]) -> Image.Image:
    """A group of bars for each variant, with a bar for each way: the share of `both`."""
    ways = {grid.handle: None for variant in variants for grid in variant.grids}
    series = {way: [variant.both_right(way) for variant in variants] for way in ways}
    names = [variant.name.replace("_", " ") for variant in variants]  # lines break at spaces
    groups = ["\n".join(wrap(name, GROUP - MARGIN, 3)) for name in names]
    return bar_chart(groups, series, "content and motion right: share of the videos")


def track_distance(first: Trajectory, second: Trajectory) -> float:
    """Root-mean-square distance of two tracks of F frames in x, y and size, in frame sides.

    Each track counts from its mean, so where a thing is makes no difference.
    """
    difference = np.stack(
        [first.x - second.x, first.y - second.y, first.size - second.size], axis=1
    )  # (F, 3)
    difference = difference - difference.mean(axis=0)
    return float(np.sqrt((difference**2).sum(axis=1).mean()))


def colour_histogram(frames: Frames) -> NDArray[np.float64]:
    """Share of the pixels of a video (F, H, W, 3) in each of 8 x 8 x 8 colours, (512,)."""
    levels = frames.reshape(-1, 3).astype(np.int64) // (256 // _LEVELS)
    counts = np.bincount(levels @ (_LEVELS**2, _LEVELS, 1), minlength=_LEVELS**3)
    return np.asarray(counts / len(levels))


def total_variation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Half the sum of the absolute differences of two distributions: 0 to 1."""
    return float(np.abs(first - second).sum() / 2)


def _texts(
    content: tuple[str, str], motion: str, other: tuple[str, str]
) -> tuple[tuple[str, str], ...]:
    """Prompt and motion prompt (empty: none) of each of HANDLES."""
    thing, background = content
    article = "an" if thing[0] in "aeiou" else "a"
    without_motion = f"{article} {thing} {background}"
    return (
        (caption(thing, motion, "", background), ""),
        (without_motion, WORDINGS[motion][0]),
        (without_motion, caption(other[0], motion, "", other[1])),
    )


def _as_json(distances: Distances) -> dict[str, float | None]:
    return {"same": distances.same, "other": distances.other, "ratio": distances.ratio}
