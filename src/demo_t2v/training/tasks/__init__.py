"""What one step of each kind of training computes."""

from __future__ import annotations

import torch

from demo_t2v.training.config import (
    AnyTraining,
    AutoencoderTraining,
    ClipTraining,
    DenoiserTraining,
    StudentTraining,
)
from demo_t2v.training.networks import check_places
from demo_t2v.training.tasks.autoencoder import AutoencoderTask
from demo_t2v.training.tasks.clip import ClipTask
from demo_t2v.training.tasks.denoiser import DenoiserTask
from demo_t2v.training.tasks.student import StudentTask
from demo_t2v.training.trainer import Task

__all__ = ["make_task"]


def make_task(config: AnyTraining) -> Task:
    """The task that a training configuration names; new weights are drawn from its seed.

    Raises ConfigError.
    """
    check_places(config)
    torch.manual_seed(config.seed)
    match config:
        case AutoencoderTraining():
            return AutoencoderTask(config)
        case StudentTraining():
            return StudentTask(config)
        case ClipTraining():
            return ClipTask(config)
        case DenoiserTraining():
            return DenoiserTask(config)
