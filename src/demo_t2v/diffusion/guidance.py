"""Guidance as a wrapper round any denoiser: the sampler never knows of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(latents (B, C, F, H, W), timestep) -> prediction of the same shape."""


def classifier_free_guidance(denoise: Denoiser, scale: float) -> Denoiser:
    """Guide `denoise`, whose batch holds the unconditional samples first (arXiv 2207.12598).

    The result takes B latents and calls `denoise` once with 2B: eps_u + scale * (eps_c - eps_u).
    """

    def guided(latents: Tensor, timestep: Tensor) -> Tensor:
        unconditional, conditional = denoise(torch.cat([latents, latents]), timestep).chunk(2)
        return unconditional + scale * (conditional - unconditional)

    return guided
