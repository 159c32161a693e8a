"""Configuration of the autoencoder's training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from demo_t2v.config.yaml_text import ExpandedPath, OptionalPath
from demo_t2v.training.config.base import TrainConfig


class AutoencoderTraining(TrainConfig):
    """Stage 1: frames to latents and back."""

    task: Literal["autoencoder"]
    kl_weight: Annotated[float, Field(ge=0)] = 1e-5
    """Weight of the KL divergence in the loss."""
    crop: Annotated[int, Field(ge=8)] | None = None
    """Side in pixels of the squares about the thing that the first steps train on, for speed."""
    crop_steps: Annotated[int, Field(ge=0)] = 0
    """Number of first steps that train on `crop`."""


class StudentTraining(TrainConfig):
    """An autoencoder for larger frames that shares the latents of a trained one."""

    task: Literal["student"]
    teacher: ExpandedPath
    """A folder with the trained autoencoder (`vae`); `sample_size` is the side of its frames."""
    base: OptionalPath = None
    """A folder with a student to continue from; None: a new one, which starts from the teacher's
    tensors where names and shapes agree."""
    train: Literal["decoder", "encoder"]
    """The half that is trained; the other one is frozen."""
    latent_noise: Annotated[float, Field(ge=0)] = 0.15
    """Largest noise on the decoder's latents, in standard deviations of the latents."""
    thing_weight: Annotated[float, Field(ge=1)] = 5.0
    """Weight of the thing's pixels in the decoder's loss; the background's is 1."""
    crop: Annotated[int, Field(ge=8)] | None = None
    """Side in pixels of the windows about the thing on which the decoder's first steps train, for
    speed; a multiple of the pixels of one latent."""
    crop_steps: Annotated[int, Field(ge=0)] = 0
    """Number of first steps that train on `crop`."""
