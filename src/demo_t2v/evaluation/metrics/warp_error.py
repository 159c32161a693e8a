"""Warp error: how smoothly a video moves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from demo_t2v.evaluation.metrics.flow import FlowMetric, VideoFlow
from demo_t2v.evaluation.metrics.metric import Better, Figure, VideoClip


class WarpError(FlowMetric):
    """Mean squared difference between a frame and the next one, moved back by the flow.

    Colours are in [0, 1]. Pixels count that both frames show (arXiv 1808.00449); of a pair
    that shares no pixel all count. The figure's `visible` is the share of these pixels. 0 is
    perfect, and still videos have it.
    """

    title = "warp error"
    better: Better = "lower"
    notes = ("still videos have 0",)

    def __init__(self, flow: VideoFlow) -> None:
        super().__init__(flow)
        self._visible: list[float] = []

    def measure(self, clip: VideoClip) -> float:
        statistics = self.flow.statistics(clip)
        self._visible.append(float(statistics.visible.mean()))
        return float(statistics.warp_error.mean())

    def compute(self) -> Figure:
        """The mean over the videos. Raises TooFewVideosError for none."""
        return replace(super().compute(), extra={"visible": float(np.mean(self._visible))})
