"""Calls in one other thread, with a bound on how many wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Self, TypeVar

R = TypeVar("R")


class Background(Generic[R]):
    """Calls functions one after another in a thread, and yields their results in order.

    `limit` calls may wait; with 0 each one is done at once, in the caller's thread. What a call
    raises is raised where its result would come. Leaving the context cancels the calls that have
    not begun, and waits for the one that has.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: deque[Future[Iterable[R]]] = deque()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="background")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def submit(self, call: Callable[[], Iterable[R]]) -> Iterator[R]:
        """Add a call; yields the results of earlier calls that have returned."""
        if self._limit < 1:
            yield from call()
            return
        self._waiting.append(self._pool.submit(call))
        while self._waiting and (len(self._waiting) > self._limit or self._waiting[0].done()):
            yield from self._waiting.popleft().result()

    def rest(self) -> Iterator[R]:
        """Wait for all calls; yields what they return."""
        while self._waiting:
            yield from self._waiting.popleft().result()
