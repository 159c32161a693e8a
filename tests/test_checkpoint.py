"""Checkpoints: complete or absent, and runs that resume from one bit-exactly."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from demo_t2v.config import ConfigError
from demo_t2v.training.distributed.base import Engine
from demo_t2v.training.trainer import train
from helpers.program import TIMEOUT
from helpers.stages import AUTOENCODER, assert_same_weights, load, metrics
from helpers.stages import run as run_stage
from helpers.tiny_task import TinyConfig, TinyTask, run
from helpers.tiny_training import checkpointed as config

COMMAND = (sys.executable, "-m", "demo_t2v", "train", "--config")
STATE = {"weights.safetensors", "optimizer.safetensors", "average.safetensors", "state.json"}


def saved(wanted: Any) -> list[str]:
    return sorted(place.name for place in (wanted.log_dir / "checkpoints").iterdir())


def start(folder: Path, name: str, *words: str, **options: Any) -> subprocess.Popen[str]:
    """Start the program on the stage that was written into `folder` as `name`.yaml."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE")}
    return subprocess.Popen(
        [*COMMAND, f"{name}.yaml", *words],
        cwd=folder,
        env=(kept if "preexec_fn" in options else os.environ) | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def assert_stopped_with(process: subprocess.Popen[str], code: int, *parts: str) -> list[str]:
    """Whether the program ends with `code` and a last line on stderr with `parts`; its stdout."""
    out, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == code, err
    last = err.splitlines()[-1]
    assert last.startswith("demo-t2v: ")
    assert [part for part in parts if part not in last] == []
    assert sum(line.startswith("demo-t2v: ") for line in err.splitlines()) == 1
    return out.splitlines()


def kill(folder: Path, name: str, lines: int, wait: float, *words: str) -> int:
    """Start the program, kill it `wait` seconds after so many log lines; the last line's step."""
    process = start(folder, name, "--json", *words)
    assert process.stdout is not None
    last = [json.loads(line)["step"] for line in islice(process.stdout, lines)][-1]
    time.sleep(wait)  # also in the middle of writing a checkpoint
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    return int(last)


def killed_and_whole(folder: Path, kills: int, longest: int, *words: str) -> Any:
    """The configuration of a run that was killed so often, each time after at most `longest` log
    lines, and then ended as the same run did that was left alone.
    """
    whole = load(folder, AUTOENCODER, "whole", *words)
    run_stage(whole)
    parts = load(folder, AUTOENCODER, "parts", *words)
    rng, steps = random.Random(0), []
    for _ in range(kills):
        lines, wait = rng.randint(1, longest), rng.random() / 20
        steps.append(kill(folder, "parts", lines, wait, *words))
        assert not (parts.log_dir / "final").exists()
        for place in (parts.log_dir / "checkpoints").glob("[0-9]*"):
            assert {file.name for file in place.iterdir()} == STATE
    run_stage(parts)
    assert metrics(parts.log_dir) == metrics(whole.log_dir), f"killed after steps {steps}"
    assert_same_weights(parts.log_dir / "final", whole.log_dir / "final")
    return parts


@pytest.mark.slow
def test_a_run_killed_at_a_random_step_resumes_bit_exactly(tmp_path: Path) -> None:
    times = ("num_steps=80", "log_interval=1", "save_ckp_interval=3")
    parts = killed_and_whole(tmp_path, 1, 50, *times)
    assert saved(parts) == ["00000075", "00000078", "00000080"]


@pytest.mark.slow
def test_a_run_killed_ten_times_resumes_bit_exactly(tmp_path: Path) -> None:
    killed_and_whole(tmp_path, 10, 20, "num_steps=300", "log_interval=1", "save_ckp_interval=2")


@pytest.mark.parametrize(
    "kind", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_stops_the_program_after_a_checkpoint(
    tmp_path: Path, kind: signal.Signals
) -> None:
    times = ("num_steps=100000", "log_interval=1", "save_ckp_interval=50000")
    stopped = load(tmp_path, AUTOENCODER, "stopped", *times)
    # Where this test runs in the background, Ctrl-C may be ignored and would stay so.
    ready = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    process = start(tmp_path, "stopped", "--json", *times, **ready)
    assert process.stdout is not None
    first = json.loads(process.stdout.readline())
    assert first["step"] == 1
    assert first["skipped"] == 0
    process.send_signal(kind)
    if kind == signal.SIGTERM:  # a launcher passes on what the whole group has had
        time.sleep(0.05)
        process.send_signal(kind)
    lines = assert_stopped_with(process, 128 + kind, f"{kind.name}: stopped after step")
    (place,) = (stopped.log_dir / "checkpoints").iterdir()
    assert {file.name for file in place.iterdir()} == STATE
    assert [json.loads(line)["step"] for line in lines] == list(range(2, int(place.name) + 1))


def test_a_full_disk_leaves_earlier_checkpoints_whole(tmp_path: Path) -> None:
    """As a full disk, a limit on the size of files lets a write begin and then fail."""
    times = ("num_steps=4", "save_ckp_interval=2")
    full = load(tmp_path, AUTOENCODER, "full", *times)
    run_stage(full.model_copy(update={"num_steps": 2}))
    place = full.log_dir / "checkpoints/00000002"
    before = {file.name: file.read_bytes() for file in place.iterdir()}
    size = (place / "optimizer.safetensors").stat().st_size - 1000
    limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))}
    process = start(tmp_path, "full", *times, **limit)
    assert_stopped_with(process, 1, "optimizer.safetensors", "File too large")
    assert saved(full) == ["00000002"]
    assert {file.name: file.read_bytes() for file in place.iterdir()} == before


