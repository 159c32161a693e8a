"""What one step of the denoiser's stages computes: images, the base denoiser, DEMO."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, DPMSolverMultistepScheduler
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from demo_t2v.models.text import TextConditioner, penultimate_states
from demo_t2v.models.unet import DemoUNet
from demo_t2v.motion.losses import diffusion
from demo_t2v.pipeline import DemoPipeline
from demo_t2v.training.config import DenoiserTraining
from demo_t2v.training.items import open_items
from demo_t2v.training.parts import latent_shape


@dataclass(frozen=True)
class Samples:
    """What one step of a denoiser sees."""

    latents: Tensor
    """(B, C, F, h, w)"""
    noise: Tensor
    """(B, C, F, h, w)"""
    timesteps: Tensor
    """(B,)"""
    tokens: Tensor
    """(B, L) the captions' token ids, or the empty prompt's."""
    content: Tensor | None
    """(B, L, D) what the content encoder says of them, where that is kept."""
    flow: Tensor | None
    """(B, F-1, 2, h', w') the real clips' optical flow, where a loss needs it."""
    image: Tensor | None
    """(B, D) CLIP's embedding of the middle frames, where a loss needs it."""


def sample_seed(seed: int, place: int) -> int:
    """The seed of one training sample, from the run's seed and the sample's number."""
    return int(np.random.SeedSequence([seed, place]).generate_state(1, np.uint64)[0] >> 1)


