"""Prompts as the pipeline takes them: texts, or embeddings that were made beforehand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial, reduce
from typing import TYPE_CHECKING, Any

from demo_t2v.conditioning.motion_words import MotionWord, MotionWordError, check_words
from demo_t2v.conditioning.timeline import (
    Timeline,
    TimelineError,
    parse_motion,
    parse_timeline,
)
from demo_t2v.config import ConfigError, InferenceConfig
from demo_t2v.diffusion.guidance import make_guidance
from demo_t2v.inference.jobs import Job, split_batches

if TYPE_CHECKING:
    from torch import Tensor

    from demo_t2v.models.text import TextStates
    from demo_t2v.pipeline import DemoPipeline

    PromptEmbeds = tuple[TextStates, TextStates | None]
    """A prompt's `prompt_embeds` and `negative_prompt_embeds`, one row each."""


def encode_prompts(
    pipeline: DemoPipeline, jobs: Iterable[Job], config: InferenceConfig
) -> dict[tuple[str, str], PromptEmbeds]:
    """The embeddings of each job's texts, on the CPU, by `Job.texts`.

    `config` has the model's own values where needed.
    """
    guided = make_guidance(**config.guidance).uses_negative
    negative = config.negative_prompt if guided else None
    embeds: dict[tuple[str, str], PromptEmbeds] = {}
    distinct = list({job.texts: job for job in jobs}.values())
    for batch in split_batches(distinct, config.batch_size):
        states, negatives = pipeline.encode_prompt(
            [job.prompt for job in batch],
            _motion_prompts(batch, config),
            negative,
            num_frames=config.num_frames,
            motion_crossfade=config.motion_crossfade,
        )
        for row, job in enumerate(batch):
            one = partial(_row, row)
            negative_states = None if negatives is None else negatives.map(one)
            embeds[job.texts] = states.map(one), negative_states
    return embeds


def prompt_arguments(
    jobs: Sequence[Job],
    config: InferenceConfig,
    embeds: Mapping[tuple[str, str], PromptEmbeds],
) -> dict[str, Any]:
    """The pipeline's arguments for the jobs' prompts: the embeddings if there are any."""
    if not embeds:
        return {
            "prompt": [job.prompt for job in jobs],
            "motion_prompt": _motion_prompts(jobs, config),
            "motion_crossfade": config.motion_crossfade,
            "negative_prompt": config.negative_prompt,
        }
    positive, negative = zip(*(embeds[job.texts] for job in jobs), strict=True)
    join = type(positive[0]).join
    negatives = [states for states in negative if states is not None]
    return {
        "prompt_embeds": reduce(join, positive),
        "negative_prompt_embeds": reduce(join, negatives) if negatives else None,
    }


def check_motion(jobs: Sequence[Job], config: InferenceConfig) -> None:
    """Raise ConfigError, TimelineError or MotionWordError for motion prompts that cannot be.

    `config` has the model's own number of frames.
    """
    if config.motion and config.motion_prompt is not None:
        raise ConfigError("motion and motion_prompt are both given: give one of them")
    assert config.num_frames is not None
    words = [MotionWord.read(source).name for source in config.motion_word or ()]
    for job in {job.texts: job for job in jobs}.values():
        motion = _motion_prompt(job, config)
        try:
            check_words([job.prompt], [] if motion is None else [motion], words)
        except MotionWordError as error:
            raise MotionWordError(f"id {job.id!r}: {error}") from None
        if isinstance(motion, Timeline):
            try:
                motion.frame_weights(config.num_frames, config.motion_crossfade)
            except TimelineError as error:
                source = f"id {job.id!r}: " if job.motion else ""
                raise TimelineError(f"{source}{error}") from None


def _motion_prompt(job: Job, config: InferenceConfig) -> str | Timeline | None:
    """The job's own motion prompt or timeline, else that of the configuration.

    Raises TimelineError, which names the job whose text is wrong.
    """
    if not job.motion:
        return parse_timeline(config.motion, config.fps) if config.motion else config.motion_prompt
    try:
        return parse_motion(job.motion, config.fps)
    except TimelineError as error:
        raise TimelineError(f"id {job.id!r}: {error}") from None


def _row(row: int, states: Tensor) -> Tensor:
    """One prompt's states (1, L, D) of those of a batch (B, L, D)."""
    return states[row : row + 1].cpu().clone()


def _motion_prompts(jobs: Sequence[Job], config: InferenceConfig) -> list[str | Timeline] | None:
    """The jobs' motion prompts; None where all are the prompts themselves."""
    given = [_motion_prompt(job, config) for job in jobs]
    if all(motion is None for motion in given):
        return None
    return [job.prompt if one is None else one for job, one in zip(jobs, given, strict=True)]
