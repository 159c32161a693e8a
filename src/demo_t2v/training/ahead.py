"""The next micro-batch is made while the one before is learned from."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

from demo_t2v.training.engine import Engine


class Ahead:
    """This process's micro-batches from one step on, each made one ahead of its use.

    A context manager, whose end waits for what is being made. What is wrong with the data is
    raised when the micro-batch is asked for.
    """

    def __init__(self, engine: Engine, step: int, position: int) -> None:
        self._engine = engine
        self._places = self._all_places(step, position)
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
        samples = task.batch(places) if places else None
        return samples, last, task.items.state_dict() if task.items else {}

    def _all_places(self, step: int, position: int) -> Iterator[tuple[range, bool]]:
        size = self._engine.config.batch_size
        for number in range(self._engine.config.num_steps - step):
            yield from self._engine.micro_batches(position + number * size)
