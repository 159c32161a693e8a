"""The DEMO stage under a lab's launchers: two processes take the steps that one takes."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from helpers.program import ENVIRONMENT, ROOT, free_port
from helpers.stages import AUTOENCODER, CLIP, DENOISER, load, metrics, run

pytestmark = pytest.mark.slow
DEMO: dict[str, Any] = {
    **DENOISER,
    "model": {**DENOISER["model"], "motion": True, "dropout": 0.0},
    "num_steps": 50, "batch_size": 4, "log_interval": 1, "save_ckp_interval": 50,
    "text_motion_weight": 0,
}  # fmt: skip
ACCELERATE = ["accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
ACCELERATE += ["--main_process_port", "0"]
ACCELERATE += ["--mixed_precision", "no", "--dynamo_backend", "no", "-m", "demo_t2v", "train"]
TORCHRUN = ["torchrun", "--standalone", "--nproc-per-node", "2"]
DEEPSPEED = ["bash", str(ROOT / "scripts/train_deepspeed.sh"), "--num_accelerators", "2"]
LAUNCHERS: dict[str, tuple[list[str], list[str]]] = {
    "deepspeed": (
        [*DEEPSPEED, "--master_port", "PORT", "--"],
        [f"deepspeed_config={ROOT / 'configs/deepspeed/train_zero2_offload.json'}"],
    ),
    "accelerate": (ACCELERATE, []),
    "torchrun": ([*TORCHRUN, "-m", "demo_t2v", "train"], []),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the first two stages, and the third as one process trains it."""
    folder = tmp_path_factory.mktemp("launched")
    run(load(folder, AUTOENCODER, "autoencoder"))
    run(load(folder, CLIP, "clip"))
    run(load(folder, DEMO, "one"))
    return folder


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_have_the_curve_of_one(place: Path, launcher: str) -> None:
    before, more = LAUNCHERS[launcher]
    assert_same_curve(place, DEMO, "one", launcher, before, more)


def test_with_text_motion_the_first_steps_are_the_same(place: Path) -> None:
    """Later ones differ: that loss makes ten times as much of a rounding error in every step."""
    full = {**DEMO, "num_steps": 4, "text_motion_weight": 0.1}
    run(load(place, full, "full-one"))
    assert_same_curve(place, full, "full-one", "full-two", *LAUNCHERS["torchrun"])


def test_sharded_layers_take_the_same_steps(place: Path) -> None:
    """Layer by layer, as in the published size: keys and values are asked for from outside."""
    few = {**DEMO, "num_steps": 4}
    run(load(place, few, "few-one"))
    program = [*TORCHRUN, str(ROOT / "tests/helpers/small_fsdp_shards.py"), "train"]
    assert_same_curve(place, few, "few-one", "few-two", program, ["fsdp=true"])


def assert_same_curve(
    place: Path, stage: dict[str, Any], one: str, two: str, before: list[str], more: list[str]
) -> None:
    """Launched over two processes as `two`, the losses are those of the run `one`."""
    wanted = load(place, stage, two)
    words = [str(free_port()) if word == "PORT" else word for word in before]
    done = subprocess.run(
        [*words, "--config", f"{two}.yaml", *more],
        cwd=place,
        env=ENVIRONMENT | {"ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines, expected = metrics(wanted.log_dir), metrics(place / one)
    assert [line["step"] for line in lines] == list(range(1, stage["num_steps"] + 1))
    for line, single in zip(lines, expected, strict=True):
        assert line["loss"] == pytest.approx(single["loss"], rel=1e-3), line["step"]
