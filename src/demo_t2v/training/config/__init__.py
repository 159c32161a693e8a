"""The configuration of a training: one YAML file per stage. Every default is defined here.

Keys have diffusers' names where it has them; the names of the paper's release are aliases.
"""

from __future__ import annotations

import logging
from typing import Annotated

from pydantic import Field

from demo_t2v.checkpoints.resolve import is_published, resolve
from demo_t2v.core.devices import trains_on_cpu
from demo_t2v.core.launch import is_launched, rank
from demo_t2v.training.config.autoencoder import AutoencoderTraining, StudentTraining
from demo_t2v.training.config.base import TrainConfig
from demo_t2v.training.config.clip import ClipTraining
from demo_t2v.training.config.datasets import (
    AnyDataset,
    CustomDataset,
    Dataset,
    ShardsDataset,
    SpritesDataset,
    VideoDataset,
    WebvidDataset,
)
from demo_t2v.training.config.denoiser import DenoiserTraining, Distillation, Lora

__all__ = [
    "AnyDataset",
    "AnyTraining",
    "AutoencoderTraining",
    "ClipTraining",
    "CustomDataset",
    "Dataset",
    "DenoiserTraining",
    "Distillation",
    "Lora",
    "ShardsDataset",
    "SpritesDataset",
    "StudentTraining",
    "TrainConfig",
    "VideoDataset",
    "WebvidDataset",
    "find_models",
    "fit_device",
]
_log = logging.getLogger(__name__)

AnyTraining = Annotated[
    AutoencoderTraining | StudentTraining | ClipTraining | DenoiserTraining,
    Field(discriminator="task"),
]


def find_models(config: AnyTraining) -> AnyTraining:
    """The configuration with published files replaced by the folders they are converted to.

    Raises ModelError.
    """
    if not isinstance(config, DenoiserTraining):
        return config
    given = {key: str(getattr(config, key)) for key in ("autoencoder", "clip", "base")}
    folders = {
        key: resolve(name, to_train=True).folder
        for key, name in given.items()
        if is_published(name)
    }
    return config.model_copy(update=folders)


def fit_device(config: AnyTraining) -> AnyTraining:
    """The configuration for this machine: without a GPU float16 becomes float32.

    A warning reports this, and a launcher that found no GPU.
    """
    if not trains_on_cpu():
        return config
    halved = config.mixed_precision == "fp16"
    if rank() == 0 and (halved or is_launched()):
        precision = ", in float32 instead of float16" if halved else ""
        _log.warning("no GPU here: the training runs on the CPU%s", precision)
    return config.model_copy(update={"mixed_precision": "no"}) if halved else config
