"""Distillation of a guided ODE to a few steps without guidance.

The student takes N steps at the timesteps t_1 > ... > t_N of its scheduler. From the latents x at
t_i it learns the clean latents whose DDIM step to t_{i+1} ends where the teacher's solution of the
probability-flow ODE from x ends: progressive distillation (arXiv 2202.00512, sec. 3) in one stage,
with a teacher under guidance (arXiv 2210.03142). Solution and step have the same start, so the
target is a function of the input, and the squared error does not average different videos.

Below, a = sqrt(alpha_bar) and s = sqrt(1 - alpha_bar) at a timestep.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from demo_t2v.diffusion.guidance import Denoiser


def student_scheduler(config: Mapping[str, Any], highest_noise_level: float) -> DDIMScheduler:
    """DDIM (arXiv 2010.02502) on the first part of the noise schedule in `config`.

    Latents at the highest timesteps are noise alone, so a step there is wasted. The scheduler has
    the fraction `highest_noise_level` of the timesteps, at the clean end, and spaces its steps
    evenly below the last one. Raises ValueError for a noise schedule whose beginning is no schedule
    of diffusers.
    """
    if config["beta_schedule"] not in ("linear", "scaled_linear") or config.get("trained_betas"):
        raise ValueError(
            f"beta_schedule {config['beta_schedule']}: must be linear or scaled_linear"
        )
    whole = DDIMScheduler(
        num_train_timesteps=config["num_train_timesteps"],
        beta_start=config["beta_start"],
        beta_end=config["beta_end"],
        beta_schedule=config["beta_schedule"],
        prediction_type=config["prediction_type"],
        timestep_spacing="trailing",
        clip_sample=False,
    )
    count = round(highest_noise_level * config["num_train_timesteps"])
    part: DDIMScheduler = DDIMScheduler.from_config(
        whole.config, num_train_timesteps=count, beta_end=float(whole.betas[count - 1])
    )
    return part


def solve(
    denoise: Denoiser, latents: Tensor, scheduler: Any, first_step: int, num_steps: int
) -> Tensor:
    """The ODE's solution after `num_steps` steps of the scheduler, from its step `first_step` on.

    Its timesteps must be set. A solver with a memory of earlier steps begins anew.
    """
    scheduler.set_timesteps(scheduler.num_inference_steps, device=latents.device)
    scheduler.set_begin_index(first_step)
    for timestep in scheduler.timesteps[first_step : first_step + num_steps]:
        latents = scheduler.step(denoise(latents, timestep), timestep, latents).prev_sample
    return latents


def clean_target(
    latents: Tensor, solution: Tensor, alpha_bar: Tensor, next_alpha_bar: Tensor
) -> Tensor:
    """The clean latents x0 whose DDIM step from `latents` ends at `solution`; all (B, ...).

    With x = `latents` at a and s, and x' = `solution` at a' and s', the step is
    x' = a' x0 + (s' / s)(x - a x0), so x0 = (x' - (s' / s) x) / (a' - (s' / s) a)
    (arXiv 2202.00512, algorithm 2).
    """
    ratio = ((1 - next_alpha_bar) / (1 - alpha_bar)).sqrt()
    return (solution - ratio * latents) / (next_alpha_bar.sqrt() - ratio * alpha_bar.sqrt())


def distillation_loss(clean: Tensor, target: Tensor, alpha_bar: Tensor) -> Tensor:
    """The squared error of clean latents, divided by s^2: the weight SNR + 1 of arXiv 2202.00512.

    It is the squared error of the velocity (sec. 4 there). Its mean is a scalar.
    """
    return (clean.float() - target).square().mean() / (1 - alpha_bar)


def next_alpha_bar(scheduler: DDIMScheduler, step: int) -> Tensor:
    """alpha_bar after step `step` of a scheduler whose timesteps are set; 1 after the last one."""
    later = scheduler.timesteps[step + 1 :]
    alphas: Tensor = scheduler.alphas_cumprod
    return alphas[later[0].cpu()] if len(later) else torch.ones_like(alphas[0])
