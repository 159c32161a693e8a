"""Pipelines from a folder or with another scheduler, and the latents that they give."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from demo_t2v.pipeline import DemoPipeline


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def latents_of(pipeline: DemoPipeline, prompt: Any = "a car falls", **options: Any) -> Tensor:
    """Latents (B, C, F, h, w) of one call, each sample from a seed of its own."""
    count = 1 if isinstance(prompt, str) else len(prompt)
    start = {"generator": seeded(*range(count)), "output_type": "latent"}
    return pipeline(prompt, **{**start, **options}).frames


def differ(first: Tensor, second: Tensor) -> bool:
    """Whether two results differ by more than rounding."""
    return not torch.allclose(first, second, atol=1e-3)


def with_effective_motion(pipeline: DemoPipeline) -> DemoPipeline:
    """A copy whose motion transformers have an effect; new ones are the identity."""
    torch.manual_seed(0)
    copied = deepcopy(pipeline)
    for name, weight in copied.unet.named_parameters():
        if "motion_attentions" in name and "proj_out.weight" in name:
            torch.nn.init.normal_(weight, std=0.5)
    return copied


def load_saved(folder: Path, **options: Any) -> DemoPipeline:
    """The saved pipeline, without progress bars."""
    pipeline = DemoPipeline.from_pretrained(folder, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def with_scheduler(pipeline: DemoPipeline, scheduler: Any) -> DemoPipeline:
    components = {**pipeline.components, "scheduler": scheduler}
    other = DemoPipeline(**components, num_inference_steps=3, guidance_scale=3.0)
    other.set_progress_bar_config(disable=True)
    return other
