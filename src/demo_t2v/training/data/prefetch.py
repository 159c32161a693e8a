"""Micro-batches are made while the previous one is trained on.

A thread makes them, or takes them from `num_workers` processes.
"""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch.utils.data import DataLoader

from demo_t2v.training.distributed.base import Engine
from demo_t2v.training.task import Task


class Prefetcher:
    """This process's micro-batches from a step on; one micro-batch is prefetched.

    A context manager; leaving it waits for the micro-batch that is being made. Errors of the data
    are raised when their micro-batch is due.
    """

    def __init__(self, engine: Engine, step: int, position: int) -> None:
        self._engine = engine
        self._numbers = self._all_numbers(step, position)
        self._batches: Iterator[Any] = iter(())
        if engine.config.num_workers:
            numbers = (numbers for numbers, _ in self._all_numbers(step, position))
            self._batches = _load(engine.task, numbers, engine.config.num_workers)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="data")
        self._mid_step = False
        self.waited = 0.0
        """Seconds spent waiting for data."""
        self.data_state: dict[str, Any] = {}
        """The source's state after the last micro-batch that was returned."""
        self._next = self._submit()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._batches = iter(())  # this ends the workers

    def step(self) -> Iterator[tuple[Any, bool]]:
        """The micro-batches of the next step, and whether each is the last one. The rest of an
        aborted step is skipped.
        """
        while self._mid_step:
            self._take()
        self._mid_step = True
        while self._mid_step:
            batch = self._take()
            yield batch, not self._mid_step

    def _take(self) -> Any:
        start = time.monotonic()
        batch, last, data_state = self._next.result()
        self.waited += time.monotonic() - start
        self._next = self._submit()
        self._mid_step, self.data_state = not last, data_state
        return batch

    def _submit(self) -> Future[tuple[Any, bool, dict[str, Any]]]:
        return self._pool.submit(self._make)

    def _make(self) -> tuple[Any, bool, dict[str, Any]]:
        numbers, last = next(self._numbers, (range(0), True))  # empty after the run's end
        task = self._engine.task
        batch = None
        if numbers:
            workers = self._engine.config.num_workers
            batch = next(self._batches) if workers else task.batch(numbers)
            if isinstance(batch, ValueError):
                raise batch
        return batch, last, task.samples.state_dict() if task.samples else {}

    def _all_numbers(self, step: int, position: int) -> Iterator[tuple[range, bool]]:
        size = self._engine.config.batch_size
        for index in range(self._engine.config.num_steps - step):
            yield from self._engine.micro_batches(position + index * size)


@dataclass(frozen=True)
class _Batches:
    """A task's micro-batches by their samples' numbers, as torch's DataLoader reads them."""

    task: Task

    def __getitem__(self, numbers: range) -> Any:
        try:
            return self.task.batch(numbers)
        except ValueError as error:  # returned: the loader would add a worker's traceback
            return error


def _load(task: Task, numbers: Iterator[range], workers: int) -> Iterator[Any]:
    """The micro-batches with these samples, in this order, from worker processes."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else tokenizers warns of the fork
    loader: DataLoader[Any] = DataLoader(
        _Batches(task),  # type: ignore[arg-type]
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        collate_fn=_identity,
        worker_init_fn=_ignore_signals,
        multiprocessing_context="fork",  # the task need not be pickled
        generator=torch.Generator(),
    )
    # A worker must not finalize this process's garbage: a process group's store joins its thread,
    # which the worker does not have, and aborts.
    frozen = gc.get_freeze_count() > 0  # by a program, for all its imports
    gc.freeze()
    try:
        return iter(loader)  # this forks
    finally:
        if not frozen:
            gc.unfreeze()


def _identity(batch: Any) -> Any:
    return batch


def _ignore_signals(_: int) -> None:
    """A signal to the process group ends the training process, which then ends its workers."""
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, signal.SIG_IGN)
