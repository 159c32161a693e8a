"""Dynamic degree: the share of videos that move."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from demo_t2v.evaluation.metrics.flow import LARGEST, FlowMetric
from demo_t2v.evaluation.metrics.metric import VideoClip, check_frames

FPS: Final = 8
"""Frames a second to which faster videos are thinned out."""
THRESHOLD: Final = 6 / 256
"""Flow of a pair that moves, in fractions of the frame's shorter side, at FPS."""
MOVING_PAIRS: Final = 4 / 16
"""Pairs that must move, as a share of the frames."""


class DynamicDegree(FlowMetric):
    """Percent of the videos that move: 100 or 0 for each video (VBench, arXiv 2311.17982).

    Each n-th frame is taken, with n the frame rate divided by FPS, rounded, and at least 1. A pair
    of these moves if the largest 5 % of its flow have a mean above THRESHOLD; in a video of fewer
    than FPS frames a second the threshold grows with the time between them. A video moves if
    MOVING_PAIRS do, at least one. It is VBench's if the estimator is RAFT large. A video
    of at most n frames has one pair, the first and the last frame; the threshold falls with the
    time between them.
    """

    title = "dynamic degree"

    def measure(self, clip: VideoClip) -> float:
        check_frames(clip, 2)
        wanted = max(1, round(clip.fps / FPS))
        interval = min(wanted, len(clip.frames) - 1)
        frames = clip.frames[::interval]
        shared = interval == 1  # as in the other metrics of this flow
        flow = self.flow.statistics(clip).largest if shared else self.flow.largest(frames)
        threshold = THRESHOLD * min(clip.frames.shape[1:3]) * max(1, FPS / clip.fps)
        threshold *= interval / wanted
        needed = max(1, round(MOVING_PAIRS * len(frames)))
        return 100.0 * bool((flow > threshold).sum() >= needed)

    def depends_on(self) -> Mapping[str, Any]:
        """The estimator, and the limits."""
        return {
            **super().depends_on(),
            "largest share of the flow": LARGEST,
            "threshold in sides": THRESHOLD,
            "frames a second": FPS,
            "moving pairs a frame": MOVING_PAIRS,
        }
