"""From jobs to finished frames, batch by batch."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from demo_t2v.checkpoints.memory import DENOISING, TEXT, Plan
from demo_t2v.checkpoints.resolve import ResolvedModel
from demo_t2v.config import ConfigError, InferenceConfig
from demo_t2v.inference.outputs import Job

if TYPE_CHECKING:
    from torch import Tensor

    from demo_t2v.models.text import TextStates
    from demo_t2v.pipeline import DemoPipeline

    Encoded = tuple[TextStates, TextStates | None]
    """A prompt's `prompt_embeds` and `negative_prompt_embeds`, one row each."""

T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """One denoising step that a batch of videos has taken."""

    number: int
    """Counts from 1."""
    total: int
    """Steps that the scheduler takes, which can be more than were asked for."""
    latents: Tensor
    """(B, C, F, h, w): what the next step begins with."""
    clean: Tensor
    """(B, C, F, h, w): the latents without noise, as far as they can be told by now."""


def load_for(
    model: ResolvedModel, jobs: Iterable[Job], config: InferenceConfig, plan: Plan
) -> tuple[DemoPipeline, dict[str, Encoded]]:
    """The pipeline as `plan` has it. Where the text encoders are dropped, it comes without them
    and the encoded prompts of `jobs` with it; the denoiser is loaded after they are gone. Raises
    ConfigError for an adapter where not all parts are in memory.
    """
    load = partial(_load, model, config)
    if config.lora is not None:
        if plan.drop_text or plan.offload != "none":
            raise ConfigError("lora: needs all parts in memory; raise max_memory, or no offload")
        adapted = load()
        adapted.load_lora_weights(config.lora, "lora")
        adapted.set_adapters("lora", config.lora_strength)
        return adapted, {}
    if not plan.drop_text:
        return load(offload=plan.offload), {}
    encoded = encode(load(without=DENOISING), (job.prompt for job in jobs), config)
    gc.collect()
    return load(without=TEXT), encoded


def _load(model: ResolvedModel, config: InferenceConfig, **options: Any) -> DemoPipeline:
    """The pipeline with the scheduler that is asked for."""
    pipeline = model.load(config.device, config.dtype, **options)
    if config.scheduler is not None:
        from demo_t2v.diffusion.schedulers import make_scheduler  # diffusers loads slowly

        pipeline.scheduler = make_scheduler(config.scheduler, pipeline.scheduler.config)
    return pipeline


def encode(
    pipeline: DemoPipeline, prompts: Iterable[str], config: InferenceConfig
) -> dict[str, Encoded]:
    """What the text encoders say of each prompt, kept on the CPU."""
    known, negative = pipeline.config, config.negative_prompt
    scale = known.guidance_scale if config.guidance_scale is None else config.guidance_scale
    if negative is None:
        negative = known.negative_prompt
    kept: dict[str, Encoded] = {}
    for batch in cut(list(dict.fromkeys(prompts)), config.batch_size):
        states, negatives = pipeline.encode_prompt(
            batch, _motion_prompts(len(batch), config), negative if scale > 1 else None
        )
        for row, prompt in enumerate(batch):
            one = partial(_row, row)
            kept[prompt] = states.map(one), None if negatives is None else negatives.map(one)
    return kept


def _row(row: int, states: Tensor) -> Tensor:
    """One prompt's states (1, L, D) of those of a batch (B, L, D)."""
    return states[row : row + 1].cpu().clone()


def generate(
    pipeline: DemoPipeline,
    jobs: Sequence[Job],
    config: InferenceConfig,
    on_step: Callable[[int], None] | None = None,
    encoded: Mapping[str, Encoded] | None = None,
    watch: Callable[[Step], None] | None = None,
) -> Iterator[tuple[Job, NDArray[np.uint8], float]]:
    """Make the videos batch by batch: yields (job, uint8 RGB frames (F, H, W, 3), seconds).

    `seconds` is the batch's time divided by its videos. `on_step` gets after each denoising step
    how many of the steps that were asked for it adds, over the batch's videos; `watch` sees their
    latents too, and what it raises ends the work there, with nothing decoded. `encoded` is what
    `encode` gave for the jobs' prompts, for a pipeline without text encoders. Raises ConfigError,
    at once, for a size that the network cannot take.
    """
    check_size(pipeline, config)

    def make(batch: Sequence[Job]) -> Iterator[tuple[Job, NDArray[np.uint8], float]]:
        started = time.monotonic()
        latents = denoise(pipeline, batch, config, on_step, encoded, watch)
        videos = decode(pipeline, latents, config)
        seconds = (time.monotonic() - started) / len(batch)
        for job, video in zip(batch, videos, strict=True):
            yield job, to_bytes(video), seconds

    return (made for batch in cut(jobs, config.batch_size) for made in make(batch))


