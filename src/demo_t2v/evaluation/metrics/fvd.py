"""FVD: the Frechet video distance."""

from __future__ import annotations

from dataclasses import replace

from demo_t2v.evaluation.errors import EvaluationError
from demo_t2v.evaluation.metrics.feature_sets import FeatureSets
from demo_t2v.evaluation.metrics.frechet import FrechetDistance
from demo_t2v.evaluation.metrics.metric import Figure, VideoClip


class FrechetVideoDistance(FrechetDistance):
    """The Frechet distance between two sets of videos (arXiv 1812.01717).

    Each video is a sample. The features are those of I3D, or of VideoMAE, which depends less on
    the content of single frames (arXiv 2404.12391). All videos have one size and one length.
    """

    def __init__(self, sets: FeatureSets) -> None:
        super().__init__(sets)
        self.name = f"FVD ({sets.extractor.name})"
        self._first = ""
        self._shape: tuple[int, ...] = ()
        self._rates: set[float] = set()

    def update(self, clip: VideoClip, real: bool = False) -> None:
        """Add a video. Raises EvaluationError for a size or a length unlike the first video's."""
        if not self._shape:
            self._first, self._shape = clip.name, clip.frames.shape
        if clip.frames.shape != self._shape:
            raise EvaluationError(
                f"{clip.name}: has {_describe(clip.frames.shape)}, {self._first} has "
                f"{_describe(self._shape)}; FVD takes one size: give --frames, --fps, --resolution"
            )
        self._rates.add(round(clip.fps, 3))
        super().update(clip, real)

    def compute(self) -> Figure:
        """The distance, with a note if frame rates differ. Raises TooFewVideosError."""
        figure = super().compute()
        if len(self._rates) < 2:
            return figure
        note = f"frame rates from {min(self._rates):g} to {max(self._rates):g} a second"
        return replace(figure, notes=[*figure.notes, note])


def _describe(shape: tuple[int, ...]) -> str:
    frames, height, width, _ = shape
    return f"{frames} frames of {width}x{height}"
