"""Prompts as the pipeline takes them: texts, or embeddings that were made beforehand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial, reduce
from typing import TYPE_CHECKING, Any

from demo_t2v.conditioning.blend import Blend, MotionPromptError, parse_blend
from demo_t2v.conditioning.motion_words import MotionWord, MotionWordError, check_words
from demo_t2v.conditioning.speed import FILE, SpeedCalibration, SpeedError
from demo_t2v.conditioning.timeline import MotionPrompt, Timeline, parse_motion, parse_timeline
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
            _motion_prompts(batch, config, pipeline.speed_calibration),
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
    calibration: SpeedCalibration | None,
) -> dict[str, Any]:
    """The pipeline's arguments for the jobs' prompts: the embeddings if there are any."""
    if not embeds:
        return {
            "prompt": [job.prompt for job in jobs],
            "motion_prompt": _motion_prompts(jobs, config, calibration),
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


def check_motion(
    jobs: Sequence[Job], config: InferenceConfig, calibration: SpeedCalibration | None
) -> None:
    """Raise a UserError for motion prompts, motion words and speeds that cannot be.

    `config` has the model's own size and number of frames.
    """
    if config.motion and config.motion_prompt is not None:
        raise ConfigError("motion and motion_prompt are both given: give one of them")
    assert config.num_frames is not None
    words = [MotionWord.read(source).name for source in config.motion_word or ()]
    for job in {job.texts: job for job in jobs}.values():
        motion = _motion_prompt(job, config, calibration)
        try:
            check_words([job.prompt], [] if motion is None else [motion], words)
        except MotionWordError as error:
            raise MotionWordError(f"id {job.id!r}: {error}") from None
        if isinstance(motion, Timeline):
            try:
                motion.frame_weights(config.num_frames, config.motion_crossfade)
            except MotionPromptError as error:
                source = f"id {job.id!r}: " if job.motion else ""
                raise type(error)(f"{source}{error}") from None


def _motion_prompt(
    job: Job, config: InferenceConfig, calibration: SpeedCalibration | None
) -> MotionPrompt | None:
    """The job's own motion prompt or timeline, else that of the configuration, at its speed.

    Raises MotionPromptError, which names the job whose text is wrong, and SpeedError.
    """
    motion: MotionPrompt | None = config.motion_prompt and parse_blend(config.motion_prompt)
    if job.motion:
        try:
            motion = parse_motion(job.motion, config.fps)
        except MotionPromptError as error:
            raise type(error)(f"id {job.id!r}: {error}") from None
    elif config.motion:
        motion = parse_timeline(config.motion, config.fps)
    if config.speed is None:
        return motion
    if calibration is None:
        raise SpeedError(
            f"speed: {config.model} has no speed calibration ({FILE}); leave speed out, or measure "
            "one by scripts/calibrate_speed.py"
        )
    assert config.height
    assert config.width
    knob = calibration.knob(config.speed, min(config.height, config.width), config.fps)
    return calibration.words.steer(_plain(job.prompt) if motion is None else motion, knob)


def _plain(prompt: str) -> Blend:
    """A content prompt as a motion prompt: its text is not read as a blend."""
    return Blend((prompt,), (1.0,))


def _row(row: int, states: Tensor) -> Tensor:
    """One prompt's states (1, L, D) of those of a batch (B, L, D)."""
    return states[row : row + 1].cpu().clone()


def _motion_prompts(
    jobs: Sequence[Job], config: InferenceConfig, calibration: SpeedCalibration | None
) -> list[MotionPrompt] | None:
    """The jobs' motion prompts; None where all are the prompts themselves."""
    given = [_motion_prompt(job, config, calibration) for job in jobs]
    if all(motion is None for motion in given):
        return None
    pairs = zip(jobs, given, strict=True)
    return [_plain(job.prompt) if one is None else one for job, one in pairs]
