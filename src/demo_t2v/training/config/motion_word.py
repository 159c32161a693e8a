"""Configuration of learning a motion word."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from demo_t2v.training.config.base import TrainConfig


class MotionWordTraining(TrainConfig):
    """Learns the vectors of a motion word; all networks are frozen.

    The defaults are those of `demo-t2v learn-motion`, chosen on the built-in model.
    """

    name: str
    """The word is written `<name>`."""
    content: str | None = None
    """Content prompt of the clips, without a motion; None: the null text."""
    num_vectors: Annotated[int, Field(ge=1, le=16)] = 8
    """Number of token vectors that the word stands for."""
    timestep_shift: Annotated[float, Field(ge=1)] = 4.0
    """Above 1, noisy timesteps are drawn more often (arXiv 2403.03206, eq. 23): at these only the
    motion prompt tells the motion."""
    num_steps: Annotated[int, Field(ge=1)] = 100
    batch_size: Annotated[int, Field(ge=1)] = 4
    lr: Annotated[float, Field(gt=0)] = 5e-3
    warmup_steps: Annotated[int, Field(ge=0)] = 10
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] | None = None
    log_interval: Annotated[int, Field(ge=1)] = 5
    save_ckp_interval: Annotated[int, Field(ge=1)] = 25
    keep_last: Annotated[int, Field(ge=1)] = 1
