"""Several processes that divide one list of jobs: real stores, here between threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.distributed import TCPStore

from demo_t2v.core.atomic_io import PathError
from demo_t2v.inference.backends.processes import (
    Coordinator,
    Counts,
    LocalStore,
    LostProcessError,
    ProcessError,
)
from demo_t2v.inference.jobs import make_jobs
from demo_t2v.inference.outputs import OutputFolder

SETTINGS = {"fps": 8, "format": "mp4", "height": 32, "width": 32}
JOBS = make_jobs([("a", "a car"), ("b", "a fish"), ("c", "a pear")], repeat=2, seed=0)
WORLD = 3
Group = list[Coordinator]


@pytest.fixture
def group() -> Group:
    """A store's server and two clients of it, as three processes would have."""
    server = TCPStore("127.0.0.1", 0, is_master=True)
    clients = [TCPStore("127.0.0.1", server.port) for _ in range(WORLD - 1)]
    return [Coordinator(store, rank, WORLD) for rank, store in enumerate([server, *clients])]


def together(*calls: Callable[[], Any]) -> list[Any]:
    """What the calls return, each in a thread of its own; an exception as it is."""

    def caught(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(caught, calls))


def folder_in(path: Path, **settings: object) -> OutputFolder:
    return OutputFolder(path / "out", "sprites", {**SETTINGS, **settings}, "12ab")


def test_every_number_is_taken_once(group: Group) -> None:
    taken = together(*(lambda one=one: list(one.assign(200)) for one in group))
    assert sorted(number for numbers in taken for number in numbers) == list(range(200))


def test_one_process_takes_all() -> None:
    assert list(Coordinator(LocalStore()).assign(5)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("count", "rounds"), [(0, 0), (1, 1), (3, 1), (4, 2), (7, 3)])
def test_in_step_all_go_as_many_rounds(group: Group, count: int, rounds: int) -> None:
    taken = [list(one.assign(count, lockstep=True)) for one in group]
    assert [len(numbers) for numbers in taken] == [rounds] * WORLD
    assert sorted(n for numbers in taken for n in numbers if n is not None) == list(range(count))


def test_all_agree_on_what_is_missing(group: Group, tmp_path: Path) -> None:
    folder = folder_in(tmp_path)
    folder.prepare()
    for job in (JOBS[1], JOBS[4]):
        folder.save(job, np.zeros((2, 32, 32, 3), dtype=np.uint8), 1.0)
    agreed = together(*(lambda c=one: c.find_missing(folder, JOBS, False) for one in group))
    assert agreed == [[JOBS[0], JOBS[2], JOBS[3], JOBS[5]]] * WORLD
    assert not list((tmp_path / "out").glob("*.mark"))


def test_who_was_given_other_jobs_says_so(group: Group, tmp_path: Path) -> None:
    folder, other = folder_in(tmp_path), folder_in(tmp_path, fps=9)
    first, second, third = together(
        lambda: group[0].find_missing(folder, JOBS, False),
        lambda: group[1].find_missing(other, JOBS, False),
        lambda: group[2].find_missing(folder, JOBS[:-1], False),
    )
    assert isinstance(first, ProcessError)
    assert not str(first)
    for rank, error in ((1, second), (2, third)):
        assert isinstance(error, ProcessError)
        assert f"process {rank} on " in str(error)
        assert "other prompts or settings" in str(error)


def test_who_does_not_see_the_folder_says_so(group: Group, tmp_path: Path) -> None:
    folder = folder_in(tmp_path)
    elsewhere = OutputFolder(tmp_path / "elsewhere", folder.model, folder.settings, "12ab")
    first, second, third = together(
        lambda: group[0].find_missing(folder, JOBS, False),
        lambda: group[1].find_missing(elsewhere, JOBS, False),
        lambda: group[2].find_missing(folder, JOBS, False),
    )
    for error in (first, third):  # they have nothing to say, and do not begin
        assert isinstance(error, ProcessError)
        assert not str(error)
    assert isinstance(second, ProcessError)
    assert f"does not see the folder {tmp_path / 'elsewhere'}" in str(second)
    assert "\n" not in str(second)


def test_what_the_first_finds_wrong_ends_all(group: Group, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file in the way")
    folder = folder_in(tmp_path)
    first, *others = together(*(lambda c=one: c.find_missing(folder, JOBS, False) for one in group))
    assert isinstance(first, PathError)
    for error in others:
        assert isinstance(error, ProcessError)
        assert not str(error)


def test_reports_of_all_reach_the_first(group: Group) -> None:
    def work(coordinator: Coordinator) -> None:
        for number in coordinator.assign(50):
            assert number is not None
            coordinator.record("failed" if number % 10 == 0 else "made", {"number": number})
            coordinator.add_steps(4)
        coordinator.finish()

    first = group[0]
    *_, waited = together(
        *(lambda c=one: work(c) for one in group), lambda: first.wait(lambda: None)
    )
    assert waited is None
    assert first.counts() == Counts(steps=200, made=45, failed=5)
    made = {entry["number"] for entry in first.records("made")}
    failed = {entry["number"] for entry in first.records("failed")}
    assert failed == {0, 10, 20, 30, 40}
    assert made == set(range(50)) - failed


def test_a_process_that_is_gone_is_not_waited_for_without_end(
    group: Group,
) -> None:
    for one in group[:-1]:
        one.finish()
    first = replace(group[0], timeout=0.5)
    with pytest.raises(LostProcessError, match="1 of 3 processes made no progress for 0 s"):
        first.wait(lambda: None)


def test_one_process_counts_and_reports_without_a_store(tmp_path: Path) -> None:
    coordinator, folder = Coordinator(LocalStore()), folder_in(tmp_path)
    assert coordinator.is_main
    assert coordinator.find_missing(folder, JOBS, False) == JOBS
    assert (tmp_path / "out").is_dir()
    coordinator.add_steps(6)
    coordinator.add_steps(-2)
    coordinator.record("made", {"number": 1})
    coordinator.finish()
    coordinator.wait(lambda: pytest.fail("there is no other process"))
    assert coordinator.counts() == Counts(steps=4, made=1, failed=0)
    assert coordinator.records("made") == [{"number": 1}]
    assert coordinator.records("failed") == []
