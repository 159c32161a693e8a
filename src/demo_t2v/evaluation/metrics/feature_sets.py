"""Features of generated and of real videos, which several metrics share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Final

from demo_t2v.evaluation.errors import EvaluationError
from demo_t2v.evaluation.features.extractor import Extractor
from demo_t2v.evaluation.features.rows import FeatureRows
from demo_t2v.evaluation.frame_grids import spread_indices
from demo_t2v.evaluation.metrics.metric import Better, Figure, VideoClip

GROUPS: Final = 10
"""Groups of videos, whose differences give an interval."""
STUDENT: Final = 2.2622
"""97.5 % quantile of Student's t with GROUPS - 1 degrees of freedom."""


class FeatureSets:
    """What an extractor gives for the videos: only the features are stored, on disk.

    `max_frames` is the number of frames that the extractor gets of each video, spread evenly from
    the first to the last; None for all frames.
    """

    def __init__(self, extractor: Extractor, max_frames: int | None = None) -> None:
        self.extractor = extractor
        self.generated = FeatureRows()
        self.real = FeatureRows()
        self._max_frames = max_frames

    def rows(self, real: bool) -> FeatureRows:
        """The features of the generated or of the real videos."""
        return self.real if real else self.generated

    def add(self, clip: VideoClip, real: bool) -> None:
        """Add a video. Raises EvaluationError for one that the extractor does not take."""
        frames = clip.frames
        if self._max_frames is not None and self._max_frames < len(frames):
            frames = frames[spread_indices(len(frames), self._max_frames)]
        try:
            self.rows(real).append(self.extractor(frames))
        except EvaluationError as error:
            raise EvaluationError(f"{clip.name}: {error}") from None

    def depends_on(self) -> dict[str, Any]:
        """What the features depend on beside the videos, as JSON values."""
        return {
            "extractor": self.extractor.name,
            "sha256": self.extractor.sha256,
            **self.extractor.preprocessing,
            "frames of a video": self._max_frames or "all",
        }


class FeatureMetric(ABC):
    """A Metric of the features of all videos.

    Metrics with the same FeatureSets see the same videos in the same order. The first one that gets
    a video adds its features.
    """

    better: Better = ""

    def __init__(self, sets: FeatureSets) -> None:
        self.sets = sets
        self._updates = {False: 0, True: 0}

    def update(self, clip: VideoClip, real: bool = False) -> None:
        """Add a video. Raises EvaluationError for one that cannot be measured."""
        self._updates[real] += 1
        if self._updates[real] > len(self.sets.rows(real).counts):
            self.sets.add(clip, real)

    @abstractmethod
    def compute(self) -> Figure: ...
