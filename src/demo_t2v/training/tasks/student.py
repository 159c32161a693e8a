"""An autoencoder for larger frames that shares the latents of a trained one (its teacher).

A denoiser that was trained on the teacher's latents works with the student unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from diffusers import AutoencoderKL
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from demo_t2v.config import ConfigError
from demo_t2v.data.sprites import Clip, draw_pose, render, render_background
from demo_t2v.training.config import StudentTraining

THING_CONTRAST: Final = 0.08
"""A pixel that differs from the background by more, in [0, 1], belongs to the thing."""
LOGVAR_WEIGHT: Final = 0.01


@dataclass(frozen=True)
class Frames:
    """The same B frames in both sizes. Pixels are in [-1, 1]."""

    small: Tensor
    """(B, 3, h, w), what the teacher encodes."""
    large: Tensor
    """(B, 3, H, W), the student's size; a window of it while the student trains on windows."""
    things: Tensor
    """(B, 1, H, W), 1 where the thing is, as `large`."""
    corners: Tensor
    """(B, 2), the window's upper left corner, y and x, in latents."""


class StudentTask:
    """Train the decoder, or the encoder, of an autoencoder that shares its teacher's latents.

    The decoder reads the teacher's latents with a little noise, since a denoiser makes them with
    errors. The encoder learns the teacher's means and log-variances from the larger frames.
    """

    items = None

    def __init__(self, config: StudentTraining) -> None:
        self.config = config
        self.teacher = _load(config.teacher).requires_grad_(False).eval()
        self.small: int = self.teacher.config.sample_size
        if config.base is not None:
            self.model = _load(config.base)
        else:
            sizes = {"sample_size": config.resolution, **config.model}
            self.model = AutoencoderKL(**sizes)
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
        """Raise ConfigError for latents of different shapes, and for windows that do not fit."""
        small = 2 ** (len(self.teacher.config.block_out_channels) - 1)
        shapes = [
            (model.config.latent_channels, side // factor)
            for model, side, factor in (
                (self.teacher, self.small, small),
                (self.model, self.config.resolution, self.factor),
            )
        ]
        if shapes[0] != shapes[1]:
            (channels, side), (own_channels, own_side) = shapes
            raise ConfigError(
                f"model: makes latents of {own_channels} channels and {own_side}x{own_side}, "
                f"its teacher {self.config.teacher} {channels} channels and {side}x{side}"
            )
        crop = self.config.crop
        if crop is None:
            return
        if self.config.train == "encoder":
            raise ConfigError("crop: an encoder needs whole frames; leave it out")
        if crop % self.factor or crop > self.config.resolution:
            raise ConfigError(
                f"crop: {crop} should be a multiple of {self.factor}, the pixels of a latent, "
                f"and at most {self.config.resolution}"
            )

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [p for p in self.model.parameters() if p.requires_grad]}]

    def batch(self, places: range) -> Frames:
        """The frames with these numbers; windows of them in the first `crop_steps`."""
        cropped = self.config.crop_steps * self.config.batch_size
        crop = self.config.crop if places.start < cropped else None
        rngs = [np.random.default_rng([self.config.seed, place]) for place in places]
        clips = [draw_pose(rng, self.config.resolution) for rng in rngs]
        side = crop or self.config.resolution
        corners = torch.tensor(
            [self._corner(clip, rng, side) for clip, rng in zip(clips, rngs, strict=True)]
        )
        small = [render(c.thing, c.background, c.truth, self.small)[0] for c in clips]
        return Frames(
            small=_pixels(small),
            large=_windows(_pixels([c.frames[0] for c in clips]), corners * self.factor, side),
            things=_windows(_things(clips), corners * self.factor, side),
            corners=corners,
        )

    def _corner(self, clip: Clip, rng: np.random.Generator, side: int) -> list[int]:
        """The corner (y, x), in latents, of a window of `side` pixels about the thing."""
        latents, window = self.config.resolution // self.factor, side // self.factor
        centre = np.array([clip.truth.y[0], clip.truth.x[0]]) * latents
        corner = np.rint(centre - window / 2 + rng.uniform(-0.7, 0.7, 2))
        clipped: list[int] = np.clip(corner, 0, latents - window).astype(int).tolist()
        return clipped

    def loss(self, batch: Frames) -> tuple[Tensor, dict[str, float]]:
        """How far the encoder is from the teacher's latents, or the decoder from the frames."""
        self.teacher.to(batch.small.device)
        with torch.no_grad():
            wanted = self.teacher.encode(batch.small).latent_dist
        if self.config.train == "encoder":
            given = self.model.encode(batch.large).latent_dist
            scale = self.model.config.scaling_factor
            error = F.mse_loss(given.mean * scale, wanted.mean * scale)
            spread = F.mse_loss(given.logvar, wanted.logvar)
            figures = {"latent_error": error.item(), "logvar_error": spread.item()}
            return error + LOGVAR_WEIGHT * spread, figures
        rebuilt = self.model.decode(self._noisy(wanted.mean, batch)).sample
        difference = (rebuilt - batch.large).float()
        error = difference.abs() + 0.5 * difference.square()
        weights = 1 + (self.config.thing_weight - 1) * batch.things
        weighted = (error * weights).sum() / (weights.sum() * 3)
        inside = (difference.square() * batch.things).sum() / (batch.things.sum() * 3)
        psnr = -10 * torch.log10(inside / 4).item()  # the pixels' range is 2
        return weighted, {"thing_psnr": psnr}

    def _noisy(self, latents: Tensor, batch: Frames) -> Tensor:
        """The windows of the latents (B, C, h, w), each with noise of a strength of its own."""
        deviation = self.config.latent_noise / self.model.config.scaling_factor
        strength = deviation * torch.rand(len(latents), 1, 1, 1, device=latents.device)
        noisy = latents + strength * torch.randn_like(latents)
        return _windows(noisy, batch.corners, batch.large.shape[-1] // self.factor)

    @torch.no_grad()
    def export(self, folder: Path) -> None:
        """Save the autoencoder."""
        self.model.save_pretrained(folder / "vae")


def _load(folder: Path) -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(folder / "vae", dtype=torch.float32)


def _copy_matching(source: AutoencoderKL, target: AutoencoderKL) -> None:
    """Start from the source's tensors where names and shapes agree."""
    wanted = target.state_dict()
    known = source.state_dict().items()
    target.load_state_dict(
        {k: v for k, v in known if k in wanted and wanted[k].shape == v.shape}, strict=False
    )


def _pixels(pictures: list[Any]) -> Tensor:
    """uint8 (H, W, 3) each -> (B, 3, H, W) in [-1, 1]."""
    stacked = torch.from_numpy(np.stack(pictures))
    pixels = rearrange(stacked, "b h w c -> b c h w").float() / 127.5 - 1
    return pixels.contiguous(memory_format=torch.channels_last)


def _things(clips: list[Clip]) -> Tensor:
    """Where the thing of each still clip is: (B, 1, H, W), 1 or 0."""
    masks = []
    for clip in clips:
        background = render_background(clip.background, clip.frames.shape[1])
        apart = np.abs(clip.frames[0] - background).max(-1)
        masks.append(apart > THING_CONTRAST * 255)
    return torch.from_numpy(np.stack(masks)).float()[:, None]


def _windows(pictures: Tensor, corners: Tensor, side: int) -> Tensor:
    """(B, C, H, W) -> (B, C, side, side), each from its corner (y, x) on."""
    if side == pictures.shape[-1]:
        return pictures
    steps = torch.arange(side, device=pictures.device)
    rows = corners[:, 0, None, None] + steps[:, None]  # (B, side, 1)
    columns = corners[:, 1, None, None] + steps  # (B, 1, side)
    samples = torch.arange(len(pictures), device=pictures.device)[:, None, None]
    windows = pictures.permute(0, 2, 3, 1)[samples, rows, columns]  # (B, side, side, C)
    return windows.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
