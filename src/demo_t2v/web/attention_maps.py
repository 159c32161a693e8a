"""Attention of the motion transformers during a generation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from demo_t2v.inference.runner import Step
    from demo_t2v.models.text import TextStates
    from demo_t2v.pipeline import DemoPipeline


def recorded_steps(steps: int) -> list[int]:
    """Steps, counted from 1, after which attention is recorded.

    They are about a quarter, a half and three quarters of `steps`, and the last but one.
    """
    quarters = {max(1, round(steps * quarter / 4)) for quarter in (1, 2, 3)}
    return sorted(quarters | {max(1, steps - 1)})


@torch.no_grad()
def motion_attention(pipeline: DemoPipeline, step: Step, states: TextStates) -> NDArray[np.float32]:
    """Attention of the first video to the motion prompt's [eot] token: (F, h, w) in [0, 1].

    It is computed for the step after `step`, without guidance, as the mean over all motion
    transformers, resized to the latents' h and w. `states` are the video's `encode_prompt`.
    """
    timesteps = pipeline.scheduler.timesteps
    timestep = timesteps[min(step.number, len(timesteps) - 1)]
    noisy = pipeline.scheduler.scale_model_input(step.latents[:1], timestep)
    unet, device = pipeline.unet, step.latents.device
    assert states.motion is not None
    output = unet(
        noisy.to(unet.dtype),
        timestep,
        states.content.to(device, unet.dtype),
        states.motion.to(device, unet.dtype),
        eot_index=states.eot_index.to(device),
    )
    attention: NDArray[np.float32] = output.mean_eot_attention[0].cpu().numpy()
    return attention
