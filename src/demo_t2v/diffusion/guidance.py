"""Guidance: functions that turn a denoiser into a guided denoiser of the same signature."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(latents (B, C, F, H, W), timestep) -> a prediction of the same shape."""


def classifier_free_guidance(denoise: Denoiser, scale: float) -> Denoiser:
    """Classifier-free guidance (arXiv 2207.12598, eq. 6 with `scale` = 1 + w).

    The result predicts u + scale * (c - u), where u and c are the unconditional and the
    conditional prediction. It takes B latents and calls `denoise` once with 2B, the unconditional
    ones first.
    """

    def guided(latents: Tensor, timestep: Tensor) -> Tensor:
        unconditional, conditional = denoise(torch.cat([latents, latents]), timestep).chunk(2)
        return unconditional + scale * (conditional - unconditional)

    return guided
