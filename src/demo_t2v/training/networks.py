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
