"""Optical flow between the frames of a clip: a weight-free estimator, and RAFT.

A flow (N, 2, H, W) says in pixels, x then y, positive to the right and down, where each place of
the first frame is in the second: second(x + flow(x)) is about first(x).
"""

from __future__ import annotations

import importlib
import math
import pickle
from pathlib import Path
from typing import Final, Protocol

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

WINDOW: Final = 5  # pixels, at every level
ITERATIONS: Final = 2  # at every level
COARSEST: Final = 8  # no level's shorter side is smaller, unless the frames are
DAMPING: Final = (
    1e-4  # squared difference between neighbouring pixels that outweighs standing still
)


class FlowEstimator(Protocol):
    """Frames (N, C, H, W) in [-1, 1], first and second -> their flow (N, 2, H, W)."""

    def __call__(self, first: Tensor, second: Tensor, /) -> Tensor: ...


def video_flow(estimator: FlowEstimator, video: Tensor) -> Tensor:
    """video (B, C, F, H, W) in [-1, 1] -> flow (B, F-1, 2, H, W) from each frame to the next.

    All pairs of all clips go through the estimator together. Raises ValueError for a single frame.
    """
    if video.shape[2] < 2:
        raise ValueError(f"a clip of {video.shape[2]} frames has no flow: it takes 2 or more")
    first, second = (
        rearrange(v, "b c f h w -> (b f) c h w") for v in (video[:, :, :-1], video[:, :, 1:])
    )
    return rearrange(estimator(first, second), "(b f) d h w -> b f d h w", b=len(video))


def resize(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """frames (N, C, H, W) -> (N, C, *size): bilinear, over all that a smaller pixel covers."""
    return F.interpolate(frames, size, mode="bilinear", align_corners=False, antialias=True)


def resize_flow(flow: Tensor, size: tuple[int, int]) -> Tensor:
    """flow (N, 2, H, W) -> (N, 2, *size), its values in pixels of the new size."""
    height, width = flow.shape[2:]
    scale = flow.new_tensor([size[1] / width, size[0] / height])
    return resize(flow, size) * scale[:, None, None]


def lucas_kanade(first: Tensor, second: Tensor) -> Tensor:
    """A FlowEstimator without weights: iterated Lucas-Kanade, from coarse to fine (IJCAI 1981).

    Each step solves two equations for each place in closed form, so a few steps at each level are
    enough, and gradients to both frames pass through a short graph; Horn and Schunck's smoothness
    would take a hundred relaxations. Steps are damped towards the flow so far. At last the flow is
    damped towards zero: where a window shows no texture, nothing is seen to move. Flow and
    gradients are therefore finite for any frames, and zero for frames of one colour.
    """
    sizes = [(first.shape[2], first.shape[3])]
    while min(sizes[0]) >= 2 * COARSEST:
        height, width = sizes[0]
        sizes.insert(0, ((height + 1) // 2, (width + 1) // 2))
    flow = first.new_zeros(len(first), 2, *sizes[0])
    for size in sizes:
        flow = resize_flow(flow, size)
        here, there = resize(first, size), resize(second, size)
        for _ in range(ITERATIONS):
            normal, pull = _equations(here, there, flow)
            flow = flow + _solve(normal, pull)
    xx, xy, yy = normal.unbind(1)
    x, y = flow.unbind(1)
    return _solve(normal, torch.stack([xx * x + xy * y, xy * x + yy * y], dim=1))


def _equations(first: Tensor, second: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    """The window's normal equations for what is still missing in `flow`.

    Left side (N, 3, H, W), the matrix [[0, 1], [1, 2]] of squared slopes; right side (N, 2, H, W).
    The slope is the mean of both frames', which is right to second order in the displacement.
    """
    moved = warp(second, flow)
    x, y = _slopes((first + moved) / 2)
    left = first - moved
    terms = torch.stack([x * x, x * y, y * y, x * left, y * left], dim=1).sum(dim=2)  # over colours
    for _ in range(2):  # two boxes are about a Gaussian
        terms = F.avg_pool2d(terms, WINDOW, stride=1, padding=WINDOW // 2)
    return terms[:, :3], terms[:, 3:]


def _solve(normal: Tensor, right: Tensor) -> Tensor:
    """The solution (N, 2, H, W) of the damped equations; the determinant is at least DAMPING^2."""
    xx, xy, yy = normal.unbind(1)
    x, y = right.unbind(1)
    xx, yy = xx + DAMPING, yy + DAMPING
    solution = torch.stack([yy * x - xy * y, xx * y - xy * x], dim=1)
    return solution / (xx * yy - xy * xy)[:, None]


def _slopes(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences along x and y, of the shape of frames (N, C, H, W)."""
    wide = F.pad(frames, (1, 1, 1, 1), mode="replicate")
    x = wide[:, :, 1:-1, 2:] - wide[:, :, 1:-1, :-2]
    y = wide[:, :, 2:, 1:-1] - wide[:, :, :-2, 1:-1]
    return x / 2, y / 2


def warp(frames: Tensor, flow: Tensor) -> Tensor:
    """frames(x + flow(x)), bilinear, (N, C, H, W); beyond the edge the edge goes on."""
    height, width = flow.shape[2:]
    x = torch.arange(width, device=flow.device, dtype=flow.dtype) + flow[:, 0]
    y = torch.arange(height, device=flow.device, dtype=flow.dtype)[:, None] + flow[:, 1]
    # grid_sample counts from -1 to 1, edge to edge of the frame.
    places = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    return F.grid_sample(frames, places, padding_mode="border", align_corners=False)


class Raft(nn.Module):
    """RAFT (arXiv 2003.12039) as a FlowEstimator: frozen, but gradients reach the frames.

    `network` takes two batches of frames (N, 3, H, W) in [-1, 1], sides of at least 128 that are
    multiples of 8, and returns a list of flows of which the last is the best; without it, this is
    torchvision's raft_small. `weights` is a file that `torch.save` wrote of its state dict, as
    torchvision publishes it; without it, torchvision's own download for raft_small.
    Raises ValueError when torchvision is not installed or the file holds no such weights.
    """

    def __init__(self, weights: Path | None = None, network: nn.Module | None = None) -> None:
        super().__init__()
        self.network = network or _raft_small(download=weights is None)
        if weights is not None:
            _load(self.network, weights)
        self.requires_grad_(False).eval()

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Frames (N, 1 or 3, H, W) in [-1, 1] -> flow (N, 2, H, W)."""
        height, width = first.shape[2:]
        scale = max(1.0, 128 / min(height, width))
        size = (8 * math.ceil(height * scale / 8), 8 * math.ceil(width * scale / 8))
        frames = (resize(f, size).expand(-1, 3, -1, -1) for f in (first, second))
        network = self.network.to(first.device)
        return resize_flow(network(*frames)[-1], (height, width))


def _raft_small(download: bool) -> nn.Module:
    try:
        models = importlib.import_module("torchvision.models.optical_flow")
    except ModuleNotFoundError:
        raise ValueError("RAFT needs torchvision: pip install 'demo-t2v[raft]'") from None
    network: nn.Module = models.raft_small(weights="DEFAULT" if download else None)
    return network


def _load(network: nn.Module, weights: Path) -> None:
    try:
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    except OSError as error:
        raise ValueError(f"{weights}: cannot be read ({error.strerror})") from None
    except (RuntimeError, TypeError, EOFError, pickle.UnpicklingError):
        raise ValueError(f"{weights}: does not hold this RAFT network's weights") from None
