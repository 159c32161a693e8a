"""Networks and settings that a denoiser's training takes from trained models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import AutoencoderKL, DDPMScheduler, DPMSolverMultistepScheduler
from transformers import CLIPTextModel

from demo_t2v.checkpoints.resolve import read_negative_prompt
from demo_t2v.config import ConfigError, read_json
from demo_t2v.config.inference import ALL_NOISE_LEVELS
from demo_t2v.model_folder import init_arguments, load_network
from demo_t2v.models.unet import DemoUNet
from demo_t2v.pipeline import DemoPipeline
from demo_t2v.training.config import DenoiserTraining
from demo_t2v.training.networks import build

_NOISE: Final = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
}
"""The noise of a denoiser without a base, by diffusers' keys."""
_CHOSEN: Final = ("prediction_type", "beta_end")
"""Keys of the noise that a configuration can set."""


def load_encoder(folder: Path) -> CLIPTextModel:
    """A text encoder in float32, whatever its saved precision."""
    encoder: CLIPTextModel = load_network(CLIPTextModel, folder, dtype=torch.float32)
    return encoder


def load_autoencoder(config: DenoiserTraining) -> AutoencoderKL:
    """The autoencoder of the latents in float32."""
    autoencoder: AutoencoderKL = load_network(
        AutoencoderKL, config.autoencoder / "vae", dtype=torch.float32
    )
    return autoencoder


def load_motion_encoder(config: DenoiserTraining) -> CLIPTextModel:
    """The motion encoder to start from: of `motion_clip`, else of a base with a motion branch,
    else a copy of the content encoder. Raises ConfigError for missing folders.
    """
    if config.motion_clip is not None:
        folder = config.motion_clip / "content_encoder"
        if not folder.is_dir():
            raise ConfigError(f"motion_clip: {folder} is no folder of a trained text encoder")
        return load_encoder(folder)
    if config.base is None or not DemoUNet.load_config(config.base / "unet").get("motion", True):
        return load_encoder(config.clip / "content_encoder")
    folder = config.base / "motion_encoder"
    if not folder.is_dir():
        raise ConfigError(
            f"{folder}: is missing, but the base has motion transformers; get the base again"
        )
    return load_encoder(folder)


def make_denoiser(config: DenoiserTraining, latents: Sequence[int]) -> DemoUNet:
    """A denoiser for latents (C, F, h, w): a new one, or one that starts from `config.base`."""
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


def null_text(config: DenoiserTraining) -> str:
    """The null text: the configured one, else the base's negative prompt.

    Raises ConfigError where an adapter's differs from that of its base.
    """
    index = config.base / "model_index.json" if config.base else None
    base_text = read_negative_prompt(index.parent) if index and index.is_file() else ""
    text = config.negative_prompt
    if config.lora and text not in (None, base_text):
        raise ConfigError(
            f"negative_prompt: {text!r} is not the base's, {base_text!r}; an adapter has the base's"
        )
    return base_text if text is None else text


def make_noise_scheduler(config: DenoiserTraining) -> DDPMScheduler:
    """The scheduler that adds noise: with the configured keys, else those of the base.

    Raises ConfigError where an adapter's noise differs from that of its base.
    """
    noise = dict(_NOISE)
    if config.base:
        file = config.base / "scheduler" / "scheduler_config.json"
        saved = read_json(file) if file.is_file() else {}
        unknown = [key for key in _CHOSEN if key not in saved and getattr(config, key) is None]
        if unknown:
            raise ConfigError(
                f"{file}: has no {' and no '.join(unknown)} for the base's noise; "
                "get the base again, or write it in the configuration"
            )
        noise |= {key: value for key, value in saved.items() if key in noise}
    for key in _CHOSEN:
        given = getattr(config, key)
        if config.lora and given not in (None, noise[key]):
            raise ConfigError(
                f"{key}: {given} is not the base's, {noise[key]}; an adapter has the base's"
            )
        noise[key] = noise[key] if given is None else given
    return DDPMScheduler(**noise)


def sampling_defaults(config: DenoiserTraining, noise: DDPMScheduler) -> dict[str, Any]:
    """The saved pipeline's scheduler, with this noise, and the defaults of a call.

    What the configuration leaves out is the base's. Without a base the scheduler is DPM-Solver++.
    """
    defaults = {
        "num_inference_steps": 20,
        "guidance_scale": 4.0,
        "guidance_interval": ALL_NOISE_LEVELS,
    }
    if config.base is None or not (config.base / "model_index.json").is_file():
        scheduler = DPMSolverMultistepScheduler.from_config(
            noise.config, algorithm_type="dpmsolver++", timestep_spacing="trailing"
        )
    else:
        networks = ("unet", "vae", "content_encoder", "motion_encoder", "tokenizer")
        base = DemoPipeline.from_pretrained(config.base, **dict.fromkeys(networks))
        scheduler = base.scheduler.from_config(
            base.scheduler.config, **{key: noise.config[key] for key in _NOISE}
        )
        defaults = {key: base.config[key] for key in defaults}
    given = {key: value for key in defaults if (value := getattr(config, key)) is not None}
    return {"scheduler": scheduler, **defaults, **given}
