"""Prompts as the pipeline takes them: texts, or embeddings that were made beforehand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial, reduce
from typing import TYPE_CHECKING, Any

from demo_t2v.config import InferenceConfig
from demo_t2v.inference.jobs import Job, split_batches

if TYPE_CHECKING:
    from torch import Tensor

    from demo_t2v.models.text import TextStates
    from demo_t2v.pipeline import DemoPipeline

    PromptEmbeds = tuple[TextStates, TextStates | None]
    """A prompt's `prompt_embeds` and `negative_prompt_embeds`, one row each."""


def encode_prompts(
    pipeline: DemoPipeline, prompts: Iterable[str], config: InferenceConfig
) -> dict[str, PromptEmbeds]:
    """Each prompt's embeddings, on the CPU. `config` has the model's own values where needed."""
    assert config.guidance_scale is not None
    negative = config.negative_prompt if config.guidance_scale > 1 else None
    embeds: dict[str, PromptEmbeds] = {}
    for batch in split_batches(list(dict.fromkeys(prompts)), config.batch_size):
        states, negatives = pipeline.encode_prompt(
            batch, _motion_prompts(len(batch), config), negative
        )
        for row, prompt in enumerate(batch):
            one = partial(_row, row)
            embeds[prompt] = states.map(one), None if negatives is None else negatives.map(one)
    return embeds


def prompt_arguments(
    jobs: Sequence[Job], config: InferenceConfig, embeds: Mapping[str, PromptEmbeds]
) -> dict[str, Any]:
    """The pipeline's arguments for the jobs' prompts: the embeddings if there are any."""
    if not embeds:
        return {
            "prompt": [job.prompt for job in jobs],
            "motion_prompt": _motion_prompts(len(jobs), config),
            "negative_prompt": config.negative_prompt,
        }
    positive, negative = zip(*(embeds[job.prompt] for job in jobs), strict=True)
    join = type(positive[0]).join
    negatives = [states for states in negative if states is not None]
    return {
        "prompt_embeds": reduce(join, positive),
        "negative_prompt_embeds": reduce(join, negatives) if negatives else None,
    }


def _row(row: int, states: Tensor) -> Tensor:
    """One prompt's states (1, L, D) of those of a batch (B, L, D)."""
    return states[row : row + 1].cpu().clone()


def _motion_prompts(count: int, config: InferenceConfig) -> list[str] | None:
    return None if config.motion_prompt is None else [config.motion_prompt] * count
