"""Speeds of sprite videos, and the calibration of a model's dial by them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from demo_t2v.conditioning.speed import SpeedCalibration, SpeedError, SpeedWords
from demo_t2v.data.sprites import BACKGROUNDS, MOTIONS, SPEEDS, THINGS, Trajectory, caption
from demo_t2v.evaluation.sprites.classification import classify_video
from demo_t2v.inference.jobs import make_jobs
from demo_t2v.inference.runner import Runner

WORDS: Final = SpeedWords(SPEEDS[0], SPEEDS[-1], tuple(BACKGROUNDS))
"""The words for speed in the captions of the sprite world."""
ACROSS: Final = tuple(MOTIONS)[:8]
"""The motions along a straight line at a constant speed."""
OTHERS: Final = ("grows", "shrinks", "circles", "bounces")
"""Motions whose speed is another one, for the calibration of factors."""
KNOBS: Final = (-2.0, -1.0, 0.0, 1.0, 2.0)
MIN_RECOGNIZED: Final = 0.75
"""Share of the videos at a knob in which the thing must be recognized."""


@dataclass(frozen=True)
class SpeedCase:
    """A video to be made: its thing, motion and background."""

    thing: str
    motion: str
    background: str

    @property
    def prompt(self) -> str:
        """Its caption, without a word for speed."""
        return caption(self.thing, self.motion, "", self.background)


@dataclass(frozen=True)
class SpeedMeasurement:
    """What a video shows."""

    content: bool
    """Whether thing and background are the requested ones."""
    motion: str | None
    speed: float
    """By `path_speed`."""


def draw_cases(motions: Sequence[str], count: int, seed: int) -> list[SpeedCase]:
    """`count` cases, with the motions in turn and random things and backgrounds."""
    rng = np.random.default_rng(seed)
    return [
        SpeedCase(
            str(rng.choice(THINGS)),
            motions[number % len(motions)],
            str(rng.choice(list(BACKGROUNDS))),
        )
        for number in range(count)
    ]


def path_speed(path: Trajectory, motion: str) -> float:
    """The speed of a path of F frames, in frame sides a frame.

    Across, it is the slope of the line that fits the path; for `grows` and `shrinks` that of the
    size; otherwise the mean distance between two frames.
    """
    time = np.arange(len(path.x))
    if motion in ACROSS:
        return float(np.hypot(*(np.polyfit(time, axis, 1)[0] for axis in (path.x, path.y))))
    if motion in ("grows", "shrinks"):
        return float(abs(np.polyfit(time, path.size, 1)[0]))
    return float(np.hypot(np.diff(path.x), np.diff(path.y)).mean())


def measure(frames: NDArray[np.uint8], case: SpeedCase) -> SpeedMeasurement:
    """What a video (F, H, W, 3) of a case shows."""
    found = classify_video(frames)
    content = (found.thing, found.background) == (case.thing, case.background)
    return SpeedMeasurement(content, found.motion, path_speed(found.track, case.motion))


def measure_all(
    runner: Runner, cases: Sequence[SpeedCase], knobs: Sequence[float], words: SpeedWords = WORDS
) -> list[SpeedMeasurement]:
    """One video for each case, at its knob; a case has the same seed at all knobs."""
    rows = [
        (str(number), case.prompt, str(words.steer(case.prompt, knob)))
        for number, (case, knob) in enumerate(zip(cases, knobs, strict=True))
    ]
    videos = runner.videos(make_jobs(rows, 1, runner.config.seed))
    return [measure(video.frames, case) for case, video in zip(cases, videos, strict=True)]


def calibrate(
    runner: Runner,
    num_across: int = 4,
    num_others: int = 4,
    knobs: Sequence[float] = KNOBS,
    on_knob: Callable[[float, Sequence[SpeedMeasurement]], None] | None = None,
) -> SpeedCalibration:
    """Measure a model of the sprite world: `num_across + num_others` videos at each knob.

    A speed is the median over videos with the right thing and background. A factor is the median
    of speeds relative to those of the same cases at knob 0. Knobs at which fewer than
    `MIN_RECOGNIZED` of the videos are right are left out. Raises SpeedError for speeds that do not
    rise.
    """
    across, others = draw_cases(ACROSS[::2], num_across, 0), draw_cases(OTHERS, num_others, 1)
    cases, measured = across + others, {}
    for knob in sorted({0.0, *knobs}, key=abs):
        measured[knob] = measure_all(runner, cases, [knob] * len(cases))
        if on_knob:
            on_knob(knob, measured[knob])
    kept, speeds, factors = [], [], []
    for knob, results in sorted(measured.items()):
        right = [result.content for result in results]
        if np.mean(right) < MIN_RECOGNIZED:
            continue
        kept.append(knob)
        speeds.append(_median([one.speed for one in results[:num_across] if one.content]))
        pairs = list(zip(results, measured[0.0], strict=True))[num_across:]
        both = [(one, usual) for one, usual in pairs if one.content and usual.content]
        factors.append(_median([one.speed / usual.speed for one, usual in both]))
    try:
        return SpeedCalibration(WORDS, tuple(kept), tuple(speeds), tuple(factors))
    except SpeedError as error:
        raise SpeedError(f"speed: the model cannot be calibrated: {error}") from None


def _median(values: list[float]) -> float:
    """The median; nan of none."""
    return float(np.median(values)) if values else float("nan")
