"""Schedulers that diffusers does not have."""

from __future__ import annotations

import torch
from diffusers import DDIMScheduler, SchedulerMixin


# diffusers looks in this module for the base class that says how it is loaded.
class ModelScopeDDIMScheduler(DDIMScheduler, SchedulerMixin):  # type: ignore[misc]
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
