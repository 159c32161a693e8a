"""Optical flow of a video as statistics of its pairs of frames, computed once for all metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from demo_t2v.core.atomic_io import digest
from demo_t2v.core.devices import process_device
from demo_t2v.evaluation.errors import EvaluationError
from demo_t2v.evaluation.features.cache import with_cache
from demo_t2v.evaluation.features.extractor import Features
from demo_t2v.evaluation.metrics.metric import (
    Frames,
    MissingWeightsError,
    VideoClip,
    VideoMetric,
    check_frames,
)
from demo_t2v.losses.optical_flow import FlowEstimator, Raft, lucas_kanade, warp

LARGEST: Final = 0.05
"""Share of the pixels that `FlowStatistics.largest` is a mean of."""
_CHUNK: Final = 1 << 18
"""Pixels of the frames that are estimated at once, which bounds the memory."""


@dataclass(frozen=True)
class FlowStatistics:
    """Each pair of neighbouring frames of a video of F frames: arrays (F-1,)."""

    mean: NDArray[np.float64]
    """Mean length of the flow, in pixels."""
    largest: NDArray[np.float64]
    """Mean length of the LARGEST share of the flow, in pixels."""
    warp_error: NDArray[np.float64]
    """Mean squared difference, colours in [0, 1], between a frame and the next one warped to it.

    It counts the visible pixels, or all where none is visible.
    """
    visible: NDArray[np.float64]
    """Share of visible pixels."""


class VideoFlow:
    """The flow of videos by one estimator. `name` is the estimator's name in tables."""

    preprocessing: Mapping[str, Any] = {
        "range": "[-1, 1]",
        "statistics": "mean, largest 5 %, warp error, visible",
    }

    def __init__(
        self,
        name: str,
        estimator: FlowEstimator,
        depends_on: Mapping[str, Any] | None = None,
        feature_cache: Path | None = None,
    ) -> None:
        """`feature_cache` is a folder of statistics that are computed once."""
        self.name = name
        self.depends_on = {"estimator": name, **(depends_on or {})}
        self.sha256 = str(self.depends_on.get("sha256", ""))
        self.statistics = lru_cache(maxsize=1)(self._statistics)
        self._estimator = estimator
        self._extract = with_cache(self, feature_cache)

    @classmethod
    def lucas_kanade(cls) -> Self:
        """By the estimator that has no weights."""
        return cls("Lucas-Kanade", lucas_kanade)

    @classmethod
    def raft(cls, weights: Path | None, feature_cache: Path | None = None) -> Self:
        """By RAFT with a file of torchvision's weights.

        Raises MissingWeightsError for None, EvaluationError for a file without RAFT's weights.
        """
        if weights is None:
            raise MissingWeightsError(
                "needs RAFT's weights: name torchvision's raft_large_C_T_V1-22a6c225.pth by --raft "
                "(from https://download.pytorch.org/models/)"
            )
        try:
            raft = Raft(weights)
        except ValueError as error:
            raise EvaluationError(f"--raft {error}") from None
        name = "RAFT large" if raft.large else "RAFT small"
        depends_on = {"weights": weights.name, "sha256": digest(weights)}
        return cls(name, raft, depends_on, feature_cache)

    @torch.no_grad()
    def largest(self, frames: Frames) -> NDArray[np.float64]:
        """`FlowStatistics.largest` of frames (F, H, W, 3)."""
        parts = [_largest(self._estimator(*pair).norm(dim=1)) for pair in _pairs(frames)]
        return torch.cat(parts).double().cpu().numpy()

    def _statistics(self, clip: VideoClip) -> FlowStatistics:
        check_frames(clip, 2)
        return FlowStatistics(*self._extract(clip.frames).astype(np.float64))

    @torch.no_grad()
    def __call__(self, frames: Frames) -> Features:
        """frames (F, H, W, 3) -> the fields of `FlowStatistics` (4, F-1)."""
        parts = []
        for first, second in _pairs(frames):
            forward, backward = self._estimator(first, second), self._estimator(second, first)
            length = forward.norm(dim=1)
            visible = visible_pixels(forward, backward)
            error = ((warp(second, forward) - first) / 2).square().mean(dim=1)
            counted = visible | ~visible.any(dim=(1, 2), keepdim=True)
            mean_error = (error * counted).sum(dim=(1, 2)) / counted.sum(dim=(1, 2))
            share = visible.float().mean(dim=(1, 2))
            parts.append(
                torch.stack([length.mean(dim=(1, 2)), _largest(length), mean_error, share])
            )
        statistics: Features = torch.cat(parts, dim=1).cpu().numpy()
        return statistics


class FlowMetric(VideoMetric):
    """A metric of the flow of each video; its name is `title` and the estimator's name."""

    title: str

    def __init__(self, flow: VideoFlow) -> None:
        super().__init__()
        self.name = f"{self.title} ({flow.name})"
        self.flow = flow

    def depends_on(self) -> Mapping[str, Any]:
        """The estimator, and its weights where it has some."""
        return self.flow.depends_on


def visible_pixels(forward: Tensor, backward: Tensor) -> Tensor:
    """The pixels (N, H, W) of each first frame that the second one shows too, as booleans.

    `forward` and `backward` are the flows (N, 2, H, W) between the two. A pixel is not visible if
    the flow back does not return to it, at boundaries of motion (both in arXiv 1604.08610, which
    has the flows in each other's place), and if it leaves the frame.
    """
    height, width = forward.shape[2:]
    back = warp(backward, forward)
    length = forward.square().sum(dim=1)
    returns = (forward + back).square().sum(dim=1) <= 0.01 * (
        length + back.square().sum(dim=1)
    ) + 0.5
    slope_x = F.pad(forward.diff(dim=3), (0, 1)).square().sum(dim=1)
    slope_y = F.pad(forward.diff(dim=2), (0, 0, 0, 1)).square().sum(dim=1)
    smooth = slope_x + slope_y <= 0.01 * length + 0.002
    x = forward[:, 0] + torch.arange(width, device=forward.device)
    y = forward[:, 1] + torch.arange(height, device=forward.device)[:, None]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return returns & smooth & inside


def _pairs(frames: Frames) -> Iterator[tuple[Tensor, Tensor]]:
    """Neighbouring frames (N, 3, H, W) in [-1, 1], the first ones and the second ones."""
    size = max(1, _CHUNK // (frames.shape[1] * frames.shape[2]))
    for start in range(0, len(frames) - 1, size):
        chunk = torch.from_numpy(frames[start : start + size + 1]).to(process_device())
        pixels = rearrange(chunk, "n h w c -> n c h w").float() / 127.5 - 1
        yield pixels[:-1], pixels[1:]


def _largest(length: Tensor) -> Tensor:
    """length (N, H, W) -> the mean of its LARGEST share (N,), at least of one pixel."""
    flat = length.flatten(1)
    return flat.topk(max(1, int(LARGEST * flat.shape[1])), dim=1).values.mean(dim=1)
