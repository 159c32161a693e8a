"""What a metric is: it takes videos one by one and computes a figure with an interval."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from demo_t2v.evaluation.errors import EvaluationError

Frames = NDArray[np.uint8]
"""A video's RGB frames (F, H, W, 3)."""
Better = Literal["higher", "lower", ""]
"""Which values of a metric are better; empty where neither is."""
RESAMPLES: Final = 2000
"""Bootstrap samples of an interval."""


class TooFewVideosError(EvaluationError):
    """A statistic that needs more videos than there are."""


class MissingWeightsError(EvaluationError):
    """A metric whose weights are not here; the message names the file and where it comes from."""


@dataclass(frozen=True, eq=False)
class VideoClip:
    """One video to measure; `prompt` is empty where it is not known.

    Clips are equal if they are one object, so that a cache can have them as keys.
    """

    name: str
    frames: Frames
    fps: float
    prompt: str = ""


@dataclass(frozen=True)
class Figure:
    """The value of a metric over `count` videos, and its 95 % interval, where it has one."""

    value: float
    interval: tuple[float, float] | None
    count: int
    extra: Mapping[str, float] = field(default_factory=dict)
    """Further values, such as one extrapolated to infinitely many videos."""
    notes: Sequence[str] = ()
    """What a reader of the value must know, one sentence each."""


class Metric(Protocol):
    """Measures videos, one call of `update` for each, then `compute`."""

    @property
    def name(self) -> str:
        """The name in tables, such as `FVD (I3D)`."""

    @property
    def needs_real(self) -> bool:
        """Whether it compares with real videos."""

    @property
    def better(self) -> Better:
        """Which values are better."""

    def update(self, clip: VideoClip, real: bool = False) -> float | None:
        """Add a video. Its own value, if the metric has one for a single video.

        Raises EvaluationError for a video that the metric cannot measure.
        """

    def compute(self) -> Figure:
        """The figure of all videos. Raises TooFewVideosError."""

    def depends_on(self) -> Mapping[str, Any]:
        """Everything that the figure depends on beside the videos, as JSON values."""


class VideoMetric(ABC):
    """A Metric whose figure is the mean of a value that each video has."""

    needs_real: bool = False
    better: Better = ""
    notes: Sequence[str] = ()
    """The notes of its figure."""

    def __init__(self) -> None:
        self._values: list[float] = []

    @abstractmethod
    def measure(self, clip: VideoClip) -> float:
        """The value of one video. Raises EvaluationError."""

    def update(self, clip: VideoClip, real: bool = False) -> float | None:
        """The value of a video, which counts unless it is real."""
        if real:
            return None
        value = self.measure(clip)
        self._values.append(value)
        return value

    def compute(self) -> Figure:
        """The mean over the videos. Raises TooFewVideosError for none."""
        if not self._values:
            raise TooFewVideosError("0 videos: a mean needs at least 1")
        values = np.array(self._values)
        return Figure(float(values.mean()), mean_interval(values), len(values), notes=self.notes)


def mean_interval(values: NDArray[np.float64]) -> tuple[float, float] | None:
    """The 95 % percentile bootstrap interval of the mean of `values` (N,); None for one value.

    (Efron, 1979.) The samples are the same in each call.
    """
    if len(values) < 2:
        return None
    rng = np.random.default_rng(0)
    means = np.array([values[rng.integers(len(values), size=len(values))].mean()
                      for _ in range(RESAMPLES)])  # fmt: skip
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def check_frames(clip: VideoClip, least: int) -> None:
    """Raise EvaluationError for a video of fewer than `least` frames."""
    if len(clip.frames) < least:
        raise EvaluationError(
            f"{clip.name}: has {len(clip.frames)} frames; this takes at least {least}"
        )


def finite(value: float) -> float | None:
    """The value, or None where JSON has no number for it."""
    return value if math.isfinite(value) else None
