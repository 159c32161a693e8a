"""Checks of a training's configuration, and new networks from the sizes in `model`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from transformers import CLIPTextModel

from demo_t2v.config import ConfigError
from demo_t2v.core.atomic_io import describe_broken_link
from demo_t2v.models.unet import DemoUNet
from demo_t2v.training.config import (
    AnyTraining,
    ClipTraining,
    DenoiserTraining,
    Distillation,
    StudentTraining,
)

Network = TypeVar("Network")
_TEXT: Final = ("content_encoder/config.json", "tokenizer/tokenizer_config.json")


def check_config(config: AnyTraining) -> None:
    """Raise ConfigError for folders without the needed files, and for excluded combinations.

    The libraries would look for a missing folder on the hub.
    """
    match config:
        case StudentTraining():
            _check("teacher", config.teacher, "vae/config.json")
            _check("base", config.base, "vae/config.json")
        case ClipTraining():
            _check("text", config.text, *_TEXT)
        case DenoiserTraining():
            if config.p_motion_phrase and config.train_dataset.type != "sprites":
                raise ConfigError("p_motion_phrase: works only for captions of sprites; write 0")
            _check("autoencoder", config.autoencoder, "vae/config.json")
            _check("clip", config.clip, *_TEXT)
            _check("base", config.base, "unet/config.json")
            _check_motion_losses(config)
            if config.distillation is not None:
                _check_distillation(config, config.distillation)


def _check(key: str, folder: Path | None, *files: str) -> None:
    for file in files:
        if folder is not None and not (folder / file).is_file():
            problem = describe_broken_link(folder) or f"holds no {file}"
            raise ConfigError(f"{key}: {folder}: {problem}; name the folder of a trained one")


def _check_motion_losses(config: DenoiserTraining) -> None:
    """Raise ConfigError for motion losses on single frames, which have no motion."""
    single = config.stills or config.num_frames == 1
    if not single or not has_motion_branch(config):
        return
    if config.video_motion_weight:
        raise ConfigError("video_motion_weight: single frames do not move; write 0")
    if config.text_motion_weight and not config.stills:  # stills: the loss is left out
        raise ConfigError("text_motion_weight: single frames do not move; write 0")


def check_crop(crop: int | None, factor: int, resolution: int) -> None:
    """Raise ConfigError for frames or windows that are no whole latents of `factor` pixels."""
    if resolution % factor:
        raise ConfigError(
            f"resolution: {resolution} should be a multiple of {factor}, the pixels of a latent"
        )
    if crop is not None and (crop % factor or crop > resolution):
        raise ConfigError(
            f"crop: {crop} should be a multiple of {factor}, the pixels of a latent, "
            f"and at most {resolution}"
        )


def _check_distillation(config: DenoiserTraining, student: Distillation) -> None:
    """Raise ConfigError for a base that is no model, and for options that students do not have."""
    _check("base", config.base, "model_index.json", "content_encoder/config.json")
    for key in ("text_motion_weight", "regularization_weight"):
        if getattr(config, key) and has_motion_branch(config):
            raise ConfigError(f"{key}: is for denoisers, not for a distilled student; write 0")
    if config.num_inference_steps is None:
        raise ConfigError("num_inference_steps is missing; write the student's steps, such as 4")
    if config.guidance_scale is None or config.guidance_scale > 1:
        raise ConfigError("guidance_scale: a distilled student needs no guidance; write 1")
    if config.guidance_interval is not None:
        raise ConfigError("guidance_interval: a distilled student needs no guidance; leave it out")
    if config.lora is not None and config.lora.target != "network":
        raise ConfigError(
            f"lora.target: a distilled student needs network, not {config.lora.target}"
        )
    low, high = student.motion_strength
    if low > high:
        raise ConfigError(f"distillation.motion_strength: {low} should be at most {high}")


def has_motion_branch(config: DenoiserTraining) -> bool:
    """Whether the configured network has motion transformers."""
    sizes = dict(config.model)
    if config.base:
        sizes = DemoUNet.load_config(config.base / "unet") | sizes
    return bool(sizes.get("motion", True))


def build(kind: Callable[..., Network], sizes: Mapping[str, Any]) -> Network:
    """A new network. Raises ConfigError for sizes that its class does not accept."""
    try:
        return kind(**sizes)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        text = str(error) if not isinstance(error, KeyError) else f"{error} is missing"
        problem = text.strip().partition("\n")[0]
        raise ConfigError(f"model: these are no sizes of a network: {problem}") from None


def check_fit(config: DenoiserTraining, unet: DemoUNet, content: CLIPTextModel, side: int) -> None:
    """Raise ConfigError unless the denoiser accepts the latents and the content encoder's states.

    `side` is the number of latents per side for `config.resolution`.
    """
    multiple = 2 ** (len(unet.config.block_out_channels) - 1)
    if side < multiple or side % multiple or config.resolution % side:
        raise ConfigError(
            f"resolution: {config.resolution} pixels are {side} latents a side; their number "
            f"should be a multiple of {multiple}, and divide the pixels"
        )
    width, states = unet.config.cross_attention_dim, content.config.hidden_size
    if width != states:
        raise ConfigError(
            f"model: cross_attention_dim is {width}, but should be {states}, "
            "the width of the text's states"
        )
