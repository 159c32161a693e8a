"""How several processes share one list of jobs: through the store that their launcher gives them.

torchrun, accelerate and DeepSpeed start each process with RANK, WORLD_SIZE, MASTER_ADDR and
MASTER_PORT. Nothing but torch's distributed store connects the processes here, no process group:
each takes the number of the next batch from a shared counter when it has done the one before. So a
slow device takes fewer, and none waits for another. Rank 0 decides what is to be made, and watches.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Literal

from demo_t2v.core.devices import use_own
from demo_t2v.core.errors import UserError
from demo_t2v.core.launch import world_size
from demo_t2v.inference.outputs import Job, OutputFolder

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

PATIENCE: Final = 900.0
"""Seconds without any news of the other processes after which they are given up."""
_POLL: Final = 0.2

Result = Literal["made", "failed"]


class SharingError(UserError):
    """Processes that cannot work together; one line for a person."""


class LostProcessError(RuntimeError):
    """Another process ended before its work did."""


@dataclass(frozen=True)
class Share:
    """This process's place among `world` ones, and the store that all of them see."""

    store: Store
    rank: int = 0
    world: int = 1

    @classmethod
    def join(cls) -> Share:
        """Meet the other processes that the launcher started; alone where there is none.

        With several GPUs, the one of this process's number becomes torch's own.
        """
        from torch.distributed import (  # type: ignore[attr-defined]
            HashStore,
            PrefixStore,
            rendezvous,
        )

        use_own()
        if world_size() == 1:
            return cls(HashStore())
        store, rank, world = next(rendezvous("env://"))
        # A launcher that starts all of them again keeps its store: what was counted is void.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return cls(PrefixStore(f"demo-t2v/{attempt}", store), rank, world)

    @property
    def main(self) -> bool:
        """Whether this is the process that decides and reports."""
        return self.rank == 0

    def agree(self, folder: OutputFolder, jobs: Sequence[Job], overwrite: bool) -> list[Job]:
        """What rank 0 finds missing of the jobs; checks that all were asked for the same.

        Raises what `folder.missing` and `folder.prepare` raise in rank 0 (elsewhere SharingError),
        and SharingError in a process that was given other jobs or does not see the folder.
        """
        asked = _digest([folder.model, folder.settings, [asdict(job) for job in jobs]])
        if self.main:
            try:
                missing = folder.missing(jobs, overwrite)
                if missing:
                    folder.prepare()
            except BaseException:
                self._tell("work", None)
                raise
            numbers = {job: number for number, job in enumerate(jobs)}
            return self._show(folder, missing, [numbers[job] for job in missing], asked)
        work = self._hear("work")
        if work is None:
            raise SharingError("")  # rank 0 says why
        if work["asked"] != asked:
            problem = "was given other prompts or settings than the first process"
        elif work["mark"] and not (folder.path / work["mark"]).exists():
            problem = f"does not see the folder {folder.path.absolute()}, into which the first "
            problem += "process writes: put it on a file system that all of them share"
        else:
            problem = ""
        self._tell(f"ready/{self.rank}", problem)
        if problem:
            raise SharingError(f"process {self.rank} on {socket.gethostname()} {problem}")
        if not self._hear("begin"):
            raise SharingError("")
        return [jobs[number] for number in work["missing"]]

    def _show(
        self, folder: OutputFolder, missing: list[Job], numbers: list[int], asked: str
    ) -> list[Job]:
        """Tell the others what is missing, with a mark in the folder for them to find."""
        mark = f".{uuid.uuid4().hex}.mark" if missing and self.world > 1 else ""
        if mark:
            (folder.path / mark).touch()
        try:
            self._tell("work", {"asked": asked, "mark": mark, "missing": numbers})
            problems = [self._hear(f"ready/{rank}") for rank in range(1, self.world)]
        finally:
            if mark:
                (folder.path / mark).unlink(missing_ok=True)
        self._tell("begin", not any(problems))
        if any(problems):
            raise SharingError("")  # who has the problem says it
        return missing

    def take(self, count: int, in_step: bool = False) -> Iterator[int]:
        """Numbers below `count` that no other process takes; each when the one before is done.

        `in_step`: every process makes as many rounds as the others, for networks whose weights
        are spread over all of them; one that has no number left in the last round gets -1.
        """
        if in_step:
            for first in range(0, count, self.world):
                yield first + self.rank if first + self.rank < count else -1
            return
        while (number := self.store.add("taken", 1) - 1) < count:
            yield number

    def count(self, steps: int = 0) -> int:
        """Add to the videos' denoising steps that all processes took; how many they are then."""
        return int(self.store.add("steps", steps))

    def report(self, kind: Result, entry: Mapping[str, Any]) -> None:
        """Tell rank 0 of a video that is made or has failed."""
        number = self.store.add(f"{kind}/{self.rank}", 1)
        self._tell(f"{kind}/{self.rank}/{number}", entry)
        self.store.add(kind, 1)

    def number(self, kind: Result) -> int:
        """How many videos all processes have made, or failed in."""
        return int(self.store.add(kind, 0))

    def reports(self, kind: Result) -> list[dict[str, Any]]:
        """All that was reported, process by process."""
        found = []
        for rank in range(self.world):
            number = 1
            while self.store.check([f"{kind}/{rank}/{number}"]):
                found.append(self._hear(f"{kind}/{rank}/{number}"))
                number += 1
        return found

    def leave(self) -> None:
        """Say that this process is done."""
        self.store.add("left", 1)

    def wait(self, on_news: Callable[[], None], patience: float = PATIENCE) -> None:
        """Wait in rank 0 until all have left. Raises LostProcessError."""
        known, since = self._news(), time.monotonic()
        while (left := self.store.add("left", 0)) < self.world:
            time.sleep(_POLL)
            on_news()
            if (news := self._news()) != known:
                known, since = news, time.monotonic()
            elif time.monotonic() - since > patience:
                gone = self.world - left
                raise LostProcessError(f"nothing heard of {gone} processes for {patience:.0f} s")

    def _news(self) -> list[int]:
        return [self.count(), self.number("made"), self.number("failed")]

    def _tell(self, key: str, value: Any) -> None:
        self.store.set(key, json.dumps(value))

    def _hear(self, key: str) -> Any:
        """What was told under `key`; waits for it."""
        self.store.wait([key], timedelta(seconds=PATIENCE))
        return json.loads(self.store.get(key))


def _digest(tree: Any) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
