"""Schedulers by name, the release's own, and checks of the ones that a pipeline is given."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)

_CLASSES: Final[dict[str, Any]] = {
    "dpm++": DPMSolverMultistepScheduler,  # arXiv 2211.01095
    "ddim": DDIMScheduler,  # arXiv 2010.02502
    "unipc": UniPCMultistepScheduler,  # arXiv 2302.04867
    "euler": EulerDiscreteScheduler,  # arXiv 2206.00364, algorithm 2 without noise
    "euler_a": EulerAncestralDiscreteScheduler,
    "heun": HeunDiscreteScheduler,  # arXiv 2206.00364, algorithm 1
    "lcm": LCMScheduler,  # arXiv 2310.04378
    "ddpm": DDPMScheduler,  # arXiv 2006.11239
}
_OPTIONS: Final[dict[str, Any]] = {
    "clip_sample": False,  # latents go beyond [-1, 1]
    "thresholding": False,
    "algorithm_type": "dpmsolver++",
    "final_sigmas_type": "zero",
    "lower_order_final": True,
}
"""Options that `make_scheduler` sets where a class or a saved configuration has them."""


# diffusers finds the loading methods by the base class SchedulerMixin, named in this module.
class ModelScopeDDIMScheduler(DDIMScheduler, SchedulerMixin):
    """DDIM with the timesteps of ModelScopeT2V and DEMO (arXiv 2308.06571, 2410.24219).

    With the stride `num_train_timesteps // num_inference_steps` they are 1, 1 + stride, ... below
    `num_train_timesteps`, in falling order. Where the division leaves a remainder, there are more
    timesteps than `num_inference_steps`, and the first is higher than in diffusers: 31 timesteps
    from 991 for 30 steps.
    """

    def set_timesteps(
        self, num_inference_steps: int, device: str | torch.device | None = None
    ) -> None:
        """Set the timesteps. Raises ValueError for more steps than the training has timesteps."""
        super().set_timesteps(num_inference_steps, device)
        count = self.config.num_train_timesteps
        timesteps = 1 + torch.arange(0, count, count // num_inference_steps, device=device)
        self.timesteps = timesteps.clamp(max=count - 1).flip(0)


def make_scheduler(name: str, config: Mapping[str, Any]) -> SchedulerMixin:
    """The scheduler `name` for the noise process in the configuration of another scheduler.

    It keeps the betas, `num_train_timesteps`, `prediction_type` and `timestep_spacing` of
    `config`, and never clips latents. Raises ValueError for an unknown name, and for the
    configuration of a process that is not variance preserving (flow matching, EDM).
    """
    if name not in _CLASSES:
        raise ValueError(f"scheduler {name!r}: must be one of {', '.join(_CLASSES)}")
    if "beta_schedule" not in config:
        raise _wrong_process(config.get("_class_name", "without a class name"))
    kind = _CLASSES[name]
    accepted = _parameters(kind.__init__).keys() | config.keys()
    options = {key: value for key, value in _OPTIONS.items() if key in accepted}
    scheduler: SchedulerMixin = kind.from_config({**config, **options})
    check_scheduler(scheduler)
    return scheduler


def save_unclipped(scheduler: Any) -> None:
    """Add `clip_sample: false` to the configuration of a scheduler without this option.

    Latents go beyond [-1, 1], and some schedulers clip by default. Those that `from_config` makes
    from this configuration do not.
    """
    if "clip_sample" not in _parameters(type(scheduler).__init__):
        scheduler.register_to_config(clip_sample=False)


def check_scheduler(scheduler: Any) -> None:
    """Raise ValueError for a scheduler of another noise process, or one that clips latents."""
    name, config = type(scheduler).__name__, scheduler.config
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
        raise _wrong_process(name)
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
    """Set `steps` timesteps on the scheduler, or exactly `timesteps`.

    Raises ValueError for a list that the scheduler does not take, or that is not falling within
    [0, num_train_timesteps).
    """
    if timesteps is None:
        scheduler.set_timesteps(steps, device=device)
        return
    name, count = type(scheduler).__name__, scheduler.config.num_train_timesteps
    if "timesteps" not in _parameters(scheduler.set_timesteps):
        raise ValueError(
            f"timesteps: {name} takes num_inference_steps only; EulerDiscreteScheduler and "
            "DPMSolverMultistepScheduler take a list"
        )
    given = [int(step) for step in timesteps]
    falling = all(first > second for first, second in pairwise(given))
    if not given or not falling or given[0] >= count or given[-1] < 0:
        raise ValueError(f"timesteps {given}: must fall, from {count - 1} at most to 0 at least")
    scheduler.set_timesteps(timesteps=given, device=device)


def step_options(
    scheduler: Any,
    generator: torch.Generator | list[torch.Generator] | None,
    eta: float | None,
) -> dict[str, Any]:
    """Keyword arguments for the scheduler's `step`: those of `generator` and `eta` that it takes.

    `eta` in [0, 1] scales the noise that DDIM adds in a step (arXiv 2010.02502, eq. 16): 0 is
    deterministic, 1 is DDPM. Raises ValueError for an `eta` that the scheduler does not take.
    """
    if eta is not None and not 0 <= eta <= 1:
        raise ValueError(f"eta {eta}: must be between 0 and 1")
    accepted = _parameters(scheduler.step)
    if eta and "eta" not in accepted:
        raise ValueError(f"eta {eta}: {type(scheduler).__name__} has none; DDIMScheduler does")
    options = {"generator": generator, "eta": eta}
    return {key: value for key, value in options.items() if key in accepted and value is not None}


def _wrong_process(name: str) -> ValueError:
    return ValueError(
        f"scheduler {name}: does not sample a network that predicts epsilon or v from "
        "variance-preserving noise (flow matching and EDM are other processes); take one of "
        "pipe.scheduler.compatibles, by its from_config(pipe.scheduler.config)"
    )


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """A function's or a bound method's parameters by name."""
    return dict(inspect.signature(function).parameters)
