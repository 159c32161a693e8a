"""What the motion transformers listen to while a video is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray

from demo_t2v.losses.optical_flow import resize

if TYPE_CHECKING:
    from demo_t2v.inference.batches import Step
    from demo_t2v.models.text import TextStates
    from demo_t2v.pipeline import DemoPipeline


def moments(steps: int) -> list[int]:
    """After which of so many steps to look: about a quarter, a half, three quarters, the end."""
    return sorted({max(1, round(steps * part / 4)) for part in (1, 2, 3)} | {max(1, steps - 1)})


@torch.no_grad()
def motion_attention(pipeline: DemoPipeline, step: Step, states: TextStates) -> NDArray[np.float32]:
    """How much each place of the first video attends to the motion prompt's end: (F, h, w).

    It is the attention on the [eot] token that the network would pay in the step after `step`,
    without guidance: the mean of all motion transformers, in the latents' size. `states` are what
    `encode_prompt` says of that video's prompts.
    """
    timesteps = pipeline.scheduler.timesteps
    timestep = timesteps[min(step.number, len(timesteps) - 1)]
    noisy = pipeline.scheduler.scale_model_input(step.latents[:1], timestep)
    unet, device = pipeline.unet, step.latents.device
    assert states.motion is not None
    maps = unet(
        noisy.to(unet.dtype),
        timestep,
        states.content.to(device, unet.dtype),
        states.motion.to(device, unet.dtype),
        eot_index=states.eot_index.to(device),
    ).eot_attention
    size = (noisy.shape[3], noisy.shape[4])
    layers = [resize(rearrange(each.float(), "1 h w f -> f 1 h w"), size) for each in maps]
    attention: NDArray[np.float32] = torch.stack(layers).mean(dim=0)[:, 0].cpu().numpy()
    return attention
