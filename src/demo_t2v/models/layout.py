"""Frames as clips and back, without copies."""

from __future__ import annotations

from torch import Tensor


def frames_to_clips(x: Tensor, num_frames: int) -> Tensor:
    """(B*F, C, H, W) -> (B, C, F, H*W), a view in the same memory layout.

    The view of a single clip by einops has strides that torch does not take for channels last.
    """
    return x.flatten(2).unflatten(0, (-1, num_frames)).transpose(1, 2)


def clips_to_frames(x: Tensor, height: int) -> Tensor:
    """(B, C, F, H*W) -> (B*F, C, H, W): of channels last a view."""
    return x.transpose(1, 2).flatten(0, 1).unflatten(2, (height, -1))
