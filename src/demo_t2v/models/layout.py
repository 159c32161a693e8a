"""Frames as clips, without a copy."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor


def frames_to_clips(x: Tensor, num_frames: int) -> Tensor:
    """(B*F, C, H, W) -> (B, C, F, H*W), a view in the same memory layout.

    Of a single clip, one `rearrange` gives strides that torch does not take for channels last.
    """
    return rearrange(x.flatten(2), "(b f) c s -> b f c s", f=num_frames).transpose(1, 2)
