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
KNOBS: Final = (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5)
"""Knobs at which a calibration measures, by default."""
MIN_RIGHT: Final = 0.75
"""Right videos at a knob, as a share of those at knob 0, that a calibration needs."""


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
    of speeds relative to those of the same cases at knob 0. From 0 outwards, knobs count as long as
    speeds rise and the right videos are at least `MIN_RIGHT` of those at 0. Raises SpeedError where
    fewer than two knobs count.
    """
    across, others = draw_cases(ACROSS[::2], num_across, 0), draw_cases(OTHERS, num_others, 1)
    cases = across + others
    usual: list[SpeedMeasurement] = []
    curves: dict[float, tuple[float, float]] = {}
    ended: set[bool] = set()  # the sides of 0 on which no further knob counts
    for knob in sorted({0.0, *knobs}, key=abs):
        if (knob > 0) in ended:
            continue
        results = measure_all(runner, cases, [knob] * len(cases))
        if on_knob:
            on_knob(knob, results)
        usual = usual or results
        point = _speeds(results, usual, num_across)
        inner = curves[max(curves) if knob > 0 else min(curves)] if curves else point
        sign = 1 if knob > 0 else -1
        rises = all(sign * own > sign * other for own, other in zip(point, inner, strict=True))
        right, usually_right = (sum(one.content for one in row) for row in (results, usual))
        if knob == 0 or (rises and right >= MIN_RIGHT * usually_right):
            curves[knob] = point
        else:
            ended.add(knob > 0)
    try:
        used = sorted(curves)
        speeds, factors = zip(*(curves[knob] for knob in used), strict=True)
        return SpeedCalibration(WORDS, tuple(used), speeds, factors)
    except SpeedError as error:
        raise SpeedError(f"speed: the model cannot be calibrated: {error}") from None


def _speeds(
    results: Sequence[SpeedMeasurement], usual: Sequence[SpeedMeasurement], num_across: int
) -> tuple[float, float]:
    """The speed across in frame sides a frame, and the factor, at one knob."""
    speeds = [one.speed for one in results[:num_across] if one.content]
    pairs = list(zip(results, usual, strict=True))[num_across:]
    factors = [one.speed / own.speed for one, own in pairs if one.content and own.content]
    return _median(speeds), _median(factors)


def _median(values: list[float]) -> float:
    """The median to five digits behind the point; nan of none."""
    return round(float(np.median(values)), 5) if values else float("nan")
