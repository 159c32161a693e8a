"""The next micro-batch is made while the one before is learned from.

A thread makes it, or takes it from one of `num_workers` processes, which make several at a time.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch.utils.data import DataLoader

from demo_t2v.training.distributed.base import Engine, Task


class Ahead:
    """This process's micro-batches from one step on, each made one ahead of its use.

    A context manager, whose end waits for what is being made. What is wrong with the data is
    raised when the micro-batch is asked for.
    """

    def __init__(self, engine: Engine, step: int, position: int) -> None:
        self._engine = engine
        self._places = self._all_places(step, position)
        self._made: Iterator[Any] = iter(())
        if engine.config.num_workers:
            numbers = (places for places, _ in self._all_places(step, position))
            self._made = _made_by_workers(engine.task, numbers, engine.config.num_workers)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="data")
        self._inside = False
        self.waited = 0.0
        """Seconds in which there was nothing to learn from."""
        self.state: dict[str, Any] = {}
        """Where the data is, behind the last micro-batch that was given out."""
        self._next = self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._made = iter(())  # which ends the workers

    def step(self) -> Iterator[tuple[Any, bool]]:
        """The micro-batches of the next step, and whether each is the last one; what is left of
        the step before, which was given up, is passed over.
        """
        while self._inside:
            self._take()
        self._inside = True
        while self._inside:
            samples = self._take()
            yield samples, not self._inside

    def _take(self) -> Any:
        began = time.monotonic()
        samples, last, state = self._next.result()
        self.waited += time.monotonic() - began
        self._next = self._start()
        self._inside, self.state = not last, state
        return samples

    def _start(self) -> Future[tuple[Any, bool, dict[str, Any]]]:
        return self._pool.submit(self._make)

    def _make(self) -> tuple[Any, bool, dict[str, Any]]:
        places, last = next(self._places, (range(0), True))  # behind the run's end is nothing
        task = self._engine.task
        samples = None
        if places:
            workers = self._engine.config.num_workers
            samples = next(self._made) if workers else task.batch(places)
            if isinstance(samples, ValueError):
                raise samples
        return samples, last, task.items.state_dict() if task.items else {}

    def _all_places(self, step: int, position: int) -> Iterator[tuple[range, bool]]:
        size = self._engine.config.batch_size
        for number in range(self._engine.config.num_steps - step):
            yield from self._engine.micro_batches(position + number * size)


@dataclass(frozen=True)
class _Batches:
    """A task's micro-batches by their samples' numbers, as torch's DataLoader takes them."""

    task: Task

    def __getitem__(self, places: range) -> Any:
        try:
            return self.task.batch(places)
        except ValueError as error:  # of the data; raised, it would come with a worker's traceback
            return error


def _made_by_workers(task: Task, numbers: Iterator[range], workers: int) -> Iterator[Any]:
    """The micro-batches with these samples, in this order."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else they warn of the fork
    loader: DataLoader[Any] = DataLoader(
        _Batches(task),  # type: ignore[arg-type]
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=_leave_signals_alone,
        multiprocessing_context="fork",  # the task is there at once, and need not be pickled
        generator=torch.Generator(),
    )
    return iter(loader)


def _as_it_is(batch: Any) -> Any:
    return batch


def _leave_signals_alone(_: int) -> None:
    """A signal to all processes of a run ends the training, which then ends its workers."""
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, signal.SIG_IGN)
