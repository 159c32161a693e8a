"""The task of the denoiser's stages: an image denoiser, the base denoiser, DEMO."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from demo_t2v.config import ConfigError
from demo_t2v.data.sprites import motion_phrase
from demo_t2v.diffusion.noise import offset_noise, shifted_timesteps
from demo_t2v.lora import add_lora
from demo_t2v.losses.objective import DenoiserBatch, DenoiserOutput, Objective
from demo_t2v.losses.optical_flow import lucas_kanade
from demo_t2v.models.text import TextConditioner, penultimate_states
from demo_t2v.pipeline import DemoPipeline
from demo_t2v.training.config import DenoiserTraining
from demo_t2v.training.data.features import (
    encode_frames,
    flow_estimator,
    latent_shape,
    load_tokenizer,
)
from demo_t2v.training.data.samples import Sample, open_samples
from demo_t2v.training.data.seeds import sample_seed
from demo_t2v.training.networks import check_fit
from demo_t2v.training.tasks.pretrained import (
    load_autoencoder,
    load_encoder,
    load_motion_encoder,
    make_denoiser,
    make_noise_scheduler,
    null_text,
    sampling_defaults,
)


@dataclass(frozen=True)
class _Draws:
    """The random numbers of one sample."""

    frames: slice
    """The frames to train on."""
    noise: Tensor
    """(C, F, h, w)"""
    uniform: Tensor
    """(5,) in [0, 1)"""


class DenoiserTask:
    """Stages 3 to 5: images, the base denoiser, and DEMO on top of it (arXiv 2410.24219).

    The base network (`motion: false`) has the content encoder only. DEMO starts from it, with
    motion transformers and a motion encoder that are copies of the content ones.
    """

    def __init__(self, config: DenoiserTraining) -> None:
        self.config = config
        self.samples = open_samples(config)
        self.latent_shape = latent_shape(config)
        self.unet = make_denoiser(config, self.latent_shape)
        self.vae = load_autoencoder(config) if config.encode_in_step else None
        content = load_encoder(config.clip / "content_encoder")
        check_fit(config, self.unet, content, self.latent_shape[-1])
        motion = load_motion_encoder(config) if self.unet.config.motion else None
        tokenizer = load_tokenizer(config.clip / "tokenizer")
        content.requires_grad_(False).eval()  # type: ignore[no-untyped-call]
        self.condition = TextConditioner(tokenizer, content, motion)
        self._freeze()
        self.negative_prompt = null_text(config)
        self.null_ids = self.condition.tokens([self.negative_prompt])  # (1, L)
        with torch.no_grad():  # the encoder is frozen: (1, L, D)
            self.null_states = penultimate_states(content, self.null_ids)
        self.model = nn.ModuleDict({"unet": self.unet})
        if motion is not None:
            self.model["motion_encoder"] = motion
        self.noise_scheduler = make_noise_scheduler(config)
        self.objective = self._make_objective()

    def _freeze(self) -> None:
        """Freeze what the configuration excludes from training, or add an adapter."""
        motion, lora = self.condition.motion_encoder, self.config.lora
        if lora is not None:
            add_lora(self.unet, motion, lora.target, lora.rank, lora.alpha)
            return
        if self.config.freeze_unet:
            for name, weight in self.unet.named_parameters():
                weight.requires_grad_("motion_attentions." in name)
        if motion is not None:
            first = self.config.stop_grad_index
            for module in (motion.embeddings, motion.final_layer_norm):
                module.requires_grad_(first == 0)
            motion.encoder.layers[:first].requires_grad_(False)
            motion.encoder.layers[-1].requires_grad_(False)  # the penultimate states are used
        elif self.config.freeze_unet:
            raise ConfigError("freeze_unet: without motion transformers nothing is left to train")

    def _make_objective(self) -> Objective:
        """Eq. 10; without a motion branch only the diffusion loss."""
        config = self.config
        if self.condition.motion_encoder is None:
            return Objective(self.noise_scheduler, min_snr_gamma=config.min_snr_gamma)
        return Objective(
            self.noise_scheduler,
            video_motion_weight=config.video_motion_weight,
            text_motion_weight=config.text_motion_weight,
            regularization_weight=config.regularization_weight,
            video_motion_space=config.video_motion_space,
            min_snr_gamma=config.min_snr_gamma,
            flow_estimator=flow_estimator(config) if config.text_motion_weight else lucas_kanade,
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = [{"params": _trained(self.unet)}]
        encoder = self.condition.motion_encoder
        if encoder is not None and (trained := _trained(encoder)):
            lr = self.config.motion_lr or self.config.lr
            groups.append({"params": trained, "lr": lr, "rate": "motion_lr"})
        return groups

    def batch(self, numbers: range) -> DenoiserBatch:
        """The samples with these numbers.

        A sample's random numbers depend on its number, so it is the same in any batch and process.
        """
        draws = [self._draw(number) for number in numbers]
        samples = [
            _select_frames(self.samples.sample(number), draw.frames)
            for number, draw in zip(numbers, draws, strict=True)
        ]
        latents = _stack(sample.latents for sample in samples)
        uniform = torch.stack([draw.uniform for draw in draws])  # (B, 5)
        no_content, no_motion = self._dropped_prompts(uniform)
        ids, content = torch.stack([s.tokens for s in samples]), _stack(s.content for s in samples)
        motion_ids = ids.clone()
        phrases = uniform[:, 4] < self.config.p_motion_phrase
        for row in torch.nonzero(phrases).flatten().tolist():
            motion_ids[row] = self.condition.tokens([motion_phrase(samples[row].caption)])[0]
        if content is not None:
            content = torch.where(no_content[:, None, None], self.null_states, content)
        return DenoiserBatch(
            latents=torch.empty(0) if latents is None else latents,
            noise=torch.stack([draw.noise for draw in draws]),
            timesteps=self.timesteps(uniform[:, 3]),
            content_ids=torch.where(no_content[:, None], self.null_ids, ids),
            motion_ids=torch.where(no_motion[:, None], self.null_ids, motion_ids),
            has_motion_prompt=~no_motion,
            content=content,
            flow=_stack(sample.flow for sample in samples),
            image=_stack(sample.image for sample in samples),
            frames=_stack(sample.frames for sample in samples),
        )

    def _draw(self, number: int) -> _Draws:
        rng = torch.Generator().manual_seed(sample_seed(self.config.seed, number))
        channels, length, *sides = self.latent_shape
        frames = slice(None)
        if self.config.stills:
            frame = int(torch.randint(length, (), generator=rng))
            frames, length = slice(frame, frame + 1), 1
        noise = torch.randn(channels, length, *sides, generator=rng)
        offset = torch.randn(channels, length, generator=rng)
        noise = offset_noise(noise, offset, self.config.noise_strength)
        return _Draws(frames, noise, torch.rand(5, generator=rng))

    def _dropped_prompts(self, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Whether the content prompt and the motion prompt are dropped, (B,) bool each."""
        no_content, p_motion = uniform[:, 0] < self.config.p_zero, self.config.p_zero_motion
        no_motion = no_content if p_motion is None else uniform[:, 2] < p_motion
        both = uniform[:, 1] < self.config.p_zero_both
        return no_content | both, no_motion | both

    def timesteps(self, uniform: Tensor) -> Tensor:
        """Timesteps (B,) for uniform draws (B,) in [0, 1), shifted towards the noise."""
        count = self.noise_scheduler.config.num_train_timesteps
        return shifted_timesteps(uniform, self.config.timestep_shift, count)

    def loss(self, batch: DenoiserBatch) -> tuple[Tensor, dict[str, float]]:
        """The loss of the samples and its terms (eq. 10)."""
        batch = self.with_latents(batch)
        noisy = self.noise_scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
        output = self._predict(noisy, batch, self.content_states(batch))
        return self.objective(batch, noisy, output)

    def _predict(self, noisy: Tensor, batch: DenoiserBatch, content: Tensor) -> DenoiserOutput:
        encoder = self.condition.motion_encoder
        if encoder is None:
            return DenoiserOutput(self.unet(noisy, batch.timesteps, content).sample)
        motion = penultimate_states(encoder, batch.motion_ids)
        ends = self.condition.eot_index(batch.motion_ids)
        output = self.unet(
            noisy,
            batch.timesteps,
            content,
            motion,
            eot_index=ends if self.objective.text_motion_weight else None,
        )
        state = motion[torch.arange(len(ends), device=ends.device), ends]
        return DenoiserOutput(output.sample, output.eot_attention or (), state)

    @torch.no_grad()
    def with_latents(self, batch: DenoiserBatch) -> DenoiserBatch:
        """The batch with the latents of its `frames`, encoded in float32 and rounded to half
        precision as cached ones.
        """
        if self.vae is None or batch.frames is None:
            return batch
        device = batch.frames.device
        vae = self.vae.to(device)  # the engine moves only trained networks
        with torch.autocast(device.type, enabled=False):
            flat = rearrange(batch.frames, "b f h w c -> (b f) h w c")
            means = encode_frames(vae, flat).half().float()
        latents = rearrange(means, "(b f) c h w -> b c f h w", b=len(batch.frames))
        return replace(batch, latents=latents.contiguous())

    @torch.no_grad()
    def content_states(self, batch: DenoiserBatch) -> Tensor:
        """The content encoder's states (B, L, D): those of the batch, or computed."""
        if batch.content is not None:
            return batch.content
        # The engine moves only trained networks to the device.
        encoder = self.condition.content_encoder.to(batch.content_ids.device)  # type: ignore[arg-type]
        return penultimate_states(encoder, batch.content_ids)

    def pipeline(self) -> DemoPipeline:
        """A pipeline of the networks with their current weights."""
        return DemoPipeline(
            unet=self.unet,
            vae=load_autoencoder(self.config).to(self.unet.device),
            content_encoder=self.condition.content_encoder.to(self.unet.device),
            motion_encoder=self.condition.motion_encoder,
            tokenizer=self.condition.tokenizer,
            negative_prompt=self.negative_prompt,
            **sampling_defaults(self.config, self.noise_scheduler),
        )

    def export(self, folder: Path) -> None:
        """Save the pipeline for `from_pretrained`, or the adapter for `load_lora_weights`."""
        if self.config.lora is None:
            self.pipeline().save_pretrained(folder)
        else:
            self.pipeline().save_lora_weights(folder)


def _select_frames(sample: Sample, frames: slice) -> Sample:
    """The sample with only these frames of its clip."""
    return replace(
        sample,
        latents=None if sample.latents is None else sample.latents[:, frames],
        frames=None if sample.frames is None else sample.frames[frames],
    )


def _stack(tensors: Iterable[Tensor | None]) -> Tensor | None:
    """Tensors (...) -> (B, ...); None if they are None."""
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.stack(present) if present else None


def _trained(network: nn.Module) -> list[nn.Parameter]:
    return [weight for weight in network.parameters() if weight.requires_grad]
