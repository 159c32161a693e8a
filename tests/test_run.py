"""Batches that fail, memory that is short, and writing meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed import HashStore

from demo_t2v.checkpoints.memory import Plan
from demo_t2v.checkpoints.resolve import resolve
from demo_t2v.config import InferenceConfig
from demo_t2v.inference.backends.processes import Share
from demo_t2v.inference.batches import encode, generate
from demo_t2v.inference.jobs import make_jobs
from demo_t2v.inference.outputs import OutputFolder, read_manifest
from demo_t2v.inference.runner import Maker, make, out_of_memory, overlapped
from demo_t2v.pipeline import DemoPipeline

JOBS = make_jobs([(name, f"a {name} falls") for name in "abcdefg"], repeat=1, seed=0)


class Heard:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.entries: list[Mapping[str, Any]] = []
        self.failures: list[Mapping[str, Any]] = []

    def refresh(self) -> None:
        pass

    def made(self, entry: Mapping[str, Any]) -> None:
        self.entries.append(entry)

    def failed(self, failure: Mapping[str, Any]) -> None:
        self.failures.append(failure)


@pytest.fixture
def maker(tiny_folder: Path, tmp_path: Path) -> Maker:
    """Without text encoders: the prompts' states are there beforehand, for a test to spoil."""
    config = InferenceConfig(
        pretrained=str(tiny_folder), device="cpu", ddim_timesteps=2, guide_scale=3.0, batch_size=4
    )
    settings = {"fps": 8, "format": "mp4", "height": 32, "width": 32}
    folder = OutputFolder(tmp_path / "out", "tiny", settings)
    folder.prepare()
    return Maker.load(resolve(str(tiny_folder)), JOBS, config, Plan(16, drop_text=True), folder)


def test_all_are_made_and_counted(maker: Maker) -> None:
    heard, share = Heard(), Share(HashStore())
    make(maker, JOBS, share, heard)
    assert [entry["id"] for entry in heard.entries] == list("abcdefg")
    assert heard.failures == []
    assert share.count() == len(JOBS) * 2
    assert len(read_manifest(maker.folder.path)) == len(JOBS)
    assert heard.entries[0]["device"] == "cpu"
    assert heard.entries[0]["settings"]["dtype"] == "float32"


def test_a_prompt_that_fails_costs_no_other(maker: Maker) -> None:
    known = {prompt: states for prompt, states in maker.encoded.items() if "b" not in prompt}
    states, negatives = known["a f falls"]
    known["a f falls"] = (states.map(lambda t: t * float("nan")), negatives)
    heard, share = Heard(), Share(HashStore())
    make(replace(maker, encoded=known), JOBS, share, heard)
    assert sorted(entry["id"] for entry in heard.entries) == list("acdeg")
    assert {failure["id"]: failure["reason"] for failure in heard.failures} == {
        "b": "'a b falls'",  # its states are not there
        "f": "the network's numbers overflowed: --dtype float32 has more range",
    }
    assert [failure["id"] for failure in share.reports("failed")] == ["b", "f"]
    assert share.count() == (len(JOBS) - 1) * 2  # steps in vain are taken back
    assert set(read_manifest(maker.folder.path)) == {entry["file"] for entry in heard.entries}


def test_a_folder_that_takes_nothing_ends_the_run(maker: Maker) -> None:
    maker.folder.path.rmdir()
    with pytest.raises(OSError, match="No such file"):
        make(maker, JOBS, Share(HashStore()), Heard())


def test_videos_are_the_same_whoever_shares_the_work(maker: Maker, tmp_path: Path) -> None:
    heard = Heard()
    make(maker, JOBS, Share(HashStore()), heard)
    alone = {entry["file"]: entry["sha256"] for entry in heard.entries}
    store = HashStore()
    shared = Heard()
    for rank in range(2):  # each in its turn takes what the other left
        other = replace(maker, folder=replace(maker.folder, path=tmp_path / "shared"))
        other.folder.prepare()
        share = Share(store, rank, 2)
        jobs = JOBS
        make(replace(other, ahead=rank), jobs, share, shared)
    assert {entry["file"]: entry["sha256"] for entry in shared.entries} == alone


