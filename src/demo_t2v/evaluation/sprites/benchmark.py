"""The sprite benchmark: how often a model makes the requested thing and motion.

A fixed list of prompts names pairs (thing, motion) of the training and held-out pairs.
`classification` recognizes thing and motion in each video without a learned network. The same
prompts rendered by the sprite world give the upper bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from demo_t2v.checkpoints.resolve import ResolvedModel, resolve
from demo_t2v.config import InferenceConfig
from demo_t2v.data.sprites import render, trajectory
from demo_t2v.evaluation.errors import EvaluationError
from demo_t2v.evaluation.report import BENCHMARK_VERSION, Report, Subject, VideoScore
from demo_t2v.evaluation.sprites.prompts import HELD_OUT, TRAINED, SpritePrompt, list_prompts
from demo_t2v.evaluation.sprites.scene import SIDE
from demo_t2v.evaluation.sprites.scoring import score_video
from demo_t2v.inference.jobs import make_jobs
from demo_t2v.inference.runner import Runner

REAL_CLIPS: Final = "real clips"
"""Role of the videos that the sprite world renders."""
_BATCH_SIZE: Final = 16


def evaluate(
    model: str,
    *,
    base: str | None = None,
    num_trained: int = TRAINED,
    num_held_out: int = HELD_OUT,
    on_video: Callable[[], None] | None = None,
) -> Report:
    """Score a model, the base network `base` if given, and the sprite world itself.

    Models are names, folders or hub repositories; they use their own default settings and seed 0.
    `on_video` is called after each video. Raises EvaluationError for more prompts than there are
    pairs or for a size that cannot be scored, model_folder.ModelError.
    """
    config = InferenceConfig(batch_size=_BATCH_SIZE)
    prompts = list_prompts(num_trained, num_held_out, config.seed)
    models = {"model": model} | ({"base": base} if base else {})
    resolved = {role: resolve(name) for role, name in models.items()}
    sizes = {role: _video_size(found) for role, found in resolved.items()}
    subjects = []
    for role, found in resolved.items():
        videos = _generate(found, prompts, config)
        subjects.append(Subject(role, found.name, _score(prompts, videos, on_video)))
    frames, side = sizes["model"]
    clips = (_render(prompt, frames, side) for prompt in prompts)
    subjects.append(Subject(REAL_CLIPS, "sprite world", _score(prompts, clips, on_video)))
    return Report(config.seed, subjects, BENCHMARK_VERSION)


def _video_size(model: ResolvedModel) -> tuple[int, int]:
    """Frames and side in pixels of a model's videos. Raises EvaluationError."""
    defaults = model.defaults
    if defaults.side < SIDE:
        raise EvaluationError(
            f"{model.name}: makes videos of {defaults.side}x{defaults.side} pixels; "
            f"the sprite score needs at least {SIDE}x{SIDE}"
        )
    return defaults.frames, defaults.side


def _generate(
    model: ResolvedModel, prompts: list[SpritePrompt], config: InferenceConfig
) -> Iterator[NDArray[np.uint8]]:
    """A video (F, H, W, 3) for each prompt."""
    jobs = make_jobs([(prompt.id, prompt.prompt) for prompt in prompts], 1, config.seed)
    return (video.frames for video in Runner.load(model, config).videos(jobs))


def _render(prompt: SpritePrompt, frames: int, side: int) -> NDArray[np.uint8]:
    """The sprite world's video of a prompt, (F, H, W, 3)."""
    path = trajectory(prompt.motion, prompt.speed, np.random.default_rng(prompt.seed), frames)
    return render(prompt.thing, prompt.background, path, side)


def _score(
    prompts: list[SpritePrompt],
    videos: Iterator[NDArray[np.uint8]],
    on_video: Callable[[], None] | None,
) -> list[VideoScore]:
    scores = []
    for prompt, frames in zip(prompts, videos, strict=True):
        scores.append(score_video(prompt, frames))
        if on_video:
            on_video()
    return scores
