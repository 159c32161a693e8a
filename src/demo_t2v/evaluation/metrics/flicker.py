"""Temporal flickering: how much neighbouring frames differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from demo_t2v.evaluation.metrics.metric import Better, VideoClip, VideoMetric, check_frames


class TemporalFlickering(VideoMetric):
    """100 for a still video, 0 for one that changes between black and white (VBench).

    The value is (255 - d) / 255 in percent, with d the mean absolute difference between a frame
    and the next one (arXiv 2311.17982, temporal flickering). It rewards still videos: read it
    beside the dynamic degree.
    """

    name = "temporal flickering"
    better: Better = "higher"
    notes = ("still videos have 100",)

    def measure(self, clip: VideoClip) -> float:
        """The value of one video in percent. Raises EvaluationError for a single frame."""
        check_frames(clip, 2)
        difference = np.abs(np.diff(clip.frames.astype(np.int16), axis=0)).mean()
        return float(100 * (255 - difference) / 255)

    def depends_on(self) -> Mapping[str, Any]:
        """Nothing beside the videos."""
        return {}
