"""Frames as bytes to frames as floating-point numbers."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor


def to_pixels(frames: Tensor) -> Tensor:
    """uint8 (N, H, W, 3) -> float32 (N, 3, H, W) in [-1, 1]."""
    return rearrange(frames, "n h w c -> n c h w").float() / 127.5 - 1