class DenoiserTask:
    """Stages 3 to 5: images, the base denoiser, DEMO on top of it (arXiv 2410.24219, eq. 1 and 2).

    The base network (`motion: false`) hears the content encoder alone. DEMO starts from it, with
    motion transformers and a motion encoder that are copies of their content neighbours.
    """

    def __init__(self, config: DenoiserTraining) -> None:
        self.config = config
        self.items = open_items(config)
        self.unet = make_denoiser(config, latent_shape(config))
        content = load_encoder(config.clip / "content_encoder")
        motion = None
        if self.unet.config.motion:
            trained = config.base / "motion_encoder" if config.base else None
            motion = load_encoder(
                trained if trained and trained.exists() else config.clip / "content_encoder"
            )
        tokenizer = CLIPTokenizer.from_pretrained(config.clip / "tokenizer")
        content.requires_grad_(False).eval()  # type: ignore[no-untyped-call]
        if motion is not None:  # only the layers below the last one are heard
            motion.encoder.layers[-1].requires_grad_(False)
        self.condition = TextConditioner(tokenizer, content, motion)
        self.empty = self.condition.tokens([""])  # (1, L)
        with torch.no_grad():  # frozen, so heard once: (1, L, D)
            self.unheard = penultimate_states(content, self.empty)
        self.model = nn.ModuleDict({"unet": self.unet})
        if motion is not None:
            self.model["motion_encoder"] = motion
        self.noise = DDPMScheduler(
            beta_start=0.00085,
            beta_end=config.beta_end,
            beta_schedule="scaled_linear",
            prediction_type=config.prediction_type,
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = [{"params": list(self.unet.parameters())}]
        if self.condition.motion_encoder is not None:
            lr = self.config.motion_lr or self.config.lr
            groups.append({"params": list(self.model["motion_encoder"].parameters()), "lr": lr})
        return groups

    def batch(self, places: range) -> Samples:
        """The samples with these numbers.

        What is random about a sample comes from its number, so it is the same whatever batch or
        process it is in.
        """
        items = [self.items.item(place) for place in places]
        latents, draws = [], []
        for item, place in zip(items, places, strict=True):
            rng = torch.Generator().manual_seed(sample_seed(self.config.seed, place))
            clean = item.latents  # (C, F, h, w)
            if self.config.stills:
                frame = int(torch.randint(clean.shape[1], (), generator=rng))
                clean = clean[:, frame : frame + 1]
            latents.append(clean)
            draws.append((torch.randn(clean.shape, generator=rng), torch.rand(2, generator=rng)))
        shares = torch.stack([share for _, share in draws])  # (B, 2)
        dropped = shares[:, 0] < self.config.p_zero
        tokens, content = _stack(item.tokens for item in items), _stack(i.content for i in items)
        assert tokens is not None
        if content is not None:
            content = torch.where(dropped[:, None, None], self.unheard, content)
        return Samples(
            latents=torch.stack(latents),
            noise=torch.stack([noise for noise, _ in draws]),
            timesteps=self.timesteps(shares[:, 1]),
            tokens=torch.where(dropped[:, None], self.empty, tokens),
            content=content,
            flow=_stack(item.flow for item in items),
            image=_stack(item.image for item in items),
        )

    def loss(self, batch: Samples) -> tuple[Tensor, dict[str, float]]:
        latents, noise, timesteps = batch.latents, batch.noise, batch.timesteps
        noisy = self.noise.add_noise(latents, noise, timesteps)
        motion = None
        if self.condition.motion_encoder is not None:
            motion = penultimate_states(self.condition.motion_encoder, batch.tokens)
        prediction = self.unet(noisy, timesteps, self.content(batch), motion).sample
        target = noise
        if self.config.prediction_type == "v_prediction":
            target = self.noise.get_velocity(latents, noise, timesteps)
        return diffusion(prediction, target), {}

    @torch.no_grad()
    def content(self, batch: Samples) -> Tensor:
        """The content states (B, L, D), heard now where they were not kept."""
        if batch.content is not None:
            return batch.content
        return penultimate_states(self.condition.content_encoder, batch.tokens)

    def timesteps(self, share: Tensor) -> Tensor:
        """Timesteps (B,) for uniform draws (B,) in [0, 1), shifted towards the noise."""
        shift = self.config.timestep_shift
        shifted = shift * share / (1 + (shift - 1) * share)
        count: int = self.noise.config.num_train_timesteps
        return (shifted * count).long().clamp(max=count - 1)

    def export(self, folder: Path) -> None:
        """Save the whole pipeline: `DemoPipeline.from_pretrained(folder)`."""
        sampler = DPMSolverMultistepScheduler.from_config(
            self.noise.config, algorithm_type="dpmsolver++", timestep_spacing="trailing"
        )
        DemoPipeline(
            unet=self.unet,
            vae=AutoencoderKL.from_pretrained(self.config.autoencoder / "vae", dtype=torch.float32),
            content_encoder=self.condition.content_encoder,
            motion_encoder=self.condition.motion_encoder,
            tokenizer=self.condition.tokenizer,
            scheduler=sampler,
            num_inference_steps=self.config.ddim_timesteps,
            guidance_scale=self.config.guide_scale,
        ).save_pretrained(folder)


def _stack(tensors: Iterable[Tensor | None]) -> Tensor | None:
    """Tensors (...) -> (B, ...); None where they are none."""
    known = [tensor for tensor in tensors if tensor is not None]
    return torch.stack(known) if known else None


def load_encoder(folder: Path) -> CLIPTextModel:
    """A text encoder in full precision, however it was saved."""
    encoder: CLIPTextModel = CLIPTextModel.from_pretrained(folder, dtype=torch.float32)
    return encoder


def make_denoiser(config: DenoiserTraining, latents: Sequence[int]) -> DemoUNet:
    """A new denoiser for latents (C, F, h, w), or one that starts from `config.base`."""
    channels, frames, side, _ = latents
    if config.base is None:
        new: DemoUNet = DemoUNet(
            sample_size=side,
            sample_frames=frames,
            in_channels=channels,
            out_channels=channels,
            **config.model,
        )
        return new
    base = DemoUNet.from_pretrained(config.base / "unet", dtype=torch.float32)
    # Without diffusers' own entries: one of them says which sizes to leave at their defaults.
    sizes = {name: size for name, size in base.config.items() if not name.startswith("_")}
    unet: DemoUNet = DemoUNet(**{**sizes, **config.model})
    unet.load_state_dict(base.state_dict(), strict=False)
    if unet.config.motion and not base.config.motion:
        unet.init_motion_from_content()
    return unet
