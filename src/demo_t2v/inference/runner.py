"""Videos from jobs: the one way that the command line, the page and the evaluation make them.

Batches are denoised one after another. A thread decodes and writes a batch while the next one is
denoised. A batch that fails is made again in halves, so that a bad prompt, or memory that is
short, costs one video at most.
"""

from __future__ import annotations

import gc
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from demo_t2v.checkpoints.memory import DENOISING, TEXT, Plan
from demo_t2v.checkpoints.resolve import ModelDefaults, ResolvedModel
from demo_t2v.config import ConfigError, InferenceConfig
from demo_t2v.core.compiler import compile_blocks
from demo_t2v.core.devices import as_device_error, name_and_memory
from demo_t2v.core.devices import free_memory as free_device_memory
from demo_t2v.diffusion.caching import CacheConfig
from demo_t2v.diffusion.guidance import make_guidance
from demo_t2v.diffusion.schedulers import make_scheduler
from demo_t2v.inference.background import Background
from demo_t2v.inference.jobs import Failure, Job, Video, split_batches
from demo_t2v.inference.prompt_embeds import encode_prompts, prompt_arguments
from demo_t2v.pipeline_inputs import NO_MOTION_BRANCH

if TYPE_CHECKING:
    from demo_t2v.inference.prompt_embeds import PromptEmbeds
    from demo_t2v.pipeline import DemoPipeline

PENDING: Final = 2
"""Batches that may wait to be decoded and written."""

R = TypeVar("R")


class CancelledError(Exception):
    """For a callback to raise: it ends the run at once, with nothing decoded."""


# No other batch would succeed after one of these.
_FATAL: Final = (OSError, CancelledError, getattr(torch, "AcceleratorError", OSError))


@dataclass(frozen=True)
class Step:
    """One denoising step of a batch."""

    number: int
    """Counts from 1."""
    total: int
    """Steps that the scheduler takes, which can be more than were requested."""
    latents: Tensor
    """(B, C, F, h, w): the input of the next step."""
    clean: Tensor
    """(B, C, F, h, w): the latents without noise, as predicted in this step."""


OnStep = Callable[[Step], None]
"""Called after each step of a batch; raises CancelledError to end the run."""
OnProgress = Callable[[int], None]
"""Called with the number of requested steps that were taken, summed over the batch's videos;
negative where a batch failed and its steps do not count."""


@dataclass(frozen=True)
class DenoisedBatch:
    """A batch's clean latents (B, C, F, h, w) and the seconds that they took, or its error."""

    jobs: Sequence[Job]
    latents: Tensor | None
    error: Exception | None
    seconds: float
    attention: Tensor | None = None
    """(B, T, F, h, w): the pipeline's motion attention, if requested."""


