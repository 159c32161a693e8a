"""Batches that fail, memory that is short, and writing meanwhile."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from demo_t2v.checkpoints.memory import Plan
from demo_t2v.checkpoints.resolve import resolve
from demo_t2v.config import InferenceConfig
from demo_t2v.inference.background import Background
from demo_t2v.inference.jobs import Failure, Job, Video, make_jobs, split_batches
from demo_t2v.inference.outputs import OutputFolder, read_manifest
from demo_t2v.inference.prompt_embeds import encode_prompts
from demo_t2v.inference.runner import CancelledError, Runner, out_of_memory
from demo_t2v.pipeline import DemoPipeline

JOBS = make_jobs([(name, f"a {name} falls") for name in "abcdefg"], repeat=1, seed=0)


class Work:
    """A runner whose videos go into a folder, and what came of its jobs."""

    def __init__(self, runner: Runner, folder: OutputFolder) -> None:
        self.runner, self.folder = runner, folder
        self.entries: list[Mapping[str, Any]] = []
        self.failures: list[Mapping[str, Any]] = []
        self.steps = 0

    def run(self, jobs: Sequence[Job] = JOBS) -> None:
        batches = split_batches(jobs, self.runner.config.batch_size)
        deque(self.runner.run(batches, self.save, self.count), maxlen=0)

    def save(self, result: Video | Failure) -> None:
        if isinstance(result, Failure):
            self.failures.append(result.entry)
        else:
            self.entries.append(self.folder.save(result.job, result.frames, result.seconds))

    def count(self, steps: int) -> None:
        self.steps += steps


@pytest.fixture
def work(tiny_folder: Path, tmp_path: Path) -> Work:
    """Without text encoders: the prompts' embeddings are there, for a test to spoil."""
    config = InferenceConfig(
        model=str(tiny_folder),
        device="cpu",
        num_inference_steps=2,
        guidance_scale=3.0,
        batch_size=4,
    )
    settings = {"fps": 8, "format": "mp4", "height": 32, "width": 32}
    folder = OutputFolder(tmp_path / "out", "tiny", settings)
    folder.prepare()
    plan = Plan(16, drop_text=True)
    return Work(Runner.load(resolve(str(tiny_folder)), config, plan, JOBS), folder)


def test_all_are_made_and_counted(work: Work) -> None:
    work.run()
    assert [entry["id"] for entry in work.entries] == list("abcdefg")
    assert work.failures == []
    assert work.steps == len(JOBS) * 2
    assert len(read_manifest(work.folder.path)) == len(JOBS)
    assert work.runner.device == "cpu"
    assert work.runner.dtype == "float32"


def test_a_prompt_that_fails_costs_no_other(work: Work) -> None:
    embeds = {p: states for p, states in work.runner.prompt_embeds.items() if "b" not in p[0]}
    states, negatives = embeds["a f falls", ""]
    embeds["a f falls", ""] = (states.map(lambda t: t * float("nan")), negatives)
    work.runner = replace(work.runner, prompt_embeds=embeds)
    work.run()
    assert sorted(entry["id"] for entry in work.entries) == list("acdeg")
    assert {failure["id"]: failure["reason"] for failure in work.failures} == {
        "b": "('a b falls', '')",  # its embeddings are missing
        "f": "the network's numbers overflowed: --dtype float32 has more range",
    }
    assert [failure["id"] for failure in work.failures] == ["b", "f"]
    assert work.steps == (len(JOBS) - 1) * 2  # the steps of failed attempts do not count
    assert set(read_manifest(work.folder.path)) == {entry["file"] for entry in work.entries}


def test_a_folder_that_takes_nothing_ends_the_run(work: Work) -> None:
    work.folder.path.rmdir()
    with pytest.raises(OSError, match="No such file"):
        work.run()


@pytest.mark.parametrize("error", [OSError("gone"), CancelledError("enough")])
def test_fatal_errors_end_the_run_at_once(work: Work, error: Exception) -> None:
    calls = []

    def fail(*_: object) -> None:
        calls.append(1)
        raise error

    work.runner.pipeline.unet.register_forward_pre_hook(fail)
    with pytest.raises(type(error), match=str(error)):
        work.run()
    assert len(calls) == 1
    assert not work.failures


def test_in_lockstep_no_batch_is_made_again(work: Work) -> None:
    work.runner.pipeline.unet.register_forward_pre_hook(hungry(4))
    work.runner = replace(work.runner, max_pending=0, lockstep=True)
    with pytest.raises(RuntimeError, match="allocate memory"):
        work.run()
    assert not work.failures


@pytest.mark.parametrize("max_pending", [0, 1])
def test_videos_are_the_same_with_and_without_overlap(
    work: Work, tmp_path: Path, max_pending: int
) -> None:
    work.run()
    first = {entry["file"]: entry["sha256"] for entry in work.entries}
    folder = replace(work.folder, path=tmp_path / "other")
    folder.prepare()
    other = Work(replace(work.runner, max_pending=max_pending), folder)
    other.run(JOBS[4:])
    other.run(JOBS[:4])
    assert {entry["file"]: entry["sha256"] for entry in other.entries} == first


