"""Flow score: how much a video moves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from demo_t2v.evaluation.metrics.flow import FlowMetric, VideoFlow
from demo_t2v.evaluation.metrics.metric import Figure, VideoClip


class FlowScore(FlowMetric):
    """Mean length of the flow over pixels and pairs of frames, in pixels (arXiv 2310.11440).

    It is EvalCrafter's flow score if the estimator is RAFT. It depends on size and frame rate; the
    figure's `sides a second` does not: the flow in fractions of the frame's shorter side, times the
    frames a second.
    """

    title = "flow score"

    def __init__(self, flow: VideoFlow) -> None:
        super().__init__(flow)
        self._speeds: list[float] = []

    def measure(self, clip: VideoClip) -> float:
        pixels = float(self.flow.statistics(clip).mean.mean())
        self._speeds.append(pixels * clip.fps / min(clip.frames.shape[1:3]))
        return pixels

    def compute(self) -> Figure:
        """The mean over the videos. Raises TooFewVideosError for none."""
        figure = super().compute()
        return replace(figure, extra={"sides a second": float(np.mean(self._speeds))})
