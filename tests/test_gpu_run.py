"""The run on a GPU, rehearsed on the CPU: its parts, its limits, and what it brings home."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from demo_t2v.pipeline import DemoPipeline

ROOT = Path(__file__).parent.parent
SHIPPED = ROOT / "src" / "demo_t2v" / "assets" / "sprites" / "model"
SLOW_PYTHON = """#!/bin/sh
case "$*" in
    *gpu_check.py*) sleep 300 ;;
    *) exec "{python}" "$@" ;;
esac
"""


def gpu_run(out: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    known = {"PYTHON": sys.executable, "DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
    known |= {"MODEL": str(SHIPPED), "WHEELS": str(out / "none")}
    script = str(ROOT / "scripts" / "gpu_run.sh")
    return subprocess.run(
        ["bash", script, str(out)],
        env=os.environ | known | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def ends(report: str) -> dict[str, str]:
    """How each part ended, by its name."""
    lines = report.partition("part                  seconds  ended\n")[2].splitlines()
    found = {}
    for line in lines:
        if not line:
            break
        name, _, ended = line.split(maxsplit=2)
        found[name] = ended
    return found


def test_a_part_that_takes_too_long_is_cut_and_what_is_left_is_not_begun(tmp_path: Path) -> None:
    slow = tmp_path / "python"
    slow.write_text(SLOW_PYTHON.format(python=sys.executable))
    slow.chmod(0o755)
    began = time.monotonic()
    done = gpu_run(
        tmp_path / "out", PYTHON=str(slow), LIMIT="16", PARTS="environment fp16 training"
    )
    assert time.monotonic() - began < 60
    report = (tmp_path / "out" / "report.txt").read_text()
    assert done.stdout == report
    found = ends(report)
    assert found["environment"].startswith("cut after ")
    assert found["fp16"] == found["training"] == "not begun: no time left"


def test_the_environment_is_checked(tmp_path: Path) -> None:
    done = gpu_run(tmp_path, PARTS="environment")
    assert ends(done.stdout) == {"environment": "well"}
    with tarfile.open(tmp_path / "results.tar.gz") as results:
        stored = results.extractfile("environment.json")
        assert stored is not None
        known = json.load(stored)
    assert known["missing"] == []
    assert known["torch"] == torch.__version__
    check = [sys.executable, str(ROOT / "scripts" / "gpu_check.py"), "cuda"]
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT / "src")}
    without = subprocess.run(check, env=hidden, capture_output=True, text=True, check=False)
    assert without.returncode == 1
    assert json.loads(without.stdout)["missing"] == ["a GPU that torch sees"]


def test_the_wheels_are_of_the_versions_that_are_tested() -> None:
    script = (ROOT / "scripts" / "gpu_wheels.sh").read_text()
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    known = {line.lower().partition("==")[0] for line in lines}
    names = re.findall(r"names\+?='\|?([^']*)'", script)
    wanted = set("|".join(names).split("|"))
    assert wanted - {"ftfy", "wcwidth"} <= known
    assert {"diffusers", "pydantic", "pydantic_core"} <= wanted


@pytest.mark.slow
def test_all_of_it_in_small_where_one_part_fails(tmp_path: Path) -> None:
    done = gpu_run(
        tmp_path,
        LIMIT="1500",
        TRAINING="1",
        REST="900",
        SCORE="2 1",
        STEPS="2",
        TRAIN_STEPS="2",
        TRAIN="batch_size=0",
        RECIPE="batch_size=4 tensorboard=null",
        PARTS="environment bf16 8GB train-step training pack",
    )
    found = ends(done.stdout)
    assert found.pop("train-step").startswith("failed with code 2: ")
    assert set(found) == {"environment", "bf16", "8GB", "training", "pack"}
    assert set(found.values()) == {"well"}, done.stdout
    files = {file.name: file.stat().st_size for file in tmp_path.iterdir()}
    names = {"report.txt", "results.tar.gz", "model-unet.tar", "model-rest.tar"}
    assert set(files) == names
    assert max(files.values()) < 16 << 20
    for name in names - {"report.txt"}:
        with tarfile.open(tmp_path / name) as packed:
            packed.extractall(tmp_path / "home", filter="data")
    for file in (tmp_path / "home").rglob("*.safetensors"):
        assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float16}, file
    pipe = DemoPipeline.from_pretrained(tmp_path / "home")
    assert pipe.vae.config.sample_size == 128
    assert "128x128 pixels" in (tmp_path / "home" / "README.md").read_text()
    plan = json.loads((tmp_path / "home/run/plan.json").read_text())
    assert plan["demo"][0] == "num_steps=1"
    assert json.loads((tmp_path / "home/full_size-bf16.json").read_text())["all_finite"] is True
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[-2] for line in lines if line[:1] == ["demo"]] == ["1"]  # the last step
    assert "real clips, trained pairs: motion 100.0%, thing 100.0% of 2 videos" in done.stdout
