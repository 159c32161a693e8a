"""An autoencoder for larger frames with the latents of a trained one (its teacher).

A denoiser that was trained on the teacher's latents works with the student without changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from demo_t2v.config import ConfigError
from demo_t2v.data.sprites import Clip, draw_pose, render, render_background
from demo_t2v.model_folder import load_network
from demo_t2v.training.config import StudentTraining
from demo_t2v.training.data.pixels import to_pixels
from demo_t2v.training.networks import build, check_crop

THING_CONTRAST: Final = 0.08
"""Pixels that differ from the background by more, in [0, 1], belong to the thing."""
LOGVAR_WEIGHT: Final = 0.01


@dataclass(frozen=True)
class FramePairs:
    """B frames in both sizes. Pixels are in [-1, 1]."""

    small: Tensor
    """(B, 3, h, w), the teacher's size."""
    large: Tensor
    """(B, 3, H, W), the student's size, or a window of it."""
    things: Tensor
    """(B, 1, H, W), 1 where `large` shows the thing."""
    corners: Tensor
    """(B, 2), the upper left corner of the window, y and x, in latents."""


class StudentTask:
    """Train the decoder or the encoder of an autoencoder with its teacher's latents.

    The decoder's inputs are the teacher's latents with a little noise, since a denoiser's latents
    have errors. The encoder learns the teacher's means and log-variances from the larger frames.
    """

    samples = None

    def __init__(self, config: StudentTraining) -> None:
        self.config = config
        self.teacher = _load(config.teacher).requires_grad_(False).eval()
        self.small: int = self.teacher.config.sample_size
        if config.base is not None:
            self.model = _load(config.base)
        else:
            sizes = {"sample_size": config.resolution, **config.model}
            self.model = build(AutoencoderKL, sizes)
            _copy_matching(self.teacher, self.model)
        self.model.register_to_config(scaling_factor=self.teacher.config.scaling_factor)
        self.factor = 2 ** (len(self.model.config.block_out_channels) - 1)
        self._check_sizes()
        encoder, decoder = ("encoder", "quant_conv"), ("decoder", "post_quant_conv")
        trained = encoder if config.train == "encoder" else decoder
        for name, weight in self.model.named_parameters():
            weight.requires_grad_(name.startswith(trained))
        self.model.to(memory_format=torch.channels_last)

    def _check_sizes(self) -> None:
        """Raise ConfigError for latents of different shapes and for wrong window sizes."""
        small = 2 ** (len(self.teacher.config.block_out_channels) - 1)
        shapes = [
            (model.config.latent_channels, side // factor)
            for model, side, factor in (
                (self.teacher, self.small, small),
                (self.model, self.config.resolution, self.factor),
            )
        ]
        if shapes[0] != shapes[1]:
            (channels, side), (student_channels, student_side) = shapes
            raise ConfigError(
                f"model: makes latents of {student_channels} channels and "
                f"{student_side}x{student_side}, its teacher {self.config.teacher} {channels} "
                f"channels and {side}x{side}"
            )
        if self.config.crop is not None and self.config.train == "encoder":
            raise ConfigError("crop: an encoder needs full frames; leave it out")
        check_crop(self.config.crop, self.factor, self.config.resolution)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [p for p in self.model.parameters() if p.requires_grad]}]

    def batch(self, numbers: range) -> FramePairs:
        """The frames with these numbers; windows of them in the first `crop_steps` steps."""
        cropped = self.config.crop_steps * self.config.batch_size
        crop = self.config.crop if numbers.start < cropped else None
        rngs = [np.random.default_rng([self.config.seed, number]) for number in numbers]
        clips = [draw_pose(rng, self.config.resolution) for rng in rngs]
        side = crop or self.config.resolution
        corners = torch.tensor(
            [self._corner(clip, rng, side) for clip, rng in zip(clips, rngs, strict=True)]
        )
        small = [render(c.thing, c.background, c.truth, self.small)[0] for c in clips]
        return FramePairs(
            small=_pixels(small),
            large=_windows(_pixels([c.frames[0] for c in clips]), corners * self.factor, side),
            things=_windows(_things(clips), corners * self.factor, side),
            corners=corners,
        )

    def _corner(self, clip: Clip, rng: np.random.Generator, side: int) -> list[int]:
        """The corner (y, x) in latents of a window of `side` pixels about the thing."""
        latents, window = self.config.resolution // self.factor, side // self.factor
        centre = np.array([clip.truth.y[0], clip.truth.x[0]]) * latents
        corner = np.rint(centre - window / 2 + rng.uniform(-0.7, 0.7, 2))
        clipped: list[int] = np.clip(corner, 0, latents - window).astype(int).tolist()
        return clipped

    def loss(self, batch: FramePairs) -> tuple[Tensor, dict[str, float]]:
        """The encoder's error in the teacher's latents, or the decoder's error in the frames."""
        self.teacher.to(batch.small.device)
        with torch.no_grad():
            target = self.teacher.encode(batch.small).latent_dist
        if self.config.train == "encoder":
            posterior = self.model.encode(batch.large).latent_dist
            scale = self.model.config.scaling_factor
            error = F.mse_loss(posterior.mean * scale, target.mean * scale)
            spread = F.mse_loss(posterior.logvar, target.logvar)
            figures = {"latent_error": error.item(), "logvar_error": spread.item()}
            return error + LOGVAR_WEIGHT * spread, figures
        rebuilt = self.model.decode(self._noisy(target.mean, batch)).sample
        difference = (rebuilt - batch.large).float()
        error = difference.abs() + 0.5 * difference.square()
        weights = 1 + (self.config.thing_weight - 1) * batch.things
        weighted = (error * weights).sum() / (weights.sum() * 3)
        thing_error = (difference.square() * batch.things).sum() / (batch.things.sum() * 3)
        psnr = -10 * torch.log10(thing_error / 4).item()  # the pixels' range is 2
        return weighted, {"thing_psnr": psnr}

    def _noisy(self, latents: Tensor, batch: FramePairs) -> Tensor:
        """The windows of the latents (B, C, h, w) with noise of a random strength per sample."""
        deviation = self.config.latent_noise / self.model.config.scaling_factor
        strength = deviation * torch.rand(len(latents), 1, 1, 1, device=latents.device)
        noisy = latents + strength * torch.randn_like(latents)
        return _windows(noisy, batch.corners, batch.large.shape[-1] // self.factor)

    @torch.no_grad()
    def export(self, folder: Path) -> None:
        """Save the autoencoder."""
        self.model.save_pretrained(folder / "vae")


def _load(folder: Path) -> AutoencoderKL:
    vae: AutoencoderKL = load_network(AutoencoderKL, folder / "vae", dtype=torch.float32)
    return vae


def _copy_matching(source: AutoencoderKL, target: AutoencoderKL) -> None:
    """Copy the source's tensors where names and shapes agree."""
    own, others = target.state_dict(), source.state_dict()
    matching = {k: v for k, v in others.items() if k in own and own[k].shape == v.shape}
    target.load_state_dict(matching, strict=False)


def _pixels(images: list[Any]) -> Tensor:
    """uint8 (H, W, 3) each -> (B, 3, H, W) in [-1, 1]."""
    pixels = to_pixels(torch.from_numpy(np.stack(images)))
    return pixels.contiguous(memory_format=torch.channels_last)


def _things(clips: list[Clip]) -> Tensor:
    """Masks (B, 1, H, W) of the things of still clips: 1 or 0."""
    masks = []
    for clip in clips:
        background = render_background(clip.background, clip.frames.shape[1])
        difference = np.abs(clip.frames[0] - background).max(-1)
        masks.append(difference > THING_CONTRAST * 255)
    return torch.from_numpy(np.stack(masks)).float()[:, None]


def _windows(images: Tensor, corners: Tensor, side: int) -> Tensor:
    """(B, C, H, W) -> (B, C, side, side), with upper left corners (y, x) (B, 2)."""
    if side == images.shape[-1]:
        return images
    steps = torch.arange(side, device=images.device)
    rows = corners[:, 0, None, None] + steps[:, None]  # (B, side, 1)
    columns = corners[:, 1, None, None] + steps  # (B, 1, side)
    samples = torch.arange(len(images), device=images.device)[:, None, None]
    windows = images.permute(0, 2, 3, 1)[samples, rows, columns]  # (B, side, side, C)
    return windows.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
