"""Making all jobs of a list, and losing none: batches, halved where they fail, saved meanwhile.

Decoding and writing are done in a thread, while the next batch is denoised. A batch that does not
fit into memory, or in which something fails, is made again in halves, so that in the end one video
is all that a bad prompt costs.
"""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from demo_t2v.checkpoints.memory import Plan
from demo_t2v.checkpoints.resolve import ResolvedModel
from demo_t2v.config import InferenceConfig
from demo_t2v.core.devices import free_memory as free_device_memory
from demo_t2v.core.devices import lacking, name_and_memory
from demo_t2v.inference.backends.deepspeed import spread
from demo_t2v.inference.backends.processes import Share
from demo_t2v.inference.batches import (
    check_size,
    cut,
    decode,
    denoise,
    load_for,
    to_bytes,
)
from demo_t2v.inference.outputs import Job, OutputFolder

if TYPE_CHECKING:
    from demo_t2v.inference.batches import Encoded
    from demo_t2v.pipeline import DemoPipeline

AHEAD: Final = 2
# After these nothing else would go well either.
_FATAL: Final = (OSError, getattr(torch, "AcceleratorError", OSError))

Write = Callable[[Job, NDArray[np.uint8], float, str], dict[str, Any]]
"""Writes a job's frames (F, H, W, 3), with the seconds and the device that made them."""
A = TypeVar("A")
B = TypeVar("B")


class Watcher(Protocol):
    """Hears what happens in this process."""

    def refresh(self) -> None:
        """Something may have changed in the counters of `Share`."""

    def made(self, entry: Mapping[str, Any]) -> None:
        """A video is written; `entry` is its line in the manifest."""

    def failed(self, failure: Mapping[str, Any]) -> None:
        """A video cannot be made: `id`, `prompt`, `repeat`, `seed`, `reason`."""


@dataclass(frozen=True)
class Denoised:
    """A batch's clean latents (B, C, F, h, w), and the seconds that they took."""

    jobs: Sequence[Job]
    latents: Tensor
    seconds: float


@dataclass(frozen=True)
class Failure:
    """A job that cannot be done, and why."""

    job: Job
    error: Exception

    @property
    def entry(self) -> dict[str, Any]:
        reason = " ".join(str(self.error).split()) or type(self.error).__name__
        return {**asdict(self.job), "reason": reason}


