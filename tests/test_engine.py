"""The engines: one process, several, DeepSpeed; schedules, precision, accumulation."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from demo_t2v.config import ConfigError
from demo_t2v.training.optimizers import rate_factor
from demo_t2v.training.trainer import train
from helpers.processes import accept_interrupts, started
from helpers.program import ROOT, TIMEOUT, free_port
from helpers.stages import AUTOENCODER, load
from helpers.stages import run as run_stage
from helpers.tiny_task import TinyConfig, TinyTask, run
from helpers.tiny_training import WORKER, config, curve, launch, zero

TWO = {"gradient_accumulation": 2, "lr_schedule": "constant", "poison": (23,)}


def launch_twice(*wanted: TinyConfig) -> list[list[dict[str, float]]]:
    """The same with five steps of each, and the rest in two new processes."""
    begun = launch(*(each.model_copy(update={"num_steps": 5}) for each in wanted))
    return [first + rest for first, rest in zip(begun, launch(*wanted), strict=True)]


def assert_two_are_as_one(tmp_path: Path, two: TinyConfig, lines: list[dict[str, float]]) -> None:
    """Two processes took the steps that one takes, skipped what one skips, and went on as one.

    Sample 23 is the second process's, in the third step's second micro-batch.
    """
    alone = {"log_dir": tmp_path / "one", "fsdp": False, "deepspeed_config": None}
    one = two.model_copy(update=alone)
    expected = curve(run(one))
    assert [line["step"] for line in lines] == list(expected)
    assert [line["skipped"] for line in lines] == [0, 0, 1, 0, 0, 0, 0, 0]
    for step, figures in curve(lines).items():
        assert figures == pytest.approx(expected[step], rel=1e-3), step
    ours, theirs = (load_file(c.log_dir / "final/model.safetensors") for c in (two, one))
    for name, tensor in theirs.items():
        assert torch.allclose(ours[name], tensor, rtol=1e-3, atol=1e-5), name


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Any]]:
    """What was trained with each engine, and its lines."""
    folder = tmp_path_factory.mktemp("engines")
    kinds = {"ddp": {}, "fsdp": {"fsdp": True}}
    wanted = [config(folder / name, **TWO, **engine) for name, engine in kinds.items()]
    return dict(zip(kinds, zip(wanted, launch_twice(*wanted), strict=True), strict=True))


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_two_processes_train_as_one_does(
    tmp_path: Path, engines: dict[str, tuple[Any, Any]], engine: str
) -> None:
    assert_two_are_as_one(tmp_path, *engines[engine])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train_zero1", "train_zero2_offload", "train_zero3"])
def test_the_shipped_deepspeed_settings(tmp_path: Path, name: str) -> None:
    average = {"ema_decay": None} if name == "train_zero3" else {}
    file = ROOT / f"configs/deepspeed/{name}.json"
    wanted = config(tmp_path, **TWO, **average, deepspeed_config=file)
    (lines,) = launch_twice(wanted)
    assert_two_are_as_one(tmp_path, wanted, lines)


@pytest.mark.parametrize(
    "kind", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_to_one_process_stops_both_after_a_checkpoint(
    tmp_path: Path, kind: signal.Signals
) -> None:
    wanted = config(tmp_path, num_steps=10_000, pause=0.05)
    file = tmp_path / "run.json"
    file.write_text(wanted.model_dump_json())
    port = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    with ExitStack() as stack:
        workers = [
            stack.enter_context(
                started(
                    [sys.executable, WORKER, file],
                    env=os.environ
                    | port
                    | {"RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"},
                    preexec_fn=accept_interrupts,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                )
            )
            for rank in ("0", "1")
        ]
        assert json.loads(workers[0].stdout.readline())["step"] == 1
        workers[1].send_signal(kind)
        said = [worker.communicate(timeout=TIMEOUT)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [128 + kind] * 2, said
    (saved,) = (wanted.log_dir / "checkpoints").iterdir()
    assert f"{kind.name}: stopped after step {int(saved.name)}" in said[0]
    assert kind.name not in said[1]
    lines = run(wanted.model_copy(update={"num_steps": int(saved.name) + 2, "pause": 0.0}))
    assert [line["step"] for line in lines] == [int(saved.name) + 1, int(saved.name) + 2]


def test_accumulation_changes_nothing_but_memory(tmp_path: Path) -> None:
    whole = curve(run(config(tmp_path)))
    parts = run(config(tmp_path / "parts", gradient_accumulation=4))
    assert all(line["size"] == 2 for line in parts)
    for step, figures in curve(parts).items():
        assert figures == pytest.approx(whole[step], rel=1e-5)


def test_a_batch_that_cannot_be_shared_out(tmp_path: Path) -> None:
    for settings in ({"gradient_accumulation": 3}, {"gradient_accumulation": 16}):
        with pytest.raises(ConfigError, match="batch_size: 8 clips cannot be divided evenly"):
            run(config(tmp_path, **settings))


def test_steps_that_are_not_finite_are_skipped(tmp_path: Path) -> None:
    clean = config(tmp_path / "clean", num_steps=2, lr_schedule="constant")
    run(clean)
    bad = config(tmp_path, poison=(17, 30), num_steps=4, log_interval=2, lr_schedule="constant")
    lines = run(bad)
    assert [line["skipped"] for line in lines] == [0, 2]
    assert "loss" in lines[0]
    assert "loss" not in lines[1]
    assert json.loads((bad.log_dir / "metrics.jsonl").read_text().splitlines()[1])["skipped"] == 2
    ours, theirs = (load_file(c.log_dir / "final/model.safetensors") for c in (bad, clean))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_too_many_bad_steps_in_a_row_stop_the_run(tmp_path: Path) -> None:
    bad = config(tmp_path, poison=(8, 16, 32, 40, 48), max_bad_steps=3, num_steps=20)
    with pytest.raises(Exception, match=r"not finite in steps 5 to 7 \(max_bad_steps\)") as stopped:
        run(bad)
    assert stopped.value.code == 1


def test_a_gradient_that_is_not_finite_changes_no_weight(tmp_path: Path) -> None:
    class Steep(TinyTask):
        def loss(self, batch: Any) -> Any:
            error, figures = super().loss(batch)
            bias = self.model[2].bias
            return error + (bias - bias.detach()).abs().sqrt().sum(), figures  # infinite slope

    wanted = config(tmp_path, max_bad_steps=2)
    task = Steep(wanted)
    before = {name: p.detach().clone() for name, p in task.model.named_parameters()}
    with pytest.raises(Exception, match="not finite"):
        list(train(task, wanted))
    assert all(torch.equal(before[name], p) for name, p in task.model.named_parameters())


def test_one_cycle_with_a_floor_rises_falls_and_stays() -> None:
    wanted = config(
        Path(), num_steps=50_000, warmup_steps=2000, lr_schedule="one_cycle", lr_floor=0.2
    )
    expected = {0: 0.2, 500: 0.4, 2000: 1.0, 3000: 0.6, 4000: 0.2, 49_999: 0.2}
    assert {step: rate_factor(wanted, step) for step in expected} == pytest.approx(expected)


def test_one_cycle_is_torchs() -> None:
    wanted = config(Path(), num_steps=20, warmup_steps=6, lr_schedule="one_cycle")
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=20, pct_start=0.3)
    for step in range(20):
        assert rate_factor(wanted, step) == pytest.approx(theirs.get_last_lr()[0]), step
        optimizer.step()
        if step < 19:
            theirs.step()


@pytest.mark.parametrize(
    ("schedule", "decay", "factors"),
    [
        ("cosine", 0, [0, 0.5, 1, 0.5, 0]),
        ("constant", 0, [0, 0.5, 1, 1, 1]),
        ("constant", 5, [0, 0.5, 1, 0.8, 0]),
    ],
)
def test_schedules(schedule: Any, decay: int, factors: list[float]) -> None:
    keys = {"lr_schedule": schedule, "decay_steps": decay}
    wanted = config(Path(), num_steps=10, warmup_steps=2, **keys)
    steps = (0, 1, 2, 6, 10)
    assert [rate_factor(wanted, step) for step in steps] == pytest.approx(factors)


def test_without_an_average_the_weights_are_exported_as_they_are(tmp_path: Path) -> None:
    wanted = config(tmp_path, ema_decay=None, num_steps=3)
    task = TinyTask(wanted)
    list(train(task, wanted))
    (last,) = (wanted.log_dir / "checkpoints").iterdir()
    assert {file.name for file in last.iterdir()} == {
        *("weights.safetensors", "optimizer.safetensors", "state.json")
    }
    final = load_file(wanted.log_dir / "final/model.safetensors")
    for name, tensor in load_file(last / "weights.safetensors").items():
        assert torch.equal(final[name], tensor)


def test_bf16_computes_in_bf16_and_keeps_float32_weights(tmp_path: Path) -> None:
    full = curve(run(config(tmp_path / "full")))
    wanted = config(tmp_path, mixed_precision="bf16")
    mixed = curve(run(wanted))
    differences = [abs(mixed[step][0] / full[step][0] - 1) for step in full]
    assert 1e-6 < max(differences) < 0.05
    last = wanted.log_dir / "checkpoints/00000008"
    for name in ("weights", "optimizer", "average"):
        tensors = load_file(last / f"{name}.safetensors").values()
        assert {tensor.dtype for tensor in tensors} == {torch.float32}


@pytest.mark.skipif(torch.cuda.is_available(), reason="fp16 is for GPUs")
def test_fp16_needs_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mixed_precision: fp16 needs a GPU"):
        run(config(tmp_path, mixed_precision="fp16"))


def test_activations_computed_anew_give_the_same_steps(tmp_path: Path) -> None:
    times = ("num_steps=2", "log_interval=1")
    plain = run_stage(load(tmp_path, AUTOENCODER, "plain", *times))
    anew = run_stage(load(tmp_path, AUTOENCODER, "anew", *times, "gradient_checkpointing=true"))
    assert curve(anew) == curve(plain)


def test_a_network_that_cannot_compute_activations_anew(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="gradient_checkpointing: this network does not support it"
    ):
        run(config(tmp_path, gradient_checkpointing=True))


@pytest.mark.parametrize(
    ("package", "command"),
    [("accelerate", r"demo-t2v\[train\]"), ("deepspeed", r"demo-t2v\[train,deepspeed\]")],
)
def test_a_missing_package_is_named_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, command: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    file = zero(tmp_path) if package == "deepspeed" else None
    with pytest.raises(ConfigError, match=f"pip install '{command}'"):
        run(config(tmp_path, deepspeed_config=file))


def test_what_does_not_go_with_deepspeed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="optimizer: muon needs full matrices"):
        run(config(tmp_path, optimizer="muon", deepspeed_config=zero(tmp_path)))
    with pytest.raises(ConfigError, match="fsdp and deepspeed_config"):
        run(config(tmp_path, fsdp=True, deepspeed_config=zero(tmp_path)))
    file = ROOT / "configs/deepspeed/train_zero3.json"
    with pytest.raises(ConfigError, match="ema_decay: does not work with ZeRO stage 3"):
        run(config(tmp_path, deepspeed_config=file))
