"""Generation by several real processes, some of them killed: torchrun, DeepSpeed, Ray."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import time
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.distributed import HashStore

from demo_t2v.config import InferenceConfig
from demo_t2v.core.atomic_io import digest
from demo_t2v.data.video import read_video
from demo_t2v.inference.backends.processes import Coordinator
from demo_t2v.inference.backends.ray_data import with_absolute_paths
from demo_t2v.inference.outputs import MANIFEST
from helpers import in_process
from helpers.processes import children, command_line, descendants, needs_proc, started
from helpers.program import COMMAND, ENVIRONMENT, ROOT, TIMEOUT, free_port, messages

TORCHRUN = ["torchrun", "--nproc-per-node", "2", "--standalone", "-m", "demo_t2v"]
# Ray would have its workers wait behind everything else on the machine.
RAY = {"RAY_worker_niceness": "0"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A folder with a model and six prompts, of which two videos each are asked for."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "model").symlink_to(tiny_folder)
    lines = [json.dumps({"id": f"p{number}", "prompt": f"a car {number}"}) for number in range(6)]
    (folder / "six.jsonl").write_text("\n".join(lines))
    return folder


def asked(out: str, *more: str) -> list[str]:
    words = ["generate", "--prompts", "six.jsonl", "--repeat", "2", "--model", "model"]
    return [*words, "--batch-size", "2", "--steps", "2", "--device", "cpu", "--out", out, *more]


def launch(place: Path, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in words],
        cwd=place,
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


def manifest(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / MANIFEST).read_text().splitlines()]


def assert_whole(folder: Path, count: int) -> None:
    """Each video once, each as the manifest says, and nothing else."""
    entries = manifest(folder)
    assert Counter(entry["file"] for entry in entries) == dict.fromkeys(
        [entry["file"] for entry in entries], 1
    )
    assert len(entries) == count
    assert {path.name for path in folder.iterdir()} == {
        *(entry["file"] for entry in entries),
        MANIFEST,
    }
    for entry in entries:
        assert digest(folder / entry["file"]) == entry["sha256"]


def hashes(folder: Path) -> dict[str, str]:
    return {entry["file"]: entry["sha256"] for entry in manifest(folder)}


@pytest.fixture(scope="module")
def alone(place: Path) -> dict[str, str]:
    """What one process makes: the hash of each file."""
    done = in_process.run(place, *asked("alone"))
    assert done.returncode == 0, done.stderr
    assert_whole(place / "alone", 12)
    return hashes(place / "alone")


def test_two_processes_make_what_one_makes(place: Path, alone: dict[str, str]) -> None:
    done = launch(place, *TORCHRUN, *asked("two", "--json"))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)  # of the first process alone
    assert (report["skipped"], report["failed"]) == (0, 0)
    assert [video["id"] for video in report["videos"]] == [f"p{n // 2}" for n in range(12)]
    assert [video["repeat"] for video in report["videos"]] == [0, 1] * 6
    assert_whole(place / "two", 12)
    assert hashes(place / "two") == alone
    again = launch(place, *TORCHRUN, *asked("two", "--json"))
    assert json.loads(again.stdout) == report | {"videos": [], "skipped": 12}


def test_other_batches_differ_by_a_grey_level_at_most(place: Path, alone: dict[str, str]) -> None:
    for out, more in (("others", "batch_size=5"), ("pngs", "batch_size=2")):
        done = in_process.run(place, *asked(out, "--format", "png", more))
        assert done.returncode == 0, done.stderr
    assert len(alone) == len(manifest(place / "others")) == 12
    for entry in manifest(place / "others"):
        one, other = (read_frames(place / out / entry["file"]) for out in ("others", "pngs"))
        assert np.abs(one - other).max() <= 1
        assert one.shape == read_video(place / "alone" / f"{entry['file']}.mp4")[0].shape


def read_frames(folder: Path) -> np.ndarray[Any, np.dtype[np.int64]]:
    from PIL import Image

    return np.stack([np.asarray(Image.open(file)).astype(int) for file in sorted(folder.iterdir())])


def kill_one(place: Path, out: str, rng: random.Random) -> bool:
    """Start two processes, and kill one of them at a random moment; whether it was in time."""
    before = len(manifest(place / out)) if (place / out / MANIFEST).exists() else 0
    with subprocess.Popen(
        [*TORCHRUN, *asked(out)],
        cwd=place,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as launcher:
        deadline, workers = time.monotonic() + TIMEOUT, list[int]()
        wanted = before + rng.randrange(2)
        while time.monotonic() < deadline and launcher.poll() is None:
            workers = children(launcher.pid)
            made = len(manifest(place / out)) if (place / out / MANIFEST).exists() else 0
            if len(workers) == 2 and made >= wanted:
                break
            time.sleep(0.02)
        time.sleep(rng.random() * 0.3)
        if launcher.poll() is None and len(workers) == 2:
            with suppress(ProcessLookupError):  # it may have ended by itself
                os.kill(rng.choice(workers), signal.SIGKILL)
        return launcher.wait(TIMEOUT) != 0


@pytest.mark.slow
@needs_proc
def test_processes_that_are_killed_ten_times_lose_nothing(
    place: Path, alone: dict[str, str]
) -> None:
    rng, out = random.Random(10), "killed"
    killed = sum(kill_one(place, out, rng) for _ in range(10))
    assert killed >= 1
    done = launch(place, *TORCHRUN, *asked(out))
    assert done.returncode == 0, done.stderr
    assert_whole(place / out, 12)
    assert hashes(place / out) == alone


def test_a_folder_that_one_process_does_not_see(place: Path) -> None:
    """The second process stands elsewhere, as on a machine without the shared disk."""
    other = place / "other"
    other.mkdir()
    for name in ("model", "six.jsonl"):
        (other / name).symlink_to(place / name)
    where = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    with ExitStack() as stack:
        both = [
            stack.enter_context(
                started(
                    [*COMMAND, *asked("apart")],
                    cwd=folder,
                    env=ENVIRONMENT | where | {"RANK": str(rank)},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                )
            )
            for rank, folder in enumerate((place, other))
        ]
        said = [process.communicate(timeout=TIMEOUT) for process in both]
    assert [process.returncode for process in both] == [2, 2]
    assert [stdout for stdout, _ in said] == ["", ""]
    assert messages(said[0][1]) == []
    (line,) = messages(said[1][1])
    assert f"does not see the folder {other / 'apart'}" in line
    assert not list((place / "apart").iterdir())


def test_several_processes_write_no_bucket(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = in_process.run(place, *asked(f"file://{place}/bucket"))
    assert done.returncode == 2
    assert messages(done.stderr) == [
        f"demo-t2v: out: file://{place}/bucket: several processes need a folder; or use engine=ray"
    ]


def test_a_process_that_ends_early_is_missed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one takes a batch and leaves without a word, as after an error."""
    store = HashStore()
    other = Coordinator(store, 1, 2)
    store.set("ready/1", '""')
    assert next(other.assign(6)) == 0
    other.finish()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(Coordinator, "join", lambda: Coordinator(store, 0, 2))
    done = in_process.run(place, *asked("early"))
    assert done.returncode == 1
    assert len(manifest(place / "early")) == len(done.stdout.splitlines()) == 10
    said = "demo-t2v: 2 of 12 videos were not made: another process ended early"
    assert messages(done.stderr)[-1] == said


