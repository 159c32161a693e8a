"""Schedulers: the published one, which of diffusers' fit, and what they are given."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from diffusers import DDIMScheduler, SchedulerMixin


# diffusers looks in this module for the base class that says how it is loaded.
class ModelScopeDDIMScheduler(DDIMScheduler, SchedulerMixin):
    """DDIM with the timesteps of ModelScopeT2V and DEMO (arXiv 2308.06571, 2410.24219).

    With the stride `num_train_timesteps // num_inference_steps` they are 1, 1 + stride, ... up to
    the last one of the training, from the top. Where the stride leaves a rest, these are more than
    `num_inference_steps`, and begin higher than those of diffusers: 31 from 991 for 30 steps.
    """

    def set_timesteps(
        self, num_inference_steps: int, device: str | torch.device | None = None
    ) -> None:
        """Set the timesteps. Raises ValueError for more steps than the training has timesteps."""
        super().set_timesteps(num_inference_steps, device)
        count = self.config.num_train_timesteps
        timesteps = 1 + torch.arange(0, count, count // num_inference_steps, device=device)
        self.timesteps = timesteps.clamp(max=count - 1).flip(0)


def save_unclipped(scheduler: Any) -> None:
    """Add `clip_sample: false` to the configuration of a scheduler without such an option.

    Latents go beyond [-1, 1]. A scheduler that is made by `from_config` of this configuration, and
    clips by default, then does not.
    """
    if "clip_sample" not in _parameters(type(scheduler).__init__):
        scheduler.register_to_config(clip_sample=False)


def check_scheduler(scheduler: Any) -> None:
    """Raise ValueError for a scheduler of another noise process, or one that clips the latents."""
    name, config = type(scheduler).__name__, scheduler.config
    right = "take one of pipe.scheduler.compatibles, by its from_config(pipe.scheduler.config)"
    predicts = config.get("prediction_type")
    required = {
        key
        for key, value in _parameters(scheduler.step).items()
        if value.default is value.empty and value.kind is value.POSITIONAL_OR_KEYWORD
    }
    if (
        not hasattr(scheduler, "alphas_cumprod")
        or predicts not in ("epsilon", "v_prediction")
        or config.get("use_flow_sigmas")
        or not required <= {"model_output", "timestep", "sample"}
        or "Inverse" in name
    ):
        raise ValueError(
            f"scheduler {name}: does not sample a network that predicts epsilon or v from "
            f"variance-preserving noise (flow matching and EDM are other processes); {right}"
        )
    for option in ("clip_sample", "thresholding"):
        if config.get(option):
            raise ValueError(
                f"scheduler {name}: {option}=True would clip the latents; "
                f"make it with {option}=False"
            )
    last = (config.get("lower_order_final"), config.get("final_sigmas_type"))
    if name == "UniPCMultistepScheduler" and last == (False, "zero"):
        raise ValueError(
            f"scheduler {name}: lower_order_final=False divides by zero in the last step; "
            "make it with lower_order_final=True"
        )


def set_timesteps(
    scheduler: Any, steps: int, timesteps: Sequence[int] | None, device: torch.device
) -> None:
    """Set so many steps, or exactly these. Raises ValueError for timesteps that cannot be."""
    if timesteps is None:
        scheduler.set_timesteps(steps, device=device)
        return
    name, count = type(scheduler).__name__, scheduler.config.num_train_timesteps
    if "timesteps" not in _parameters(scheduler.set_timesteps):
        raise ValueError(
            f"timesteps: {name} takes num_inference_steps only; EulerDiscreteScheduler and "
            "DPMSolverMultistepScheduler take a list"
        )
    ours = [int(step) for step in timesteps]
    falling = all(first > second for first, second in pairwise(ours))
    if not ours or not falling or ours[0] >= count or ours[-1] < 0:
        raise ValueError(f"timesteps {ours}: must fall, from {count - 1} at most to 0 at least")
    scheduler.set_timesteps(timesteps=ours, device=device)


def step_options(
    scheduler: Any,
    generator: torch.Generator | list[torch.Generator] | None,
    eta: float | None,
) -> dict[str, Any]:
    """What the scheduler's `step` takes of these. Raises ValueError for an `eta` it has no use for.

    `eta` is DDIM's (arXiv 2010.02502): the share of DDPM's noise that a step adds.
    """
    if eta is not None and not 0 <= eta <= 1:
        raise ValueError(f"eta {eta}: must be between 0 and 1")
    known = _parameters(scheduler.step)
    if eta and "eta" not in known:
        raise ValueError(f"eta {eta}: {type(scheduler).__name__} has none; DDIMScheduler does")
    options = {"generator": generator, "eta": eta}
    return {key: value for key, value in options.items() if key in known and value is not None}


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """A function's or a bound method's parameters by name."""
    return dict(inspect.signature(function).parameters)
