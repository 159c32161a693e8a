"""The networks that a training starts from: saved ones, and new ones of the sizes in `model`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from transformers import CLIPTextModel

from demo_t2v.config import ConfigError
from demo_t2v.core.atomic_io import dangling
from demo_t2v.models.unet import DemoUNet
from demo_t2v.training.config import (
    AnyTraining,
    ClipTraining,
    DenoiserTraining,
    StudentTraining,
)

Network = TypeVar("Network")
_TEXT: Final = ("content_encoder/config.json", "tokenizer/tokenizer_config.json")


def check_places(config: AnyTraining) -> None:
    """Raise ConfigError unless the folders that a training names hold what it starts from.

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
                raise ConfigError("p_motion_phrase: is for captions of sprites alone; write 0")
            _check("autoencoder", config.autoencoder, "vae/config.json")
            _check("clip", config.clip, *_TEXT)
            _check("base", config.base, "unet/config.json")


def _check(key: str, folder: Path | None, *files: str) -> None:
    for file in files:
        if folder is not None and not (folder / file).is_file():
            problem = dangling(folder) or f"holds no {file}"
            raise ConfigError(f"{key}: {folder}: {problem}; name the folder of a trained one")


def build(kind: Callable[..., Network], sizes: Mapping[str, Any]) -> Network:
    """A new network. Raises ConfigError for sizes that its class does not take."""
    try:
        return kind(**sizes)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        known = str(error) if not isinstance(error, KeyError) else f"{error} is missing"
        problem = known.strip().partition("\n")[0]
        raise ConfigError(f"model: these are no sizes of a network: {problem}") from None


def check_fit(config: DenoiserTraining, unet: DemoUNet, content: CLIPTextModel, side: int) -> None:
    """Raise ConfigError for a denoiser that takes neither the latents nor the states of the text.

    `side` is the latents' for `config.resolution`.
    """
    multiple = 2 ** (len(unet.config.block_out_channels) - 1)
    if side < multiple or side % multiple or config.resolution % side:
        raise ConfigError(
            f"resolution: {config.resolution} pixels are {side} latents a side; their number "
            f"should be a multiple of {multiple}, and divide the pixels"
        )
    wide, states = unet.config.cross_attention_dim, content.config.hidden_size
    if wide != states:
        raise ConfigError(
            f"model: cross_attention_dim is {wide}, and should be {states} as the text's states"
        )