@pytest.mark.slow
def test_two_nodes(place: Path, alone: dict[str, str]) -> None:
    """Two of torchrun's agents, as on two machines, meet at a rendezvous."""
    meeting = f"127.0.0.1:{free_port()}"
    words = ["torchrun", "--nnodes", "2", "--nproc-per-node", "1"]
    words += ["--rdzv-backend", "c10d", "--rdzv-endpoint", meeting, "-m", "demo_t2v"]
    with ExitStack() as stack:
        nodes = [
            stack.enter_context(
                started(
                    [*words, *asked("nodes")],
                    cwd=place,
                    env=ENVIRONMENT,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                )
            )
            for _ in range(2)
        ]
        said = [node.communicate(timeout=TIMEOUT)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert_whole(place / "nodes", 12)
    assert hashes(place / "nodes") == alone


@pytest.mark.slow
def test_accelerate_launch(place: Path, alone: dict[str, str]) -> None:
    words = ["accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    words += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    done = launch(place, *words, "-m", "demo_t2v", *asked("accelerated"), ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr
    assert hashes(place / "accelerated") == alone


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["inference", "inference_zero3_offload"])
def test_deepspeed(place: Path, stage: str) -> None:
    words = ["bash", ROOT / "scripts" / "inference_deepspeed.sh", "--num_accelerators", "2"]
    words += ["--master_port", free_port(), "--"]
    file = ROOT / "configs" / "deepspeed" / f"{stage}.json"
    more = [f"deepspeed_config={file}", "--format", "png"]
    done = launch(place, *words, *asked(stage, *more)[1:])  # it says `generate` itself
    assert done.returncode == 0, done.stderr
    made = in_process.run(place, *asked(f"plain-{stage}", "--format", "png"))
    assert made.returncode == 0, made.stderr
    assert len(manifest(place / stage)) == 12
    for entry in manifest(place / stage):
        one, other = (read_frames(place / out / entry["file"]) for out in (stage, f"plain-{stage}"))
        assert np.abs(one - other).max() <= 1


def test_an_actor_finds_what_was_named_from_here(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    config = with_absolute_paths(InferenceConfig(pretrained="model", lora="six.jsonl"))
    model = str((place / "model").resolve())
    assert (config.model, config.lora) == (model, f"{place}/six.jsonl")
    on_the_hub = InferenceConfig(pretrained="org/name", lora="org/other")
    assert with_absolute_paths(on_the_hub) == on_the_hub


@pytest.mark.slow
def test_ray(place: Path, alone: dict[str, str]) -> None:
    done = launch(place, *COMMAND, *asked("ray", "--engine", "ray", "--json"), **RAY)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["videos"]) == 12
    assert_whole(place / "ray", 12)
    assert hashes(place / "ray") == alone


@pytest.mark.slow
@needs_proc
def test_ray_replaces_a_process_that_dies(place: Path, alone: dict[str, str]) -> None:
    url = f"file://{place}/replaced"
    with started(
        [*COMMAND, *asked(url, "--engine", "ray", "batch_size=1", "workers=2")],
        cwd=place,
        env=ENVIRONMENT | RAY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        while process.poll() is None and not (place / "replaced" / MANIFEST).exists():
            time.sleep(0.05)
        actors = [
            pid
            for pid in descendants(process.pid)
            if re.match(r"ray::.*MapBatches\(Worker\)", command_line(pid))
        ]
        assert actors
        os.kill(actors[0], signal.SIGKILL)
        _, stderr = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, stderr
    assert_whole(place / "replaced", 12)
    assert set(hashes(place / "replaced")) == set(alone)
