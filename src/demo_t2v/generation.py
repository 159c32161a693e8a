"""From prompts to finished frames, for every caller: command line, web page and evaluation."""

from __future__ import annotations

import gc
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from demo_t2v.config import ConfigError, InferenceConfig
from demo_t2v.data.table import read_rows
from demo_t2v.outputs import Job
from demo_t2v.weights.hub import load_pipeline
from demo_t2v.weights.memory import DENOISING, TEXT, Plan

if TYPE_CHECKING:
    from torch import Tensor

    from demo_t2v.models.text import TextStates
    from demo_t2v.pipeline import DemoPipeline

    Encoded = tuple[TextStates, TextStates | None]
    """A batch's `prompt_embeds` and `negative_prompt_embeds`."""

__all__ = [
    "Job",
    "PromptError",
    "Step",
    "encode",
    "generate",
    "load_for",
    "make_jobs",
    "read_prompts",
    "sample_seed",
]


class PromptError(ValueError):
    """Prompts that cannot be used; the message is one line that names file, row and column."""


@dataclass(frozen=True)
class Step:
    """One denoising step that a batch of videos has taken."""

    number: int
    """Counts from 1."""
    latents: Tensor
    """(B, C, F, h, w): what the next step begins with."""
    clean: Tensor
    """(B, C, F, h, w): the latents without noise, as far as they can be told by now."""


def read_prompts(file: Path) -> list[tuple[str, str]]:
    """The (id, prompt) pairs of a CSV file whose first line is `id,prompt` or `prompt`.

    Without ids, or where one is empty, the row's number counts (the first row below the header
    is 1). Where `prompt` is the last column, commas in it need no quotes. Other columns are
    ignored. Raises PromptError.
    """
    lines = read_rows(file, PromptError)
    header = [name.strip().lower() for name in next(lines, (1, []))[1]]
    if "prompt" not in header:
        raise PromptError(f"{file}: has no column `prompt`; begin it with `id,prompt`")
    rows = list(_parse_rows(file, header, lines))
    if not rows:
        raise PromptError(f"{file}: has no prompts, only a header")
    return rows


def _parse_rows(
    file: Path, header: list[str], lines: Iterable[tuple[int, list[str]]]
) -> Iterator[tuple[str, str]]:
    seen: dict[str, int] = {}
    column = header.index("prompt")
    for number, (line, cells) in enumerate(lines, start=1):
        where = f"{file}, row {number} (line {line})"
        if not any(cell.strip() for cell in cells):
            raise PromptError(f"{where}: has nothing in it; remove it")
        if len(cells) > len(header):
            if column != len(header) - 1:
                raise PromptError(
                    f"{where}: has {len(cells)} columns, not {len(header)}; quote cells with commas"
                )
            cells = [*cells[:column], ",".join(cells[column:])]
        prompt = cells[column].strip() if column < len(cells) else ""
        if not prompt:
            raise PromptError(f"{where}: column `prompt` is empty; write what the video shows")
        name = cells[header.index("id")].strip() if "id" in header else ""
        name = name or str(number)
        if name.casefold() in seen:
            other = seen[name.casefold()]
            raise PromptError(
                f"{where}: column `id` repeats {name!r} of row {other}; each needs its own"
            )
        seen[name.casefold()] = number
        yield name, prompt


def sample_seed(seed: int, name: str, repeat: int) -> int:
    """The seed of one sample, in [0, 2^48): the same whatever else is made with it, and when."""
    digest = hashlib.sha256(f"{seed}/{repeat}/{name}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big")


def make_jobs(prompts: Iterable[tuple[str, str]], repeat: int, seed: int) -> list[Job]:
    """`repeat` jobs for each (id, prompt), each with a seed of its own derived from `seed`."""
    return [
        Job(name, prompt, index, sample_seed(seed, name, index))
        for name, prompt in prompts
        for index in range(repeat)
    ]


def load_for(
    jobs: Sequence[Job], config: InferenceConfig, plan: Plan
) -> tuple[DemoPipeline, list[Encoded] | None]:
    """The pipeline as `plan` has it. Where the text encoders are dropped, it comes without them
    and the encoded jobs with it; the denoiser is loaded after they are gone. Raises ConfigError
    for an adapter where not all parts are in memory.
    """
    load = partial(load_pipeline, config.pretrained, config.device, config.dtype)
    if config.lora is not None:
        if plan.drop_text or plan.offload != "none":
            raise ConfigError("lora: needs all parts in memory; raise max_memory, or no offload")
        adapted = load()
        adapted.load_lora_weights(config.lora, "lora")
        adapted.set_adapters("lora", config.lora_strength)
        return adapted, None
    if not plan.drop_text:
        return load(offload=plan.offload), None
    encoded = encode(load(without=DENOISING), jobs, config)
    gc.collect()
    return load(without=TEXT), encoded