@dataclass
class Runner:
    """A loaded pipeline with the settings of its videos.

    Raises ConfigError for a size that the network cannot take, for a cache that does not fit the
    scheduler or the number of steps, and for guidance of the motion without a motion branch.
    """

    pipeline: DemoPipeline
    config: InferenceConfig
    """The model's own values replace those that are None."""
    prompt_embeds: Mapping[tuple[str, str], PromptEmbeds] = field(default_factory=dict)
    """By `Job.texts`, for a pipeline without text encoders."""
    max_pending: int = PENDING
    """Batches that may wait to be decoded; 0: each is decoded before the next one is denoised."""
    lockstep: bool = False
    """Whether all processes must call the network together. Then no batch is made again."""

    def __post_init__(self) -> None:
        self.config = ModelDefaults.of(self.pipeline).complete(self.config)
        assert self.config.num_frames
        assert self.config.height
        assert self.config.width
        try:
            self.pipeline.check_size(self.config.num_frames, self.config.height, self.config.width)
            assert self.config.num_inference_steps
            self.pipeline.check_cache(self.config.num_inference_steps)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if make_guidance(**self.config.guidance).separates and not self.pipeline.unet.config.motion:
            raise ConfigError(NO_MOTION_BRANCH)

    @classmethod
    def load(
        cls,
        model: ResolvedModel,
        config: InferenceConfig,
        plan: Plan | None = None,
        jobs: Iterable[Job] = (),
    ) -> Self:
        """Load a model as `plan` says (default: all of it stays in memory).

        Where the plan drops the text encoders, they encode the texts of `jobs`, and are freed
        before the denoiser is loaded. Raises ModelError, and ConfigError for an adapter where not
        all parts are in memory, and for a compiled denoiser that is offloaded.
        """
        plan = plan or Plan(config.decode_chunk_size)
        config = model.defaults.complete(config)
        config = config.model_copy(update={"decode_chunk_size": plan.decode_chunk_size})
        load = partial(_load, model, config)
        if config.compile and plan.offload != "none":
            raise ConfigError(
                "compile: needs the denoiser in the device's memory; raise max_memory, or no "
                "offload"
            )
        if plan.drop_text or plan.offload != "none":
            if config.lora is not None:
                raise ConfigError(
                    "lora: needs all parts in memory; raise max_memory, or no offload"
                )
            if plan.offload != "none":
                return cls(load(offload=plan.offload), config, max_pending=0)
            embeds = encode_prompts(load(without=DENOISING), jobs, config)
            gc.collect()
            return cls(load(without=TEXT), config, embeds)
        pipeline = load()
        if config.lora is not None:
            pipeline.load_lora_weights(config.lora, "lora")
            pipeline.set_adapters("lora", config.lora_strength)
        return cls(pipeline, config)

    def videos(self, jobs: Sequence[Job], on_step: OnStep | None = None) -> Iterator[Video]:
        """Make the jobs' videos in order. Raises the error of a job that fails."""
        batches = split_batches(jobs, self.config.batch_size)
        return self.run(batches, _raise_failure, on_step=on_step)

    def run(
        self,
        batches: Iterable[Sequence[Job]],
        finish: Callable[[Video | Failure], R],
        on_progress: OnProgress | None = None,
        on_step: OnStep | None = None,
    ) -> Iterator[R]:
        """`finish(result)` for each job in order, called in a thread of its own.

        Each batch is taken from `batches` when it begins. What `finish` raises is raised here, at
        the latest when its result's turn comes.
        """
        with Background[R](self.max_pending) as background:
            for batch in batches:
                attempts = deque([batch])
                while attempts:
                    done = self.denoise(attempts.popleft(), on_progress, on_step)
                    if done.error is None or len(done.jobs) == 1:
                        yield from background.submit(partial(self._finish, done, finish))
                        continue
                    half = (len(done.jobs) + 1) // 2
                    attempts.extendleft(reversed(split_batches(done.jobs, half)))
                    free_memory()
            yield from background.rest()

    def denoise(
        self,
        jobs: Sequence[Job],
        on_progress: OnProgress | None = None,
        on_step: OnStep | None = None,
        output_attention: bool = False,
    ) -> DenoisedBatch:
        """Denoise the jobs at once.

        Errors after which no other batch would succeed are raised, in lockstep all of them.
        """
        requested, counted, started = self.config.num_inference_steps, 0, time.monotonic()
        assert requested
        inputs = ("latents", "clean") if on_step else ("latents",)

        def after_step(
            pipeline: Any, step: int, _timestep: Any, tensors: dict[str, Any]
        ) -> dict[str, Any]:
            nonlocal counted
            total = len(pipeline.scheduler.timesteps)
            if on_progress:
                new = len(jobs) * ((step + 1) * requested // total - step * requested // total)
                counted += new
                on_progress(new)
            if on_step:
                on_step(Step(step + 1, total, tensors["latents"], tensors["clean"]))
            return tensors

        try:
            output: Any = self.pipeline(
                **prompt_arguments(
                    jobs, self.config, self.prompt_embeds, self.pipeline.speed_calibration
                ),
                num_frames=self.config.num_frames,
                window_frames=self.config.window_frames,
                window_stride=self.config.window_stride,
                height=self.config.height,
                width=self.config.width,
                num_inference_steps=requested,
                guider=make_guidance(**self.config.guidance),
                motion_strength=self.config.motion_strength,
                generator=[torch.Generator("cpu").manual_seed(job.seed) for job in jobs],
                output_type="latent",
                callback_on_step_end=after_step,
                callback_on_step_end_tensor_inputs=inputs,
                output_attention=output_attention,
            )
        except Exception as error:
            if self.lockstep:
                raise
            if on_progress:
                on_progress(-counted)
            return DenoisedBatch(jobs, None, _survivable(error), 0.0)
        seconds = time.monotonic() - started
        return DenoisedBatch(jobs, output.frames, None, seconds, output.attention)

    def _finish(self, done: DenoisedBatch, finish: Callable[[Video | Failure], R]) -> list[R]:
        """Decode a batch, and call `finish` with each of its videos and failures."""
        if done.latents is None:
            assert done.error
            return [finish(Failure(job, done.error)) for job in done.jobs]
        started = time.monotonic()
        try:
            videos = self.decode(done.latents)
        except Exception as error:
            failed = _survivable(error)
            return [finish(Failure(job, failed)) for job in done.jobs]
        seconds = (done.seconds + time.monotonic() - started) / len(done.jobs)
        return [
            finish(
                Failure(job, video)
                if isinstance(video, ArithmeticError)
                else Video(job, video, seconds)
            )
            for job, video in zip(done.jobs, videos, strict=True)
        ]

    def decode(self, latents: Tensor) -> list[NDArray[np.uint8] | ArithmeticError]:
        """Latents (B, C, F, h, w) to the frames (F, H, W, 3) of each video.

        A video with numbers that are not finite is an ArithmeticError. `decode_chunk_size` frames
        are decoded at once, and fewer where memory is short; only these are in memory as floats.
        """
        size = self.config.decode_chunk_size
        while True:
            try:
                videos = self._decode(latents, size)
                break
            except Exception as error:
                if size == 1 or not out_of_memory(error):
                    raise
            free_memory()
            size //= 2
        self.pipeline.maybe_free_model_hooks()
        return videos

    @torch.no_grad()  # per thread, and this may be another one than that of the denoising
    def _decode(self, latents: Tensor, size: int) -> list[NDArray[np.uint8] | ArithmeticError]:
        """As `decode`, `size` frames at once; the first of a video follow the last of another."""
        videos, _, length, *sides = latents.shape
        height, width = (side * self.pipeline.vae_scale_factor for side in sides)
        frames = np.empty((videos, length, height, width, 3), dtype=np.uint8)
        errors: dict[int, ArithmeticError] = {}
        indices = np.ndindex(videos, length)
        for chunk in torch.split(rearrange(latents, "b c f h w -> 1 c (b f) h w"), size, dim=2):
            for frame in self.pipeline.decode_latents(chunk).flatten(0, 1).cpu().numpy():
                video, index = next(indices)
                try:
                    frames[video, index] = to_bytes(frame)
                except ArithmeticError as error:
                    errors[video] = error
        return [errors.get(number, video) for number, video in enumerate(frames)]

    @property
    def dtype(self) -> str:
        """The precision of the network, as in float32."""
        return str(self.pipeline.dtype).removeprefix("torch.")

    @property
    def device(self) -> str:
        """The name of the device that the network runs on."""
        device = self.pipeline._execution_device
        return "cpu" if device.type == "cpu" else name_and_memory(str(device))[0]


def _load(model: ResolvedModel, config: InferenceConfig, **options: Any) -> DemoPipeline:
    """The pipeline with the scheduler and the cache that are configured."""
    pipeline = model.load(config.device, config.dtype, **options)
    set_sampler(pipeline, config)
    if pipeline.content_encoder is not None:
        for source in config.motion_word or ():
            pipeline.load_motion_word(source)
    if config.compile and pipeline.unet is not None:
        compile_blocks(pipeline.unet)
    return pipeline


def set_sampler(pipeline: DemoPipeline, config: InferenceConfig) -> None:
    """Give a pipeline the scheduler and the cache that are configured.

    Without a scheduler in the configuration it keeps its own.
    """
    if config.scheduler is not None:
        pipeline.scheduler = make_scheduler(config.scheduler, pipeline.scheduler.config)
    if config.cache is None:
        pipeline.disable_cache()
    else:
        pipeline.enable_cache(CacheConfig(config.cache, config.cache_interval))


def to_bytes(video: NDArray[np.float32]) -> NDArray[np.uint8]:
    """[0, 1] to [0, 255]. Raises ArithmeticError for numbers that are not finite."""
    if not np.isfinite(video).all():
        raise ArithmeticError("the network's numbers overflowed: --dtype float32 has more range")
    return (video * 255.0).round().clip(0, 255).astype(np.uint8)


def out_of_memory(error: Exception) -> bool:
    """Whether a device, or the computer, had no memory left for a tensor."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError)
        and any(words in str(error) for words in ("allocate memory", "out of memory"))
    )


def free_memory() -> None:
    """Free the memory of a failed attempt."""
    gc.collect()
    free_device_memory()


def _survivable(error: Exception) -> Exception:
    """The error of one batch. Raises it where no other batch would succeed either."""
    if problem := as_device_error(error):
        raise problem from None
    if isinstance(error, _FATAL):
        raise error
    # The traceback refers to the batch's tensors; a note has its text.
    error.add_note("".join(traceback.format_tb(error.__traceback__)).rstrip())
    return error.with_traceback(None)


def _raise_failure(result: Video | Failure) -> Video:
    if isinstance(result, Failure):
        raise result.error
    return result