def test_what_another_process_cannot_write_loses_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = config(tmp_path, keep_last=1)
    anywhere, calls = Engine.any, count(1)
    # Two agreements for each checkpoint: the last one of the second checkpoint fails elsewhere.
    monkeypatch.setattr(Engine, "any", lambda self, flag: anywhere(self, flag) or next(calls) == 4)
    with pytest.raises(OSError, match="a process could not write its data position"):
        run(wanted)
    assert saved(wanted) == ["00000002"]
    monkeypatch.undo()
    run(wanted)
    assert saved(wanted) == ["00000012"]


def test_a_line_comes_after_the_checkpoint_of_its_step(tmp_path: Path) -> None:
    """So an error of its reader does not lose the checkpoint."""
    wanted = config(tmp_path, log_interval=2)
    for line in train(TinyTask(wanted), wanted):
        assert saved(wanted)[-1] == f"{line['step']:08d}"


def test_the_last_ones_and_every_so_many_are_kept(tmp_path: Path) -> None:
    wanted = config(tmp_path, keep_last=2, keep_every=4)
    run(wanted)
    assert saved(wanted) == ["00000004", "00000008", "00000010", "00000012"]


def test_what_an_interruption_left_is_cleared_away(tmp_path: Path) -> None:
    wanted = config(tmp_path, num_steps=2)
    left = wanted.log_dir / "checkpoints/.00000008.partial"
    left.mkdir(parents=True)
    (left / "weights.safetensors").write_bytes(b"half")
    run(wanted)
    assert saved(wanted) == ["00000002"]