def encode(pipeline: DemoPipeline, jobs: Sequence[Job], config: InferenceConfig) -> list[Encoded]:
    """What the text encoders say of all jobs: on the CPU, batch by batch as `generate` goes."""
    scale = pipeline.config.guidance_scale if config.guide_scale is None else config.guide_scale
    negative = config.negative_prompt if scale > 1 else None
    states = (
        pipeline.encode_prompt(
            [job.prompt for job in batch], _motion_prompts(batch, config), negative
        )
        for batch in _batches(jobs, config)
    )
    return [
        (these.map(lambda t: t.cpu()), None if those is None else those.map(lambda t: t.cpu()))
        for these, those in states
    ]


def generate(
    pipeline: DemoPipeline,
    jobs: Sequence[Job],
    config: InferenceConfig,
    on_step: Callable[[int], None] | None = None,
    encoded: Sequence[Encoded] | None = None,
    watch: Callable[[Step], None] | None = None,
) -> Iterator[tuple[Job, NDArray[np.uint8], float]]:
    """Make the videos batch by batch: yields (job, uint8 RGB frames (F, H, W, 3), seconds).

    `seconds` is the batch's time divided by its videos. `on_step` hears after each denoising
    step how many videos took it; `watch` sees their latents too, and what it raises ends the work
    there, with nothing decoded. `encoded` is what `encode` gave for the same jobs, for a pipeline
    without text encoders. Raises ConfigError, at once, for a size that the network cannot take.
    """
    _check_size(pipeline, config)
    batches = _batches(jobs, config)
    texts: list[dict[str, Any]]
    if encoded is None:
        texts = [
            {
                "prompt": [job.prompt for job in batch],
                "motion_prompt": _motion_prompts(batch, config),
                "negative_prompt": config.negative_prompt,
            }
            for batch in batches
        ]
    else:
        texts = [
            {"prompt_embeds": these, "negative_prompt_embeds": those} for these, those in encoded
        ]
    pairs = zip(batches, texts, strict=True)
    return (made for pair in pairs for made in _batch(pipeline, *pair, config, on_step, watch))


def _batches(jobs: Sequence[Job], config: InferenceConfig) -> list[Sequence[Job]]:
    size = config.batch_size
    return [jobs[start : start + size] for start in range(0, len(jobs), size)]


def _motion_prompts(jobs: Sequence[Job], config: InferenceConfig) -> list[str] | None:
    return None if config.motion_prompt is None else [config.motion_prompt] * len(jobs)


def _batch(
    pipeline: DemoPipeline,
    jobs: Sequence[Job],
    text: Mapping[str, Any],
    config: InferenceConfig,
    on_step: Callable[[int], None] | None,
    watch: Callable[[Step], None] | None,
) -> Iterator[tuple[Job, NDArray[np.uint8], float]]:
    import torch

    def step_done(_pipe: Any, step: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if on_step:
            on_step(len(jobs))
        if watch:
            watch(Step(step + 1, tensors["latents"], tensors["clean"]))
        return tensors

    height, width = config.resolution or (None, None)
    started = time.monotonic()
    videos = pipeline(
        **text,
        num_frames=config.max_frames,
        height=height,
        width=width,
        num_inference_steps=config.ddim_timesteps,
        guidance_scale=config.guide_scale,
        motion_strength=config.motion_strength,
        generator=[torch.Generator("cpu").manual_seed(job.seed) for job in jobs],
        decode_chunk_size=config.decoder_bs,
        callback_on_step_end=step_done,
        callback_on_step_end_tensor_inputs=("latents", "clean") if watch else ("latents",),
    ).frames  # (B, F, H, W, 3)
    seconds = (time.monotonic() - started) / len(jobs)
    for job, video in zip(jobs, videos, strict=True):
        yield job, _to_bytes(video), seconds


def _check_size(pipeline: DemoPipeline, config: InferenceConfig) -> None:
    height, width = config.resolution or (None, None)
    side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    frames = config.max_frames or pipeline.unet.config.sample_frames
    try:
        pipeline.check_size(frames, height or side, width or side)
    except ValueError as error:
        raise ConfigError(f"max_frames, resolution: {error}") from None


def _to_bytes(video: NDArray[np.float32]) -> NDArray[np.uint8]:
    """[0, 1] to [0, 255]."""
    if not np.isfinite(video).all():
        raise ArithmeticError("the network's numbers overflowed: --dtype float32 has more range")
    return (video * 255.0).round().clip(0, 255).astype(np.uint8)
