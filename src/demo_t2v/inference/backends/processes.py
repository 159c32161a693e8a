"""How the processes of one command divide its jobs, and how they count and report.

torchrun, accelerate and DeepSpeed start each process with RANK, WORLD_SIZE, MASTER_ADDR and
MASTER_PORT. torch's distributed store connects the processes, and no process group: each takes the
number of the next batch from a shared counter when it has finished the one before. So a slow device
takes fewer batches, and no process waits for another. Rank 0 decides what is to be made, and
reports. A single process has a store of plain counters.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any, Final, Literal, Protocol, Self

from demo_t2v.core.devices import use_process_device
from demo_t2v.core.errors import UserError
from demo_t2v.core.launch import world_size
from demo_t2v.inference.jobs import Job
from demo_t2v.inference.outputs import OutputFolder

TIMEOUT: Final = 900.0
"""Seconds without any progress after which the other processes count as lost."""
_POLL: Final = 0.2

Outcome = Literal["made", "failed"]


class ProcessError(UserError):
    """Processes that cannot work together; one line for a person."""


class LostProcessError(RuntimeError):
    """Another process ended before its work did."""


@dataclass(frozen=True)
class Counts:
    """The work of all processes: denoising steps, summed over videos, and finished videos."""

    steps: int
    made: int
    failed: int


class Store(Protocol):
    """What is needed of torch's distributed stores."""

    def add(self, key: str, amount: int) -> int:
        """Add to a counter, which begins at 0; returns its value."""

    def set(self, key: str, value: str) -> None:
        """Set a key to a text."""

    def get(self, key: str) -> bytes | str:
        """The text of a key that is set."""

    def check(self, keys: list[str]) -> bool:
        """Whether all keys are set."""

    def wait(self, keys: list[str], timeout: timedelta) -> None:
        """Wait until all keys are set."""


@dataclass(frozen=True)
class LocalStore:
    """The store of a single process: counters and texts in its own memory."""

    counters: dict[str, int] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, key: str, amount: int) -> int:
        with self.lock:  # two threads count and report
            value = self.counters[key] = self.counters.get(key, 0) + amount
        return value

    def set(self, key: str, value: str) -> None:
        self.texts[key] = value

    def get(self, key: str) -> str:
        return self.texts[key]

    def check(self, keys: list[str]) -> bool:
        return all(key in self.texts for key in keys)

    def wait(self, keys: list[str], timeout: timedelta) -> None:
        """A single process sets its keys before it gets them."""


