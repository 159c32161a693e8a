"""Optical flow between frames: Lucas-Kanade, which has no weights, and RAFT.

A flow (N, 2, H, W) is the displacement of each pixel of the first frame, in pixels, x then y,
positive to the right and down: second(x + flow(x)) is about first(x).
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

WINDOW: Final = 5
"""Side of the averaging window in pixels, at each level."""
ITERATIONS: Final = 2
"""Iterations at each level."""
COARSEST: Final = 8
"""Shorter side of the coarsest level in pixels, unless the frames are smaller."""
DAMPING: Final = 1e-4
"""Added to the mean squared slopes: below it the flow goes to zero."""
_FIRST_CONVOLUTION: Final = "feature_encoder.convnormrelu.0.weight"
_LARGE_WIDTH: Final = 64  # its channels in raft_large; raft_small has 32
_OTHER_WEIGHTS: Final = "{}: does not hold this RAFT network's weights"


class FlowEstimator(Protocol):
    """Frames (N, C, H, W) in [-1, 1], first and second -> their flow (N, 2, H, W)."""

    def __call__(self, first: Tensor, second: Tensor, /) -> Tensor: ...


def video_flow(estimator: FlowEstimator, video: Tensor) -> Tensor:
    """video (B, C, F, H, W) in [-1, 1] -> flow (B, F-1, 2, H, W) from each frame to the next.

    The estimator is called once, with all pairs of frames. Raises ValueError for a single frame.
    """
    if video.shape[2] < 2:
        raise ValueError(f"a clip of {video.shape[2]} frames has no flow: it takes 2 or more")
    first, second = (
        rearrange(v, "b c f h w -> (b f) c h w") for v in (video[:, :, :-1], video[:, :, 1:])
    )
    return rearrange(estimator(first, second), "(b f) d h w -> b f d h w", b=len(video))


def resize(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """frames (N, C, H, W) -> (N, C, *size), bilinear with antialiasing."""
    return F.interpolate(frames, size, mode="bilinear", align_corners=False, antialias=True)


def resize_flow(flow: Tensor, size: tuple[int, int]) -> Tensor:
    """flow (N, 2, H, W) -> (N, 2, *size), with values in pixels of the new size."""
    height, width = flow.shape[2:]
    scale = flow.new_tensor([size[1] / width, size[0] / height])
    return resize(flow, size) * scale[:, None, None]


def lucas_kanade(first: Tensor, second: Tensor) -> Tensor:
    """Iterated Lucas-Kanade from coarse to fine (IJCAI 1981), a FlowEstimator without weights.

    Each iteration solves two equations for each pixel in closed form. Few iterations are needed at
    each level, so gradients to both frames pass through a short graph; Horn and Schunck's method
    needs about a hundred. Updates are damped, and the final flow is damped towards zero where the
    window has no texture. Flow and gradients are finite for all frames, and zero for frames of one
    colour.
    """
    sizes = [(first.shape[2], first.shape[3])]
    while min(sizes[0]) >= 2 * COARSEST:
        height, width = sizes[0]
        sizes.insert(0, ((height + 1) // 2, (width + 1) // 2))
    flow = first.new_zeros(len(first), 2, *sizes[0])
    for size in sizes:
        flow = resize_flow(flow, size)
        first_resized, second_resized = resize(first, size), resize(second, size)
        for _ in range(ITERATIONS):
            normal, right = _equations(first_resized, second_resized, flow)
            flow = flow + _solve(normal, right)
    xx, xy, yy = normal.unbind(1)
    x, y = flow.unbind(1)
    return _solve(normal, torch.stack([xx * x + xy * y, xy * x + yy * y], dim=1))


def _equations(first: Tensor, second: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    """The normal equations, averaged over the window, for the residual of `flow`.

    Left side (N, 3, H, W): the entries xx, xy, yy of the structure tensor; right side
    (N, 2, H, W). Slopes are means of both frames', accurate to second order in the displacement.
    """
    moved = warp(second, flow)
    x, y = _slopes((first + moved) / 2)
    error = first - moved
    terms = torch.stack([x * x, x * y, y * y, x * error, y * error], dim=1)
    terms = terms.sum(dim=2)  # over colours
    for _ in range(2):  # two box filters are about a Gaussian
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
    """Central differences of frames (N, C, H, W) along x and y, of the same shape."""
    wide = F.pad(frames, (1, 1, 1, 1), mode="replicate")
    x = wide[:, :, 1:-1, 2:] - wide[:, :, 1:-1, :-2]
    y = wide[:, :, 2:, 1:-1] - wide[:, :, :-2, 1:-1]
    return x / 2, y / 2


def warp(frames: Tensor, flow: Tensor) -> Tensor:
    """frames(x + flow(x)), (N, C, H, W), bilinear; pixels of the edge are repeated beyond it."""
    height, width = flow.shape[2:]
    x = torch.arange(width, device=flow.device, dtype=flow.dtype) + flow[:, 0]
    y = torch.arange(height, device=flow.device, dtype=flow.dtype)[:, None] + flow[:, 1]
    # grid_sample counts from -1 to 1, edge to edge of the frame.
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    return F.grid_sample(frames, grid, padding_mode="border", align_corners=False)


class Raft(nn.Module):
    """RAFT (arXiv 2003.12039) as a FlowEstimator: frozen weights, gradients for the frames.

    `network` takes two batches of frames (N, 3, H, W) in [-1, 1], with sides that are multiples of
    8 and at least 128, and returns a list of flows, the best one last. The default is
    torchvision's raft_small, or raft_large if `weights` are those. `weights` is a file with the
    state dict, as torchvision distributes it; without it torchvision downloads raft_small's.
    Raises ValueError without torchvision, and for a file of other weights.
    """

    def __init__(self, weights: Path | None = None, network: nn.Module | None = None) -> None:
        super().__init__()
        state = None if weights is None else _read(weights)
        self.large = len((state or {}).get(_FIRST_CONVOLUTION, ())) == _LARGE_WIDTH
        self.network = network or _raft(self.large, download=state is None)
        if state is not None:
            try:
                self.network.load_state_dict(state)
            except RuntimeError:
                raise ValueError(_OTHER_WEIGHTS.format(weights)) from None
        self.requires_grad_(False).eval()

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Frames (N, 1 or 3, H, W) in [-1, 1] -> flow (N, 2, H, W)."""
        height, width = first.shape[2:]
        scale = max(1.0, 128 / min(height, width))
        size = (8 * math.ceil(height * scale / 8), 8 * math.ceil(width * scale / 8))
        frames = (resize(f, size).expand(-1, 3, -1, -1) for f in (first, second))
        network = self.network.to(first.device)
        return resize_flow(network(*frames)[-1], (height, width))


def _raft(large: bool, download: bool) -> nn.Module:
    try:
        models = importlib.import_module("torchvision.models.optical_flow")
    except ModuleNotFoundError:
        raise ValueError("RAFT needs torchvision: pip install 'demo-t2v[raft]'") from None
    make = models.raft_large if large else models.raft_small
    network: nn.Module = make(weights="DEFAULT" if download else None)
    return network


def _read(weights: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"{weights}: cannot be read ({error.strerror})") from None
    except (RuntimeError, TypeError, EOFError, pickle.UnpicklingError):
        state = None
    if not isinstance(state, dict):
        raise ValueError(_OTHER_WEIGHTS.format(weights))
    return state
