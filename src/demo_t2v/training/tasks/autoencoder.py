"""An autoencoder, trained on frames of the sprite world."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from demo_t2v.data.sprites import Clip, draw_clip
from demo_t2v.training.config import (
    AutoencoderTraining,
)
from demo_t2v.training.networks import build
from demo_t2v.training.tasks.denoiser import sample_seed


def draw_stills(seed: int, places: range, resolution: int) -> list[Clip]:
    """The still frames with these numbers; the same for the same (seed, place)."""
    return [
        draw_clip(np.random.default_rng([seed, place]), resolution, still=True) for place in places
    ]


def to_pixels(clips: list[Clip]) -> Tensor:
    """All frames of all clips, one after another: (B*F, 3, H, W) in [-1, 1]."""
    frames = torch.from_numpy(np.concatenate([clip.frames for clip in clips]))
    return rearrange(frames, "n h w c -> n c h w").float() / 127.5 - 1.0


def crop_to_things(pixels: Tensor, clips: list[Clip], side: int, seeds: Iterable[int]) -> Tensor:
    """Squares (B, 3, side, side) round the things of still clips, a little off their centres."""
    resolution = pixels.shape[-1]
    squares = []
    for picture, clip, seed in zip(pixels, clips, seeds, strict=True):
        rng = torch.Generator().manual_seed(seed)
        centre = torch.tensor([clip.truth.y[0], clip.truth.x[0]]) * resolution
        corner = centre + (torch.rand(2, generator=rng) - 0.5) * side / 2 - side / 2
        top, left = corner.round().long().clamp(0, resolution - side).tolist()
        squares.append(picture[:, top : top + side, left : left + side])
    return torch.stack(squares)


class AutoencoderTask:
    """Stage 1: an AutoencoderKL that rebuilds single frames (squared error and a light KL).

    The background is most of a frame and soon learned; so the first steps see only squares round
    the thing, which is faster too. The last ones see whole frames, as the network will.
    """

    items = None

    def __init__(self, config: AutoencoderTraining) -> None:
        self.config = config
        sizes = {"sample_size": config.resolution, **config.model}
        self.model = build(AutoencoderKL, sizes).to(memory_format=torch.channels_last)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.model.parameters())}]

    def batch(self, places: range) -> Tensor:
        clips = draw_stills(self.config.seed, places, self.config.resolution)
        pixels = to_pixels(clips)
        cropped = self.config.crop_steps * self.config.batch_size
        if self.config.crop and places.start < cropped:
            seeds = (sample_seed(self.config.seed, place) for place in places)
            pixels = crop_to_things(pixels, clips, self.config.crop, seeds)
        return pixels.to(memory_format=torch.channels_last)

    def loss(self, batch: Tensor) -> tuple[Tensor, dict[str, float]]:
        posterior = self.model.encode(batch).latent_dist
        rebuilt = self.model.decode(posterior.sample()).sample
        error = F.mse_loss(rebuilt, batch)
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        psnr = -10 * torch.log10(error / 4).item()  # the pixels' range is 2
        figures = {"kl": divergence.item(), "psnr": psnr}
        return error + self.config.kl_weight * divergence, figures

    @torch.no_grad()
    def export(self, folder: Path) -> None:
        """Save the autoencoder, with the scale that gives its latents unit variance."""
        unseen = self.config.num_steps * self.config.batch_size
        pixels = self.batch(range(unseen, unseen + self.config.batch_size))
        latents = self.model.encode(pixels).latent_dist.mean
        self.model.register_to_config(scaling_factor=1.0 / latents.std().item())
        self.model.save_pretrained(folder / "vae")
