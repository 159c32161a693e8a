"""The script that trains the built-in model, with a few steps per stage."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from demo_t2v.config import load
from demo_t2v.training.config import AnyTraining

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "train_sprites.py"
TINY = ("num_steps=2", "batch_size=4", "log_interval=1", "warmup_steps=1", "tensorboard=null")

STAGES = ["autoencoder", "clip", "motion-clip", "stills", "base", "demo", "decoder", "encoder"]
STAGES += ["fast"]


def command(out: Path, *words: str) -> list[str]:
    return [sys.executable, str(SCRIPT), "--out", str(out), *words]


def train(out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(out, *words), cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_the_chain_resumes_after_sigterm_and_ends_with_a_card(tmp_path: Path) -> None:
    out = tmp_path / "sprites"
    with subprocess.Popen(
        command(out, *TINY, "clip.num_steps=2000"), cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as stopped:
        for line in stopped.stderr:
            if line.startswith("  step 3 of 2000"):
                stopped.terminate()
    assert stopped.returncode == 143
    assert {folder.name for folder in out.iterdir()} == {"autoencoder", "clip"}
    done = train(out, "--score", "2", "1", *TINY, "decoder.crop_steps=1")
    assert done.returncode == 0, done.stderr
    for number, stage in enumerate(STAGES, start=1):
        head = f"stage {number} of {len(STAGES)}, {stage} ("
        lines = [line for line in done.stderr.splitlines() if line.startswith(head)]
        assert [line.endswith(": finished") for line in lines] == [number == 1], stage
    assert "step 2 of 2, loss " in done.stderr
    assert "min left here, about " in done.stderr
    scores = json.loads((out / "score.json").read_text())
    assert len(scores["subjects"][0]["videos"]) == 3
    card = (out / "final" / "README.md").read_text()
    assert "128x128 pixels" in card
    assert "demo 2" in card
    assert yaml.safe_load(card.split("---")[1])["license"] == "mit"
    assert len(json.loads((out / "score-fast.json").read_text())["subjects"][0]["videos"]) == 3
    fast = json.loads((out / "final-fast" / "model_index.json").read_text())
    assert (fast["num_inference_steps"], fast["guidance_scale"]) == (4, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--device", "tpu"), "invalid choice: 'tpu'"),
        (("autoencoder.num_steps=0",), "num_steps"),
        (("nonsense=1",), "nonsense"),
        (("--minutes", "0"), "--minutes: must be more than 0"),
        (("--minutes", "2", "--processes", "2"), "is for one process"),
        (("--minutes", "2", "nonsense=1"), "nonsense"),
    ],
)
def test_bad_arguments_end_with_2_and_one_line(tmp_path: Path, words: tuple, message: str) -> None:
    ended = train(tmp_path, *words)
    assert ended.returncode == 2
    assert message in ended.stderr.splitlines()[-1]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program as a module."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return importlib.import_module("train_sprites")


def test_the_pace_divides_the_minutes_among_the_stages(
    tmp_path: Path, script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    pace = {name: {"seconds_per_step": 0.5, "set_up": 2.0} for name in STAGES}
    (tmp_path / "pace.json").write_text(json.dumps(pace))
    clock = [100.0]
    monkeypatch.setattr(script.time, "monotonic", lambda: clock[0])
    minutes = {stage.name: stage.minutes for stage in script.STAGES}
    budget = script.Budget(tmp_path, "cpu", sum(minutes.values()), [])
    first = dict(word.split("=") for word in budget.plan(0))
    assert int(first["num_steps"]) == (60 * minutes["autoencoder"] - 2) / 0.5
    # As in the configuration: 3300 of 4500 steps see windows, and 100 warm up.
    assert int(first["crop_steps"]) == round(3300 * int(first["num_steps"]) / 4500)
    assert int(first["warmup_steps"]) == round(100 * int(first["num_steps"]) / 4500)
    # The first stage took twice its share: the others shrink alike.
    clock[0] += 120 * minutes["autoencoder"]
    left = sum(minutes.values()) - 2 * minutes["autoencoder"]
    rest = sum(minutes.values()) - minutes["autoencoder"]
    second = dict(word.split("=") for word in budget.plan(1))
    expected = (60 * left * minutes["clip"] / rest - 2) / 0.5
    assert int(second["num_steps"]) == pytest.approx(expected, abs=1)
    # A stage that was stopped goes on with the steps that it had.
    clock[0] += 1000
    again = script.Budget(tmp_path, "cpu", sum(minutes.values()), [])
    assert again.plan(1) == budget.plan(1)
    # What is finished takes no time again.
    (tmp_path / "autoencoder" / "final").mkdir(parents=True)
    later = script.Budget(tmp_path, "cpu", sum(minutes.values()), [])
    steps = int(later.plan(2)[0].partition("=")[2])
    third = 60 * minutes["motion-clip"] * rest / (rest - minutes["clip"])
    assert steps == pytest.approx((third - 2) / 0.5, abs=1)


def test_gpu_overrides_apply_to_every_stage(tmp_path: Path, script: ModuleType) -> None:
    for stage in script.STAGES:
        overrides = script.overrides_of(stage, tmp_path, [*script.GPU, "num_workers=14"])
        config = load(AnyTraining, stage.config, overrides)
        assert config.mixed_precision == "bf16"
        assert config.num_workers == 14
    assert sum(stage.gpu_percent for stage in script.STAGES) == 100


def test_phases_scale_with_the_number_of_steps() -> None:
    config = load(AnyTraining, ROOT / "configs/sprites/demo.yaml", [])
    short = config.over(1200)
    assert (short.num_steps, short.warmup_steps, short.decay_steps) == (1200, 10, 300)
    assert (config.num_steps, config.decay_steps) == (12_000, 3000)
