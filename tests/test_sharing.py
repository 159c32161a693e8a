"""Several processes and one list of jobs: real stores, here between threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.distributed import HashStore, TCPStore

from demo_t2v.core.atomic_io import PathError
from demo_t2v.inference.backends.processes import LostProcessError, Share, SharingError
from demo_t2v.inference.jobs import make_jobs
from demo_t2v.inference.outputs import OutputFolder

SETTINGS = {"fps": 8, "format": "mp4", "height": 32, "width": 32}
JOBS = make_jobs([("a", "a car"), ("b", "a fish"), ("c", "a pear")], repeat=2, seed=0)
WORLD = 3


@pytest.fixture
def shares() -> list[Share]:
    """A store's server and two clients of it, as three processes would have."""
    server = TCPStore("127.0.0.1", 0, is_master=True)
    clients = [TCPStore("127.0.0.1", server.port) for _ in range(WORLD - 1)]
    return [Share(store, rank, WORLD) for rank, store in enumerate([server, *clients])]


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


def test_every_number_is_taken_once(shares: list[Share]) -> None:
    taken = together(*(lambda share=share: list(share.take(200)) for share in shares))
    assert sorted(number for numbers in taken for number in numbers) == list(range(200))


def test_one_process_takes_all() -> None:
    assert list(Share(HashStore()).take(5)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("count", "rounds"), [(0, 0), (1, 1), (3, 1), (4, 2), (7, 3)])
def test_in_step_all_go_as_many_rounds(shares: list[Share], count: int, rounds: int) -> None:
    taken = [list(share.take(count, in_step=True)) for share in shares]
    assert [len(numbers) for numbers in taken] == [rounds] * WORLD
    assert sorted(n for numbers in taken for n in numbers if n >= 0) == list(range(count))


def test_all_agree_on_what_is_missing(shares: list[Share], tmp_path: Path) -> None:
    folder = folder_in(tmp_path)
    folder.prepare()
    for job in (JOBS[1], JOBS[4]):
        folder.save(job, np.zeros((2, 32, 32, 3), dtype=np.uint8), 1.0)
    agreed = together(*(lambda s=share: s.agree(folder, JOBS, False) for share in shares))
    assert agreed == [[JOBS[0], JOBS[2], JOBS[3], JOBS[5]]] * WORLD
    assert not list((tmp_path / "out").glob("*.mark"))


def test_who_was_given_other_jobs_says_so(shares: list[Share], tmp_path: Path) -> None:
    folder, other = folder_in(tmp_path), folder_in(tmp_path, fps=9)
    first, second, third = together(
        lambda: shares[0].agree(folder, JOBS, False),
        lambda: shares[1].agree(other, JOBS, False),
        lambda: shares[2].agree(folder, JOBS[:-1], False),
    )
    assert isinstance(first, SharingError)
    assert not str(first)
    for rank, error in ((1, second), (2, third)):
        assert isinstance(error, SharingError)
        assert f"process {rank} on " in str(error)
        assert "other prompts or settings" in str(error)


def test_who_does_not_see_the_folder_says_so(shares: list[Share], tmp_path: Path) -> None:
    folder = folder_in(tmp_path)
    elsewhere = OutputFolder(tmp_path / "elsewhere", folder.model, folder.settings, "12ab")
    first, second, third = together(
        lambda: shares[0].agree(folder, JOBS, False),
        lambda: shares[1].agree(elsewhere, JOBS, False),
        lambda: shares[2].agree(folder, JOBS, False),
    )
    for error in (first, third):  # they have nothing to say, and do not begin
        assert isinstance(error, SharingError)
        assert not str(error)
    assert isinstance(second, SharingError)
    assert f"does not see the folder {tmp_path / 'elsewhere'}" in str(second)
    assert "\n" not in str(second)


def test_what_the_first_finds_wrong_ends_all(shares: list[Share], tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file in the way")
    folder = folder_in(tmp_path)
    first, *others = together(*(lambda s=share: s.agree(folder, JOBS, False) for share in shares))
    assert isinstance(first, PathError)
    for error in others:
        assert isinstance(error, SharingError)
        assert not str(error)


def test_reports_of_all_reach_the_first(shares: list[Share]) -> None:
    def work(share: Share) -> None:
        for number in share.take(50):
            share.report("failed" if number % 10 == 0 else "made", {"number": number})
            share.count(4)
        share.leave()

    news: list[int] = []
    calls = [lambda s=share: work(s) for share in shares]
    *_, waited = together(*calls, lambda: shares[0].wait(lambda: news.append(shares[0].count())))
    assert waited is None
    assert shares[0].count() == 200
    assert (shares[0].number("made"), shares[0].number("failed")) == (45, 5)
    made = {entry["number"] for entry in shares[0].reports("made")}
    failed = {entry["number"] for entry in shares[0].reports("failed")}
    assert failed == {0, 10, 20, 30, 40}
    assert made == set(range(50)) - failed


def test_a_process_that_is_gone_is_not_waited_for_without_end(shares: list[Share]) -> None:
    for share in shares[:-1]:
        share.leave()
    with pytest.raises(LostProcessError, match="nothing heard of 1 processes"):
        shares[0].wait(lambda: None, patience=0.5)
