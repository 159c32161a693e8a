"""Batches that fail, memory that is short, and writing meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import HashStore

from demo_t2v.config import InferenceConfig
from demo_t2v.generation.batches import encode
from demo_t2v.generation.prompts import make_jobs
from demo_t2v.generation.run import Maker, make, overlapped
from demo_t2v.generation.sharing import Share
from demo_t2v.outputs import OutputFolder, read_manifest
from demo_t2v.weights.memory import Plan

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
    settings = {"fps": 8, "format": "mp4", "resolution": [32, 32]}
    folder = OutputFolder(tmp_path / "out", "tiny", settings)
    folder.prepare()
    return Maker.load(JOBS, config, Plan(16, drop_text=True), folder)


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


MEMORY = """
import json, resource, sys
from pathlib import Path
import torch
from demo_t2v.config import InferenceConfig
from demo_t2v.generation.prompts import make_jobs
from demo_t2v.generation.run import Maker, make
from demo_t2v.generation.sharing import Share
from demo_t2v.outputs import OutputFolder
from demo_t2v.weights.memory import Plan
from test_run import Heard

torch.set_num_threads(1)
model, out, more = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
config = InferenceConfig(pretrained=model, device="cpu", ddim_timesteps=1, batch_size=8,
                         resolution=(256, 256), max_frames=16, decoder_bs=128)
jobs = make_jobs([(str(n), "a car") for n in range(8)], 1, 0)
folder = OutputFolder(out, "tiny", {"fps": 8, "format": "mp4", "resolution": [256, 256]})
folder.prepare()
maker = Maker.load(jobs, config, Plan(128), folder)
heard = Heard()
make(maker, jobs[:1], Share.join(), heard)  # libraries are loaded, threads are started
now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + more, now + more))
seen = []
original = type(maker).attempt
class Counting(type(maker)):
    def attempt(self, jobs, on_step):
        seen.append(len(jobs))
        return super().attempt(jobs, on_step)
maker = Counting(**{name: getattr(maker, name) for name in maker.__dataclass_fields__})
heard = Heard()
make(maker, jobs, Share.join(), heard)
print(json.dumps({"made": len(heard.entries), "failed": heard.failures, "seen": seen}))
"""


def test_a_batch_that_does_not_fit_is_halved(tiny_folder: Path, tmp_path: Path) -> None:
    """The operating system itself refuses the memory."""
    words = [tiny_folder, tmp_path / "out", 700 << 20]
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, *map(str, words)],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["failed"] == []
    assert said["made"] == 8
    assert said["seen"][0] == 8
    assert min(said["seen"]) < 8


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


def test_encoded_prompts_are_kept_once(tiny_pipeline: Any) -> None:
    config = InferenceConfig(guide_scale=3.0, batch_size=2)
    kept = encode(tiny_pipeline, ["a", "b", "a", "c"], config)
    assert list(kept) == ["a", "b", "c"]
    states, negatives = kept["b"]
    alone, _ = tiny_pipeline.encode_prompt(["b"], negative_prompt="")
    assert states.content.shape == (1, 16, 24)
    assert negatives is not None
    assert torch.allclose(states.content, alone.content, atol=1e-5)
