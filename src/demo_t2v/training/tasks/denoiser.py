"""What one step of the denoiser's stages computes: images, the base denoiser, DEMO."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    SchedulerMixin,
)
from einops import rearrange
from torch import Tensor, nn
from transformers import CLIPTextModel

from demo_t2v.checkpoints.resolve import read_negative_prompt
from demo_t2v.config import ConfigError, read_json
from demo_t2v.data.sprites import motion_phrase
from demo_t2v.diffusion.noise import offset_noise
from demo_t2v.lora import add_lora
from demo_t2v.model_folder import init_arguments, load_network
from demo_t2v.models.text import TextConditioner, penultimate_states
from demo_t2v.models.unet import DemoUNet
from demo_t2v.pipeline import DemoPipeline
from demo_t2v.training.config import DenoiserTraining
from demo_t2v.training.data.features import encode_frames, latent_shape, load_tokenizer
from demo_t2v.training.data.samples import open_items
from demo_t2v.training.networks import build, check_fit
from demo_t2v.training.objective import Answer, Objective, Samples


def sample_seed(seed: int, place: int) -> int:
    """The seed of one training sample, from the run's seed and the sample's number."""
    return int(np.random.SeedSequence([seed, place]).generate_state(1, np.uint64)[0] >> 1)


class DenoiserTask:
    """Stages 3 to 5: images, the base denoiser, DEMO on top of it (arXiv 2410.24219).

    The base network (`motion: false`) hears the content encoder alone. DEMO starts from it, with
    motion transformers and a motion encoder that are copies of their content neighbours.
    """

    def __init__(self, config: DenoiserTraining) -> None:
        self.config = config
        self.items = open_items(config)
        self.latent_shape = latent_shape(config)
        self.unet = make_denoiser(config, self.latent_shape)
        self.vae = load_autoencoder(config) if config.encode_in_step else None
        content = load_encoder(config.clip / "content_encoder")
        check_fit(config, self.unet, content, self.latent_shape[-1])
        motion = None
        if self.unet.config.motion:
            motion = load_encoder(_motion_start(config))
        tokenizer = load_tokenizer(config.clip / "tokenizer")
        content.requires_grad_(False).eval()  # type: ignore[no-untyped-call]
        self.condition = TextConditioner(tokenizer, content, motion)
        self._freeze()
        self.negative_prompt = null_text(config)
        self.null_ids = self.condition.tokens([self.negative_prompt])  # (1, L)
        with torch.no_grad():  # frozen, so encoded once: (1, L, D)
            self.null_states = penultimate_states(content, self.null_ids)
        self.model = nn.ModuleDict({"unet": self.unet})
        if motion is not None:
            self.model["motion_encoder"] = motion
        self.noise = make_noise(config)
        self.objective = Objective(config, self.noise, motion is not None)

    def _freeze(self) -> None:
        """Leave to training what the configuration leaves to it."""
        motion, lora = self.condition.motion_encoder, self.config.lora
        if lora is not None:
            add_lora(self.unet, motion, lora.target, lora.rank, lora.alpha)
            return
        if self.config.freeze_unet:
            for name, weight in self.unet.named_parameters():
                weight.requires_grad_("motion_attentions." in name)
        if motion is not None:
            single = self.config.stills or self.config.max_frames == 1
            if single and self.config.video_motion_weight:
                raise ConfigError("video_motion_weight: single frames do not move; write 0")
            first = self.config.stop_grad_index
            for ends in (motion.embeddings, motion.final_layer_norm):
                ends.requires_grad_(first == 0)
            motion.encoder.layers[:first].requires_grad_(False)
            motion.encoder.layers[-1].requires_grad_(False)  # only what is below it is heard
        elif self.config.freeze_unet:
            raise ConfigError("freeze_unet: without motion transformers nothing is left to train")

    def parameter_groups(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = [{"params": _trained(self.unet)}]
        encoder = self.condition.motion_encoder
        if encoder is not None and (trained := _trained(encoder)):
            lr = self.config.motion_lr or self.config.lr
            groups.append({"params": trained, "lr": lr, "rate": "motion_lr"})
        return groups

    def batch(self, places: range) -> Samples:
        """The samples with these numbers.

        What is random about a sample comes from its number, so it is the same whatever batch or
        process it is in.
        """
        items = [self.items.item(place) for place in places]
        latents, frames, noises, shares = [], [], [], []
        channels, count, *sides = self.latent_shape
        for item, place in zip(items, places, strict=True):
            rng = torch.Generator().manual_seed(sample_seed(self.config.seed, place))
            shown = slice(None)
            if self.config.stills:
                frame = int(torch.randint(count, (), generator=rng))
                shown = slice(frame, frame + 1)
            latents.append(None if item.latents is None else item.latents[:, shown])
            frames.append(None if item.frames is None else item.frames[shown])
            length = 1 if self.config.stills else count
            noise = torch.randn(channels, length, *sides, generator=rng)
            offset = torch.randn(channels, length, generator=rng)
            noises.append(offset_noise(noise, offset, self.config.noise_strength))
            shares.append(torch.rand(5, generator=rng))
        share = torch.stack(shares)  # (B, 5)
        no_content, p_motion = share[:, 0] < self.config.p_zero, self.config.p_zero_motion
        no_motion = no_content if p_motion is None else share[:, 2] < p_motion
        both = share[:, 1] < self.config.p_zero_both
        no_content, no_motion = no_content | both, no_motion | both
        ids, content = torch.stack([i.tokens for i in items]), _stack(i.content for i in items)
        clean = _stack(latents)
        motion_ids = ids.clone()
        for row in torch.nonzero(share[:, 4] < self.config.p_motion_phrase).flatten().tolist():
            motion_ids[row] = self.condition.tokens([motion_phrase(items[row].caption)])[0]
        if content is not None:
            content = torch.where(no_content[:, None, None], self.null_states, content)
        return Samples(
            latents=torch.empty(0) if clean is None else clean,
            noise=torch.stack(noises),
            timesteps=self.timesteps(share[:, 3]),
            content_ids=torch.where(no_content[:, None], self.null_ids, ids),
            motion_ids=torch.where(no_motion[:, None], self.null_ids, motion_ids),
            heard=~no_motion,
            content=content,
            flow=_stack(item.flow for item in items),
            image=_stack(item.image for item in items),
            frames=_stack(frames),
        )

    def loss(self, batch: Samples) -> tuple[Tensor, dict[str, float]]:
        """The loss of the samples, and its terms (eq. 10)."""
        batch = self.encoded(batch)
        noisy = self.noise.add_noise(batch.latents, batch.noise, batch.timesteps)
        answer = self._answer(noisy, batch, self.content(batch))
        return self.objective(batch, noisy, answer)

    def _answer(self, noisy: Tensor, batch: Samples, content: Tensor) -> Answer:
        encoder = self.condition.motion_encoder
        if encoder is None:
            return Answer(self.unet(noisy, batch.timesteps, content).sample)
        motion = penultimate_states(encoder, batch.motion_ids)
        ends = self.condition.eot_index(batch.motion_ids)
        output = self.unet(
            noisy,
            batch.timesteps,
            content,
            motion,
            eot_index=ends if self.objective.text_weight else None,
        )
        state = motion[torch.arange(len(ends), device=ends.device), ends]
        return Answer(output.sample, output.eot_attention or (), state)

    @torch.no_grad()
    def encoded(self, batch: Samples) -> Samples:
        """The samples with their latents, made now where they were not; in full precision, rounded
        as those that are kept.
        """
        if self.vae is None or batch.frames is None:
            return batch
        device = batch.frames.device
        vae = self.vae.to(device)  # the engine moves to a device only what is trained
        with torch.autocast(device.type, enabled=False):
            flat = rearrange(batch.frames, "b f h w c -> (b f) h w c")
            means = encode_frames(vae, flat).half().float()
        latents = rearrange(means, "(b f) c h w -> b c f h w", b=len(batch.frames))
        return replace(batch, latents=latents.contiguous())

    @torch.no_grad()
    def content(self, batch: Samples) -> Tensor:
        """The content states (B, L, D), heard now where they were not kept."""
        if batch.content is not None:
            return batch.content
        # The frozen encoder is none of what the engine moves to a device.
        encoder = self.condition.content_encoder.to(batch.content_ids.device)  # type: ignore[arg-type]
        return penultimate_states(encoder, batch.content_ids)

    def timesteps(self, share: Tensor) -> Tensor:
        """Timesteps (B,) for uniform draws (B,) in [0, 1), shifted towards the noise."""
        shift = self.config.timestep_shift
        shifted = shift * share / (1 + (shift - 1) * share)
        count: int = self.noise.config.num_train_timesteps
        return (shifted * count).long().clamp(max=count - 1)

    def pipeline(self) -> DemoPipeline:
        """The networks as they are, with the autoencoder and a sampler, ready to be called."""
        return DemoPipeline(
            unet=self.unet,
            vae=load_autoencoder(self.config).to(self.unet.device),
            content_encoder=self.condition.content_encoder.to(self.unet.device),
            motion_encoder=self.condition.motion_encoder,
            tokenizer=self.condition.tokenizer,
            scheduler=make_sampler(self.config, self.noise),
            num_inference_steps=self.config.ddim_timesteps,
            guidance_scale=self.config.guide_scale,
            negative_prompt=self.negative_prompt,
        )

    def export(self, folder: Path) -> None:
        """Save the whole pipeline, for `from_pretrained`; of an adapter's training the adapter
        alone, for `load_lora_weights`.
        """
        if self.config.lora is None:
            self.pipeline().save_pretrained(folder)
        else:
            self.pipeline().save_lora_weights(folder)


def _stack(tensors: Iterable[Tensor | None]) -> Tensor | None:
    """Tensors (...) -> (B, ...); None where they are none."""
    known = [tensor for tensor in tensors if tensor is not None]
    return torch.stack(known) if known else None


def _trained(network: nn.Module) -> list[nn.Parameter]:
    return [weight for weight in network.parameters() if weight.requires_grad]


def _motion_start(config: DenoiserTraining) -> Path:
    """The folder of the weights that the motion encoder starts from. Raises ConfigError."""
    if config.motion_clip is not None:
        folder = config.motion_clip / "content_encoder"
        if not folder.is_dir():
            raise ConfigError(f"motion_clip: {folder} is no folder of a trained text encoder")
        return folder
    trained = config.base / "motion_encoder" if config.base else None
    if trained is None or not DemoUNet.load_config(trained.parent / "unet").get("motion", True):
        return config.clip / "content_encoder"
    if not trained.is_dir():
        raise ConfigError(
            f"{trained}: is missing, though the base has motion transformers; get the base again"
        )
    return trained


def load_encoder(folder: Path) -> CLIPTextModel:
    """A text encoder in full precision, however it was saved."""
    encoder: CLIPTextModel = load_network(CLIPTextModel, folder, dtype=torch.float32)
    return encoder


def null_text(config: DenoiserTraining) -> str:
    """The prompt of dropped samples: as asked, else the base's negative prompt.

    Raises ConfigError where an adapter asks for another one than its base is sampled with.
    """
    index = config.base / "model_index.json" if config.base else None
    known = read_negative_prompt(index.parent) if index and index.is_file() else ""
    asked = config.negative_prompt
    if config.lora and asked not in (None, known):
        raise ConfigError(
            f"negative_prompt: {asked!r} is not the base's, {known!r}; an adapter has the base's"
        )
    return known if asked is None else asked


def load_autoencoder(config: DenoiserTraining) -> AutoencoderKL:
    """The autoencoder of the latents, in full precision."""
    autoencoder: AutoencoderKL = load_network(
        AutoencoderKL, config.autoencoder / "vae", dtype=torch.float32
    )
    return autoencoder


def make_noise(config: DenoiserTraining) -> DDPMScheduler:
    """The noise that is added: as asked, else as the base was trained with.

    Raises ConfigError where an adapter asks for other noise than its base will be sampled with.
    """
    known: dict[str, Any] = {"prediction_type": "v_prediction", "beta_end": 0.012}
    if config.base:
        file = config.base / "scheduler" / "scheduler_config.json"
        saved = read_json(file) if file.is_file() else {}
        lost = [key for key in known if key not in saved and getattr(config, key) is None]
        if lost:
            raise ConfigError(
                f"{file}: does not say the {' and '.join(lost)} of the base's noise; "
                "get the base again, or write it in the configuration"
            )
        known |= {key: value for key, value in saved.items() if key in known}
    for key, value in known.items():
        asked = getattr(config, key)
        if config.lora and asked not in (None, value):
            raise ConfigError(
                f"{key}: {asked} is not the base's, {value}; an adapter has the base's"
            )
        known[key] = value if asked is None else asked
    return DDPMScheduler(beta_start=0.00085, beta_schedule="scaled_linear", **known)


def make_sampler(config: DenoiserTraining, noise: DDPMScheduler) -> SchedulerMixin:
    """The base's own sampler for this noise; without one, DPM-Solver++."""
    if config.base is None or not (config.base / "model_index.json").is_file():
        solver: SchedulerMixin = DPMSolverMultistepScheduler.from_config(
            noise.config, algorithm_type="dpmsolver++", timestep_spacing="trailing"
        )
        return solver
    networks = ("unet", "vae", "content_encoder", "motion_encoder", "tokenizer")
    own = DemoPipeline.from_pretrained(config.base, **dict.fromkeys(networks)).scheduler
    shared = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")
    sampler: SchedulerMixin = own.from_config(
        own.config, **{key: noise.config[key] for key in shared}
    )
    return sampler


def make_denoiser(config: DenoiserTraining, latents: Sequence[int]) -> DemoUNet:
    """A new denoiser for latents (C, F, h, w), or one that starts from `config.base`."""
    channels, frames, side, _ = latents
    if config.base is None:
        fixed = {"in_channels": channels, "out_channels": channels}
        fixed |= {"sample_size": side, "sample_frames": frames}
        new: DemoUNet = build(DemoUNet, {**fixed, **config.model})
        return new
    base = load_network(DemoUNet, config.base / "unet", dtype=torch.float32)
    sizes = init_arguments(base) | {"sample_size": side, "sample_frames": frames}
    unet: DemoUNet = build(DemoUNet, {**sizes, **config.model})
    unet.load_state_dict(base.state_dict(), strict=False)
    if unet.config.motion and not base.config.motion:
        unet.init_motion_from_content()
    return unet