@dataclass(frozen=True)
class Coordinator:
    """One of `world` processes, which divide the jobs of one command by a store they share."""

    store: Store
    rank: int = 0
    world: int = 1
    timeout: float = TIMEOUT
    """Seconds without a sign of the others."""

    @classmethod
    def join(cls) -> Self:
        """Meet the other processes that the launcher started.

        With several GPUs, the one of this process's number becomes torch's default.
        """
        if world_size() == 1:
            return cls(LocalStore())
        from torch.distributed import PrefixStore, rendezvous  # type: ignore[attr-defined]

        use_process_device()
        store, rank, world = next(rendezvous("env://"))
        # A launcher that restarts all processes keeps its store; the counts of before are void.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return cls(PrefixStore(f"demo-t2v/{attempt}", store), rank, world)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that decides and reports."""
        return self.rank == 0

    def find_missing(
        self, folder: OutputFolder, jobs: Sequence[Job], overwrite: bool
    ) -> Sequence[Job]:
        """The jobs that rank 0 finds missing, in a folder that is ready for them.

        Checks that all processes were given the same jobs.

        Raises what `folder.missing` and `folder.prepare` raise in rank 0 (elsewhere ProcessError),
        and ProcessError in a process that was given other jobs or does not see the folder.
        """
        requested = _digest([folder.model, folder.settings, [asdict(job) for job in jobs]])
        if self.is_main:
            try:
                missing = folder.missing(jobs, overwrite)
                if missing:
                    folder.prepare()
            except BaseException:
                self._set("work", None)
                raise
            numbers = {job: number for number, job in enumerate(jobs)}
            return self._announce(folder, missing, [numbers[job] for job in missing], requested)
        work = self._get("work")
        if work is None:
            raise ProcessError("")  # rank 0 says why
        if work["requested"] != requested:
            problem = "was given other prompts or settings than the first process"
        elif work["mark"] and not (folder.path / work["mark"]).exists():
            problem = f"does not see the folder {folder.path.absolute()}, into which the first "
            problem += "process writes: put it on a file system that all of them share"
        else:
            problem = ""
        self._set(f"ready/{self.rank}", problem)
        if problem:
            raise ProcessError(f"process {self.rank} on {socket.gethostname()} {problem}")
        if not self._get("begin"):
            raise ProcessError("")
        return [jobs[number] for number in work["missing"]]

    def _announce(
        self, folder: OutputFolder, missing: list[Job], numbers: list[int], requested: str
    ) -> Sequence[Job]:
        """Send the others what is missing, with a mark in the folder for them to find."""
        mark = f".{uuid.uuid4().hex}.mark" if missing and self.world > 1 else ""
        if mark:
            (folder.path / mark).touch()
        try:
            self._set("work", {"requested": requested, "mark": mark, "missing": numbers})
            problems = [self._get(f"ready/{rank}") for rank in range(1, self.world)]
        finally:
            if mark:
                (folder.path / mark).unlink(missing_ok=True)
        self._set("begin", not any(problems))
        if any(problems):
            raise ProcessError("")  # the process with the problem says it
        return missing

    def assign(self, count: int, lockstep: bool = False) -> Iterator[int | None]:
        """Numbers below `count` that no other process takes; each when the one before is done.

        `lockstep`: every process takes part in as many rounds as the others, for networks whose
        weights are sharded; one that has no number left in the last round gets None.
        """
        if lockstep:
            for first in range(0, count, self.world):
                yield first + self.rank if first + self.rank < count else None
            return
        while (number := self.store.add("assigned", 1) - 1) < count:
            yield number

    def add_steps(self, steps: int) -> None:
        """Count denoising steps of this process."""
        self.store.add("steps", steps)

    def counts(self) -> Counts:
        """The work of all processes until now."""
        return Counts(*(int(self.store.add(key, 0)) for key in ("steps", "made", "failed")))

    def record(self, kind: Outcome, entry: Mapping[str, Any]) -> None:
        """Report a video of this process."""
        number = self.store.add(f"{kind}/{self.rank}", 1)
        self._set(f"{kind}/{self.rank}/{number}", entry)
        self.store.add(kind, 1)

    def records(self, kind: Outcome) -> list[Mapping[str, Any]]:
        """The reports of all processes, process by process."""
        found = []
        for rank in range(self.world):
            number = 1
            while self.store.check([f"{kind}/{rank}/{number}"]):
                found.append(self._get(f"{kind}/{rank}/{number}"))
                number += 1
        return found

    def finish(self) -> None:
        """End this process's part."""
        self.store.add("finished", 1)

    def wait(self, on_poll: Callable[[], None]) -> None:
        """Wait in rank 0 until all processes have finished. Raises LostProcessError."""
        counts, since = self.counts(), time.monotonic()
        while (finished := self.store.add("finished", 0)) < self.world:
            time.sleep(_POLL)
            on_poll()
            if (now := self.counts()) != counts:
                counts, since = now, time.monotonic()
            elif time.monotonic() - since > self.timeout:
                lost = f"{self.world - finished} of {self.world} processes"
                raise LostProcessError(f"{lost} made no progress for {self.timeout:.0f} s")

    def _set(self, key: str, value: Any) -> None:
        self.store.set(key, json.dumps(value))

    def _get(self, key: str) -> Any:
        """The value of `key`; waits until it is set."""
        self.store.wait([key], timedelta(seconds=self.timeout))
        return json.loads(self.store.get(key))


def _digest(tree: Any) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