def hungry(most: int) -> Callable[..., None]:
    """A hook for a network that asks for more than any computer has, beyond so many rows."""

    def ask(_network: Any, given: tuple[torch.Tensor, ...]) -> None:
        if len(given[0]) > most:
            torch.empty(1 << 56)

    return ask


def test_a_batch_that_does_not_fit_is_halved(work: Work) -> None:
    rows: list[int] = []
    pipeline = work.runner.pipeline
    pipeline.unet.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    pipeline.unet.register_forward_pre_hook(hungry(4))  # guidance doubles the rows
    pipeline.vae.decoder.register_forward_pre_hook(hungry(3))
    work.run()
    assert work.failures == []
    assert [entry["id"] for entry in work.entries] == list("abcdefg")
    assert rows == [8, 4, 4, 4, 4, 6, 4, 4, 2, 2]  # four at once, then two and two; three, ...
    assert work.steps == len(JOBS) * 2


def test_one_video_that_does_not_fit_is_a_failure(work: Work) -> None:
    work.runner.pipeline.vae.decoder.register_forward_pre_hook(hungry(0))
    work.run(JOBS[:1])
    (failure,) = work.failures
    assert "allocate memory" in failure["reason"]
    assert out_of_memory(RuntimeError(failure["reason"]))
    assert not work.entries


def numbers(begun: list[int], count: int) -> Iterator[int]:
    for number in range(count):
        begun.append(number)
        yield number


def overlapped(items: Iterable[int], call: Callable[[int], Any], limit: int) -> Iterator[Any]:
    """`call(item)` for each, in a thread that is at most `limit` items behind."""
    with Background[Any](limit) as background:
        for item in items:
            yield from background.submit(lambda item=item: [call(item)])
        yield from background.rest()


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_results_come_in_order(limit: int) -> None:
    assert list(overlapped(range(20), lambda n: n * n, limit)) == [n * n for n in range(20)]


def test_what_waits_is_bounded() -> None:
    gate, begun = threading.Event(), list[int]()

    def finish(number: int) -> int:
        assert gate.wait(60)
        return number

    results = overlapped(numbers(begun, 10), finish, 2)
    taker = threading.Thread(target=lambda: list(results))
    taker.start()
    time.sleep(0.3)
    assert begun == [0, 1, 2]  # the third has to wait, and nothing is begun behind it
    gate.set()
    taker.join()
    assert begun == list(range(10))


def test_it_is_done_in_another_thread() -> None:
    (there,) = set(overlapped(range(3), lambda _: threading.get_ident(), 1))
    (here,) = set(overlapped(range(3), lambda _: threading.get_ident(), 0))
    assert there != here == threading.get_ident()


def test_errors_are_raised_and_what_was_begun_is_finished() -> None:
    finished = []

    def finish(number: int) -> None:
        time.sleep(0.05)
        if number == 1:
            raise OSError("full")
        finished.append(number)

    with pytest.raises(OSError, match="full"):
        list(overlapped(range(100), finish, 2))
    assert finished[0] == 0
    assert len(finished) < 5


@pytest.mark.parametrize("encoded", [False, True])
def test_videos_have_the_model_s_negative_prompt(tiny_pipeline: Any, encoded: bool) -> None:
    """The page and the evaluation make videos without the command line's complete settings."""
    jobs = make_jobs([("1", "a car falls")], 1, 0)
    with_default = DemoPipeline(
        **tiny_pipeline.components,
        num_inference_steps=3,
        guidance_scale=3.0,
        negative_prompt="snow",
    )

    def made(pipeline: Any, negative_prompt: str | None) -> Any:
        runner = Runner(pipeline, InferenceConfig(negative_prompt=negative_prompt))
        if encoded:
            runner.prompt_embeds = encode_prompts(pipeline, jobs, runner.config)
        return next(runner.videos(jobs)).frames

    given, empty = made(tiny_pipeline, "snow"), made(tiny_pipeline, "")
    assert not np.array_equal(given, empty)
    assert np.array_equal(made(with_default, None), given)
    assert np.array_equal(made(with_default, ""), empty)
    assert np.array_equal(made(tiny_pipeline, None), empty)


def test_each_prompt_is_encoded_once(tiny_pipeline: Any) -> None:
    config = InferenceConfig(guidance_scale=3.0, negative_prompt="", batch_size=2)
    jobs = make_jobs([(text, text) for text in ("a", "b", "a", "c")], 1, 0)
    embeds = encode_prompts(tiny_pipeline, jobs, config)
    assert list(embeds) == [("a", ""), ("b", ""), ("c", "")]
    states, negatives = embeds["b", ""]
    alone, _ = tiny_pipeline.encode_prompt(["b"], negative_prompt="")
    assert states.content.shape == (1, 16, 24)
    assert negatives is not None
    assert torch.allclose(states.content, alone.content, atol=1e-5)
