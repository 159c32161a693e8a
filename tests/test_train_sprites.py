"""The command that trains the built-in model from nothing, with a few steps a stage."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "train_sprites.py"
TINY = ("num_steps=2", "batch_size=4", "log_interval=1", "warmup_steps=1", "tensorboard=null")

STAGES = ["autoencoder", "clip", "motion-clip", "stills", "base", "demo", "decoder", "encoder"]


def command(out: Path, *words: str) -> list[str]:
    return [sys.executable, str(SCRIPT), "--out", str(out), *words]


def train(out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(out, *words), cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_the_whole_chain_goes_on_where_it_was_stopped_and_ends_with_a_card(tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--device", "tpu"), "invalid choice: 'tpu'"),
        (("autoencoder.num_steps=0",), "num_steps"),
        (("nonsense=1",), "nonsense"),
    ],
)
def test_bad_words_end_with_2_and_one_line(tmp_path: Path, words: tuple, message: str) -> None:
    ended = train(tmp_path, *words)
    assert ended.returncode == 2
    assert message in ended.stderr.splitlines()[-1]