def hungry(most: int) -> Callable[..., None]:
    """A hook for a network that asks for more than any computer has, beyond so many rows."""

    def ask(_network: Any, given: tuple[torch.Tensor, ...]) -> None:
        if len(given[0]) > most:
            torch.empty(1 << 56)

    return ask


def test_a_batch_that_does_not_fit_is_halved(maker: Maker) -> None:
    rows: list[int] = []
    maker.pipeline.unet.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    maker.pipeline.unet.register_forward_pre_hook(hungry(4))  # guidance doubles the rows
    maker.pipeline.vae.decoder.register_forward_pre_hook(hungry(3))
    heard, share = Heard(), Share(HashStore())
    make(maker, JOBS, share, heard)
    assert heard.failures == []
    assert [entry["id"] for entry in heard.entries] == list("abcdefg")
    assert rows == [8, 4, 4, 4, 4, 6, 4, 4, 2, 2]  # four at once, then two and two; three, ...
    assert share.count() == len(JOBS) * 2


def test_one_video_that_does_not_fit_is_a_failure(maker: Maker) -> None:
    maker.pipeline.vae.decoder.register_forward_pre_hook(hungry(0))
    heard = Heard()
    make(maker, JOBS[:1], Share(HashStore()), heard)
    (failure,) = heard.failures
    assert "allocate memory" in failure["reason"]
    assert out_of_memory(RuntimeError(failure["reason"]))
    assert not heard.entries


def numbers(begun: list[int], count: int) -> Iterator[int]:
    for number in range(count):
        begun.append(number)
        yield number


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_results_come_in_order(ahead: int) -> None:
    assert list(overlapped(iter(range(20)), lambda n: n * n, ahead)) == [n * n for n in range(20)]


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
    (there,) = set(overlapped(iter(range(3)), lambda _: threading.get_ident(), 1))
    (here,) = set(overlapped(iter(range(3)), lambda _: threading.get_ident(), 0))
    assert there != here == threading.get_ident()


def test_errors_are_raised_and_what_was_begun_is_finished() -> None:
    finished = []

    def finish(number: int) -> None:
        time.sleep(0.05)
        if number == 1:
            raise OSError("full")
        finished.append(number)

    with pytest.raises(OSError, match="full"):
        list(overlapped(iter(range(100)), finish, 2))
    assert finished[0] == 0
    assert len(finished) < 5


@pytest.mark.parametrize("encoded_before", [False, True])
def test_videos_have_the_model_s_negative_prompt(tiny_pipeline: Any, encoded_before: bool) -> None:
    """Page, evaluation and several processes make videos by this function."""
    jobs = make_jobs([("1", "a car falls")], 1, 0)
    told = DemoPipeline(
        **tiny_pipeline.components,
        num_inference_steps=3,
        guidance_scale=3.0,
        negative_prompt="snow",
    )

    def made(pipeline: Any, negative_prompt: str | None) -> Any:
        config = InferenceConfig(negative_prompt=negative_prompt)
        known = encode(pipeline, ["a car falls"], config) if encoded_before else None
        return next(generate(pipeline, jobs, config, encoded=known))[1]

    asked, empty = made(tiny_pipeline, "snow"), made(tiny_pipeline, "")
    assert not np.array_equal(asked, empty)
    assert np.array_equal(made(told, None), asked)
    assert np.array_equal(made(told, ""), empty)
    assert np.array_equal(made(tiny_pipeline, None), empty)


def test_encoded_prompts_are_kept_once(tiny_pipeline: Any) -> None:
    config = InferenceConfig(guide_scale=3.0, batch_size=2)
    kept = encode(tiny_pipeline, ["a", "b", "a", "c"], config)
    assert list(kept) == ["a", "b", "c"]
    states, negatives = kept["b"]
    alone, _ = tiny_pipeline.encode_prompt(["b"], negative_prompt="")
    assert states.content.shape == (1, 16, 24)
    assert negatives is not None
    assert torch.allclose(states.content, alone.content, atol=1e-5)
