"""The tasks: models, data and losses of the training stages."""

from __future__ import annotations

import torch

from demo_t2v.training.config import (
    AnyTraining,
    AutoencoderTraining,
    ClipTraining,
    DenoiserTraining,
    StudentTraining,
)
from demo_t2v.training.networks import check_config
from demo_t2v.training.task import Task
from demo_t2v.training.tasks.autoencoder import AutoencoderTask
from demo_t2v.training.tasks.clip import ClipTask
from demo_t2v.training.tasks.denoiser import DenoiserTask
from demo_t2v.training.tasks.distillation import DistillationTask
from demo_t2v.training.tasks.student import StudentTask

__all__ = ["make_task"]


def make_task(config: AnyTraining) -> Task:
    """The task of a training configuration; its seed initialises new weights.

    A feature cache must be complete (`demo_t2v.training.data.feature_cache.prepare`). Raises
    ConfigError.
    """
    check_config(config)
    torch.manual_seed(config.seed)
    match config:
        case AutoencoderTraining():
            return AutoencoderTask(config)
        case StudentTraining():
            return StudentTask(config)
        case ClipTraining():
            return ClipTask.prepare(config)
        case DenoiserTraining(distillation=None):
            return DenoiserTask(config)
        case DenoiserTraining():
            return DistillationTask(config)