def test_from_a_given_checkpoint_later_ones_are_put_aside(tmp_path: Path) -> None:
    wanted = config(tmp_path, keep_last=9)
    whole = run(wanted)
    (tmp_path / "run/final").rename(tmp_path / "first")
    again = run(wanted, resume=wanted.log_dir / "checkpoints/00000008")
    assert [line["loss"] for line in again] == [line["loss"] for line in whole[8:]]
    assert saved(wanted)[3:] == [
        *("00000008", "00000010", "00000010.old", "00000012", "00000012.old")
    ]
    assert [line["step"] for line in metrics(wanted.log_dir)] == list(range(1, 13))
    ours, theirs = (load_file(tmp_path / f"{f}/model.safetensors") for f in ("run/final", "first"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_from_nothing_though_there_is_a_checkpoint(tmp_path: Path) -> None:
    wanted = config(tmp_path, num_steps=4)
    list(islice(train(TinyTask(wanted), wanted), 3))
    lines = run(wanted, resume="none")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert saved(wanted) == ["00000002", "00000002.old", "00000004"]


def test_a_path_that_is_no_checkpoint(tmp_path: Path) -> None:
    wanted = config(tmp_path)
    with pytest.raises(ConfigError, match=f"{tmp_path}: is no checkpoint"):
        run(wanted, resume=tmp_path)


def test_a_checkpoint_of_another_architecture(tmp_path: Path) -> None:
    wanted = config(tmp_path, num_steps=2)
    run(wanted)
    wider = wanted.model_copy(update={"width": 20})
    message = r"00000002: holds another architecture: 0.weight is \(16, 4\), and .* \(20, 4\)"
    with pytest.raises(ConfigError, match=message):
        run(wider)


def test_a_checkpoint_of_another_optimizer(tmp_path: Path) -> None:
    wanted = config(tmp_path, num_steps=2)
    run(wanted)
    with pytest.raises(ConfigError, match="was made with optimizer adamw, not muon"):
        run(wanted.model_copy(update={"optimizer": "muon"}))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("stop", [3, 6, 9])
def test_a_resumed_run_has_the_losses_of_an_uninterrupted_one(
    tmp_path: Path, optimizer: str, stop: int
) -> None:
    """With bad steps, averaging and accumulation; checkpoints lie between the log lines."""
    settings = {"optimizer": optimizer, "poison": (9, 23), "log_interval": 3}
    settings |= {"gradient_accumulation": 2}
    whole, parts = (config(tmp_path / name, **settings) for name in ("whole", "parts"))
    for wanted in (whole, parts):
        wanted.log_dir.parent.mkdir()
    run(whole)
    stopped = train(TinyTask(parts), parts)
    list(islice(stopped, stop // 3))
    stopped.close()
    torch.manual_seed(99)  # whatever was drawn in between
    run(parts)
    assert metrics(parts.log_dir) == metrics(whole.log_dir)
    assert sum(line["skipped"] for line in metrics(whole.log_dir)) == 2
    ours, theirs = (load_file(c.log_dir / "final/model.safetensors") for c in (parts, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


class Stream:
    """Numbers in a row; what was given out is not there any more."""

    def __init__(self) -> None:
        self.place = 0

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state["place"]


class Streaming(TinyTask):
    """Reads its samples from a stream, whatever it is asked for."""

    def __init__(self, wanted: TinyConfig) -> None:
        super().__init__(wanted)
        self.samples = Stream()
        self.seen: list[int] = []

    def batch(self, places: range) -> Any:
        first, self.samples.place = self.samples.place, self.samples.place + len(places)
        self.seen.append(first)
        return super().batch(range(first, first + len(places)))


def test_a_stream_resumes_after_the_last_trained_sample(tmp_path: Path) -> None:
    """Not behind the micro-batch that was made ahead, nor from the beginning."""
    wanted = config(tmp_path, num_steps=4, gradient_accumulation=2)
    list(train(Streaming(wanted), wanted))
    data = wanted.log_dir / "checkpoints/00000002/data-0.json"
    assert json.loads(data.read_text()) == {"place": 8}
    task = Streaming(wanted)
    list(train(task, wanted, data.parent))
    assert [place for place in task.seen if place < 16] == [8, 10, 12, 14]


def test_the_next_batch_is_made_while_a_step_is_taken(tmp_path: Path) -> None:
    made = [threading.Event() for _ in range(3)]
    waits: list[bool] = []

    class Watched(TinyTask):
        def batch(self, places: range) -> Any:
            made[places.start // 4].set()
            return super().batch(places)

        def loss(self, batch: Any) -> Any:
            waits.append(made[min(len(waits) + 1, 2)].wait(TIMEOUT))
            return super().loss(batch)

    wanted = config(tmp_path, num_steps=3)
    list(train(Watched(wanted), wanted))
    assert waits == [True] * 3


def test_another_batch_size_goes_on_with_the_next_sample(tmp_path: Path) -> None:
    wanted = config(tmp_path, num_steps=2)
    run(wanted)
    state = json.loads((wanted.log_dir / "checkpoints/00000002/state.json").read_text())
    assert state["progress"]["position"] == 8
    seen: list[range] = []

    class Watched(TinyTask):
        def batch(self, places: range) -> Any:
            seen.append(places)
            return super().batch(places)

    bigger = wanted.model_copy(update={"num_steps": 4, "batch_size": 6})
    list(train(Watched(bigger), bigger))
    assert seen == [range(8, 14), range(14, 20)]
