"""An autoencoder, trained on frames of the sprite world."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from demo_t2v.data.sprites import Clip, draw_clip
from demo_t2v.training.config import AutoencoderTraining
from demo_t2v.training.data.pixels import to_pixels
from demo_t2v.training.data.seeds import sample_seed
from demo_t2v.training.networks import build, check_crop


def draw_stills(seed: int, numbers: range, resolution: int) -> list[Clip]:
    """Clips of one frame with these numbers; a function of (seed, number)."""
    return [
        draw_clip(np.random.default_rng([seed, number]), resolution, still=True)
        for number in numbers
    ]


def clip_pixels(clips: list[Clip]) -> Tensor:
    """All frames of all clips, one after another: (B*F, 3, H, W) in [-1, 1]."""
    return to_pixels(torch.from_numpy(np.concatenate([clip.frames for clip in clips])))


def crop_to_things(pixels: Tensor, clips: list[Clip], side: int, seeds: Iterable[int]) -> Tensor:
    """Squares (B, 3, side, side) about the things of still clips, with random offsets."""
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
    """Stage 1: an AutoencoderKL for single frames (squared error and a small KL term).

    Most of a frame is background, which is easy to learn. The first `crop_steps` steps therefore
    train on squares about the thing, which is also faster, and the others on full frames.
    """

    samples = None

    def __init__(self, config: AutoencoderTraining) -> None:
        self.config = config
        sizes = {"sample_size": config.resolution, **config.model}
        self.model = build(AutoencoderKL, sizes).to(memory_format=torch.channels_last)
        factor = 2 ** (len(self.model.config.block_out_channels) - 1)
        check_crop(config.crop, factor, config.resolution)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.model.parameters())}]

    def batch(self, numbers: range) -> Tensor:
        """The frames (B, 3, H, W) in [-1, 1] with these numbers."""
        clips = draw_stills(self.config.seed, numbers, self.config.resolution)
        pixels = clip_pixels(clips)
        cropped = self.config.crop_steps * self.config.batch_size
        if self.config.crop and numbers.start < cropped:
            seeds = (sample_seed(self.config.seed, number) for number in numbers)
            pixels = crop_to_things(pixels, clips, self.config.crop, seeds)
        return pixels.to(memory_format=torch.channels_last)

    def loss(self, batch: Tensor) -> tuple[Tensor, dict[str, float]]:
        """The squared error of the reconstruction and the weighted KL divergence."""
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