@dataclass(frozen=True)
class Maker:
    """One process's pipeline, and all that it is to know to make jobs."""

    pipeline: DemoPipeline
    config: InferenceConfig
    folder: OutputFolder
    encoded: Mapping[str, Encoded]
    ahead: int = AHEAD
    """Batches that may wait to be decoded and written; 0: each is, before the next one begins."""
    in_step: bool = False
    """Whether all processes must call the network together; then no batch is tried again."""

    @classmethod
    def load(
        cls,
        model: ResolvedModel,
        jobs: Sequence[Job],
        config: InferenceConfig,
        plan: Plan,
        folder: OutputFolder,
    ) -> Maker:
        """Load the model as `plan` has it. Raises ModelError, ConfigError."""
        config = config.model_copy(update={"decode_chunk_size": plan.decode_chunk_size})
        pipeline, encoded = load_for(model, jobs, config, plan)
        check_size(pipeline, config)
        dtype = str(pipeline.dtype).removeprefix("torch.")
        folder = replace(folder, settings={**folder.settings, "dtype": dtype})
        in_step = config.deepspeed_config is not None and spread(pipeline, config)
        ahead = 0 if in_step or plan.offload != "none" else AHEAD
        return cls(pipeline, config, folder, encoded, ahead, in_step)

    def attempt(
        self, jobs: Sequence[Job], on_step: Callable[[int], None]
    ) -> Iterator[Denoised | Failure]:
        """Denoise the jobs at once; in halves, and halves of these, where that fails.

        `on_step` hears how many videos took a step, or took so many in vain (below 0).
        """
        began, counted = time.monotonic(), 0

        def count(steps: int) -> None:
            nonlocal counted
            counted += steps
            on_step(steps)

        try:
            latents = denoise(self.pipeline, jobs, self.config, count, self.encoded)
        except Exception as error:
            if problem := lacking(error):
                raise problem from None
            if self.in_step or isinstance(error, _FATAL):
                raise
            on_step(-counted)
            if len(jobs) == 1:
                yield Failure(jobs[0], _without_frames(error))
                return
        else:
            yield Denoised(jobs, latents, time.monotonic() - began)
            return
        free_memory()
        for half in cut(jobs, (len(jobs) + 1) // 2):
            yield from self.attempt(half, on_step)

    def finish(self, done: Denoised | Failure, write: Write) -> list[dict[str, Any] | Failure]:
        """Decode a batch and `write` it: each video's manifest line, or its failure.

        Raises OSError where it cannot be written.
        """
        if isinstance(done, Failure):
            return [done]
        began = time.monotonic()
        try:
            videos = self._decode(done.latents)
        except _FATAL:
            raise
        except Exception as error:
            if problem := lacking(error):
                raise problem from None
            return [Failure(job, _without_frames(error)) for job in done.jobs]
        seconds = (done.seconds + time.monotonic() - began) / len(done.jobs)
        results: list[dict[str, Any] | Failure] = []
        for job, video in zip(done.jobs, videos, strict=True):
            try:
                frames = to_bytes(video)
            except ArithmeticError as error:
                results.append(Failure(job, error))
                continue
            results.append(write(job, frames, seconds, self.device))
        return results

    @property
    def device(self) -> str:
        """Where the network computes, for the manifest."""
        device = self.pipeline._execution_device
        return "cpu" if device.type == "cpu" else name_and_memory(str(device))[0]

    def _decode(self, latents: Tensor) -> Any:
        """The frames (B, F, H, W, 3); fewer of them at once where memory is short."""
        config = self.config
        while True:
            try:
                return decode(self.pipeline, latents, config)
            except Exception as error:
                if config.decode_chunk_size == 1 or not out_of_memory(error):
                    raise
            free_memory()
            config = config.model_copy(update={"decode_chunk_size": config.decode_chunk_size // 2})


def make(maker: Maker, jobs: Sequence[Job], share: Share, watcher: Watcher) -> None:
    """Make this process's share of the jobs, and tell the others of each.

    Raises OSError when the folder takes no more.
    """
    batches = cut(jobs, maker.config.batch_size)

    def on_step(steps: int) -> None:
        share.count(steps)
        watcher.refresh()

    def denoised() -> Iterator[Denoised | Failure]:
        for number in share.take(len(batches), maker.in_step):
            made = maker.attempt(batches[max(number, 0)], on_step if number >= 0 else _ignore)
            if number < 0:  # only to be in step with the others
                deque(made, maxlen=0)
            else:
                yield from made

    def finish(done: Denoised | Failure) -> None:
        for result in maker.finish(done, maker.folder.save):
            if isinstance(result, Failure):
                share.report("failed", result.entry)
                watcher.failed(result.entry)
            else:
                share.report("made", result)
                watcher.made(result)

    deque(overlapped(denoised(), finish, maker.ahead), maxlen=0)


def overlapped(items: Iterator[A], finish: Callable[[A], B], ahead: int) -> Iterator[B]:
    """`finish(item)` for each in order, in a thread that is up to `ahead` items behind.

    What `finish` raises is raised here, at the latest when its result's turn comes; what was begun
    is finished even then.
    """
    if ahead < 1:
        yield from map(finish, items)
        return
    waiting: deque[Future[B]] = deque()
    pool = ThreadPoolExecutor(1, thread_name_prefix="finish")
    try:
        for item in items:
            waiting.append(pool.submit(finish, item))
            while waiting and (len(waiting) > ahead or waiting[0].done()):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def out_of_memory(error: Exception) -> bool:
    """Whether a device, or the computer, had no memory left for a tensor."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError)
        and any(words in str(error) for words in ("allocate memory", "out of memory"))
    )


def free_memory() -> None:
    """Give back what a failed attempt held."""
    gc.collect()
    free_device_memory()


def _without_frames(error: Exception) -> Exception:
    """The error without its traceback, which would hold on to the attempt's tensors."""
    return error.with_traceback(None)


def _ignore(_steps: int) -> None:
    """Steps that nobody waits for."""
