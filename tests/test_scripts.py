"""The launchers' scripts: the arguments for DeepSpeed, and a run."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from demo_t2v.config import load
from demo_t2v.training.config import AnyTraining, fit_device
from helpers.program import ENVIRONMENT, ROOT, TIMEOUT

OWN = "--no_local_rank --module demo_t2v"
CASES = [
    ("inference", "", f"{OWN} generate --config configs/inference.yaml"),
    ("train", "", f"{OWN} train --config configs/train.yaml"),
    ("inference", "--", f"{OWN} generate --config configs/inference.yaml"),
    (
        "inference",
        "--include=localhost:0",
        f"--include=localhost:0 {OWN} generate --config configs/inference.yaml",
    ),
    (
        "train",
        "--num_gpus 2 --hostfile=h -- --config a.yaml seed=1",
        f"--num_gpus 2 --hostfile=h {OWN} train --config a.yaml seed=1",
    ),
]


def run(script: str, folder: Path, words: list[str], path: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(ROOT / f"scripts/{script}_deepspeed.sh"), *words],
        cwd=folder,
        env=ENVIRONMENT | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


@pytest.mark.parametrize(("script", "words", "arguments"), CASES)
def test_arguments_of_the_launcher(tmp_path: Path, script: str, words: str, arguments: str) -> None:
    launcher = tmp_path / "deepspeed"
    launcher.write_text('#!/bin/sh\necho "$@"\n')
    launcher.chmod(0o755)
    done = run(script, tmp_path, words.split(), f"{tmp_path}:{ENVIRONMENT['PATH']}")
    assert (done.returncode, done.stdout) == (0, f"{arguments}\n")


def test_without_deepspeed(tmp_path: Path) -> None:
    for program in ("bash", "dirname"):
        (tmp_path / program).symlink_to(str(shutil.which(program)))
    done = run("train", tmp_path, [], str(tmp_path))
    assert done.returncode == 2
    expected = "demo-t2v: train: needs DeepSpeed; run pip install 'demo-t2v[train,deepspeed]'\n"
    assert done.stderr == expected


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the machine has a GPU")
def test_generation_without_a_gpu(tmp_path: Path, tiny_folder: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "prompts.csv").write_text("id,prompt\n1,a car\n")
    (tmp_path / "configs/inference.yaml").write_text(
        f"pretrained: {tiny_folder}\ninfer_dataset: {{csv_path: prompts.csv}}\nddim_timesteps: 1\n"
    )
    done = run("inference", tmp_path, ["--include=localhost:0"], ENVIRONMENT["PATH"])
    assert done.returncode == 0, done.stderr
    assert "no GPU here: the videos are made on the CPU\n" in done.stderr
    assert (tmp_path / "outputs/1-a-car-0.mp4").is_file()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the machine has a GPU")
def test_training_without_a_gpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    words = ["task=clip", "log_dir=a", "num_steps=1", "batch_size=1", "lr=1"]
    plain = load(AnyTraining, None, words)
    halved = plain.model_copy(update={"mixed_precision": "fp16"})
    assert fit_device(plain) is plain
    assert not caplog.records
    assert fit_device(halved) == plain.model_copy(update={"mixed_precision": "no"})
    monkeypatch.setenv("RANK", "0")
    assert fit_device(plain) is plain
    monkeypatch.setenv("RANK", "1")
    fit_device(halved)
    assert [record.getMessage() for record in caplog.records] == [
        "no GPU here: the training runs on the CPU, in float32 instead of float16",
        "no GPU here: the training runs on the CPU",
    ]