def cut(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """The items in batches of `size`, the last one of what is left."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def denoise(
    pipeline: DemoPipeline,
    jobs: Sequence[Job],
    config: InferenceConfig,
    on_step: Callable[[int], None] | None = None,
    encoded: Mapping[str, Encoded] | None = None,
    watch: Callable[[Step], None] | None = None,
) -> Tensor:
    """One batch's clean latents (B, C, F, h, w); arguments as of `generate`."""
    import torch

    asked = config.num_inference_steps or pipeline.config.num_inference_steps

    def step_done(pipe: Any, step: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        total = len(pipe.scheduler.timesteps)
        if on_step:
            on_step(len(jobs) * ((step + 1) * asked // total - step * asked // total))
        if watch:
            watch(Step(step + 1, total, tensors["latents"], tensors["clean"]))
        return tensors

    latents: Any = pipeline(
        **_texts(jobs, config, encoded),
        num_frames=config.num_frames,
        height=config.height,
        width=config.width,
        num_inference_steps=config.num_inference_steps,
        guidance_scale=config.guidance_scale,
        motion_strength=config.motion_strength,
        generator=[torch.Generator("cpu").manual_seed(job.seed) for job in jobs],
        output_type="latent",
        callback_on_step_end=step_done,
        callback_on_step_end_tensor_inputs=("latents", "clean") if watch else ("latents",),
    ).frames
    return cast("Tensor", latents)


def _texts(
    jobs: Sequence[Job], config: InferenceConfig, encoded: Mapping[str, Encoded] | None
) -> dict[str, Any]:
    """What the pipeline is told of the jobs' texts: they themselves, or their states."""
    if not encoded:
        return {
            "prompt": [job.prompt for job in jobs],
            "motion_prompt": _motion_prompts(len(jobs), config),
            "negative_prompt": config.negative_prompt,
        }
    states = [encoded[job.prompt][0] for job in jobs]
    negatives = [those for job in jobs if (those := encoded[job.prompt][1]) is not None]
    return {
        "prompt_embeds": reduce(type(states[0]).join, states),
        "negative_prompt_embeds": reduce(type(states[0]).join, negatives) if negatives else None,
    }


def _motion_prompts(count: int, config: InferenceConfig) -> list[str] | None:
    return None if config.motion_prompt is None else [config.motion_prompt] * count


def decode(pipeline: DemoPipeline, latents: Tensor, config: InferenceConfig) -> NDArray[np.float32]:
    """Latents (B, C, F, h, w) to frames (B, F, H, W, 3) in [0, 1], `decode_chunk_size` at once."""
    import torch

    with torch.no_grad():  # per thread, and this may be another one
        frames: NDArray[np.float32] = (
            pipeline.decode(latents, config.decode_chunk_size).cpu().numpy()
        )
    pipeline.maybe_free_model_hooks()
    return frames


def check_size(pipeline: DemoPipeline, config: InferenceConfig) -> None:
    """Raise ConfigError for a size that the network cannot take."""
    side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    frames = config.num_frames or pipeline.unet.config.sample_frames
    try:
        pipeline.check_size(frames, config.height or side, config.width or side)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def to_bytes(video: NDArray[np.float32]) -> NDArray[np.uint8]:
    """[0, 1] to [0, 255]. Raises ArithmeticError for what is no number."""
    if not np.isfinite(video).all():
        raise ArithmeticError("the network's numbers overflowed: --dtype float32 has more range")
    return (video * 255.0).round().clip(0, 255).astype(np.uint8)
