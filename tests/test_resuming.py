"""What is said of a run that goes on from less than it left, or has nothing left to do."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from demo_t2v.config import ConfigError
from demo_t2v.training.checkpointing import find_flaw
from helpers.tiny_task import TinyConfig, run


def config(folder: Path, **settings: Any) -> TinyConfig:
    shared = {"num_steps": 6, "batch_size": 4, "lr": 1e-2, "log_interval": 1, "keep_last": 9}
    return TinyConfig(log_dir=folder / "run", **{**shared, "save_ckp_interval": 2, **settings})


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


def fill(file: Path) -> None:
    file.write_bytes(b"\0" * file.stat().st_size)


DAMAGES: dict[str, Callable[[Path], None]] = {"missing": Path.unlink, "damaged": cut}
FILES = {
    "weights.safetensors": "the weights",
    "optimizer.safetensors": "the optimizer's state",
    "average.safetensors": "the averaged weights",
    "state.json": "the state of the run",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps with checkpoints after two, four and six."""
    folder = tmp_path_factory.mktemp("whole")
    run(config(folder))
    return folder


@pytest.fixture
def broken(whole: Path, tmp_path: Path) -> Path:
    """A copy of its checkpoints without what came after four steps, to be damaged."""
    shutil.copytree(whole / "run/checkpoints", tmp_path / "run/checkpoints")
    shutil.rmtree(tmp_path / "run/checkpoints/00000006")
    return tmp_path / "run/checkpoints/00000004"


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_the_last_whole_checkpoint_is_taken_and_what_is_lost_is_said(
    name: str,
    damage: str,
    listed: bool,
    broken: Path,
    whole: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Also of checkpoints that do not list their files."""
    if not listed:
        state = json.loads((broken / "state.json").read_text())
        del state["files"]
        (broken / "state.json").write_text(json.dumps(state))
    DAMAGES[damage](broken / name)
    run(config(broken.parents[2]))
    before = broken.with_name("00000002")
    assert caplog.messages == [
        f"{broken / name}: is {damage}; it holds {FILES[name]}; "
        f"the steps after {before} are repeated"
    ]
    ours = load_file(broken.parents[1] / "final/model.safetensors")
    right = load_file(whole / "run/final/model.safetensors")
    assert all(torch.equal(ours[key], right[key]) for key in right)
    assert broken.with_name("00000004.old").is_dir()  # what is left of it


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_given_one_that_is_not_whole_is_refused(name: str, damage: str, broken: Path) -> None:
    DAMAGES[damage](broken / name)
    line = f"{broken / name}: is {damage}; it holds {FILES[name]}; the last complete one is"
    with pytest.raises(ConfigError, match=re.escape(f"{line} {broken.with_name('00000002')}")):
        run(config(broken.parents[2]), resume=broken)


def test_where_none_is_whole(broken: Path) -> None:
    for place in broken.parent.iterdir():
        fill(place / "optimizer.safetensors")
    line = f"{broken}/optimizer.safetensors: is damaged; it holds the optimizer's state; no"
    with pytest.raises(ConfigError, match=re.escape(line)) as error:
        run(config(broken.parents[2]))
    assert "--resume none starts over" in str(error.value)
    with pytest.raises(ConfigError, match="no other one is complete"):
        run(config(broken.parents[2]), resume=broken)
    assert len(run(config(broken.parents[2]), resume="none")) == 6


@pytest.mark.parametrize(
    ("name", "what"),
    [("data-1.json", "the position in the data"), ("deepspeed", "DeepSpeed's optimizer state")],
)
def test_what_other_processes_write_is_missed_too(name: str, what: str, broken: Path) -> None:
    state = json.loads((broken / "state.json").read_text())
    assert state["files"] == sorted(FILES.keys() - {"state.json"})
    (broken / "state.json").write_text(json.dumps(state | {"files": [name, *state["files"]]}))
    assert find_flaw(broken) == f"{broken / name}: is missing; it holds {what}"
    if name == "deepspeed":
        (broken / name).mkdir()
        assert find_flaw(broken) == f"{broken / name}: is missing; it holds {what}"
        (broken / name / "bf16_zero_pp_rank_0.pt").write_bytes(b"1")
    else:
        (broken / name).write_text('{"place": 8}')
    assert find_flaw(broken) is None


def test_a_whole_one_is_taken_in_silence(broken: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert [line["step"] for line in run(config(broken.parents[2]))] == [5, 6]
    assert caplog.messages == []


def test_a_finished_run_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(config(tmp_path))
    assert caplog.messages == []
    assert run(config(tmp_path)) == []
    (line,) = caplog.messages
    assert line == (
        f"{tmp_path}/run/checkpoints/00000006: has taken all 6 steps (num_steps), there is "
        "nothing to train, and final/ is written from it; a larger num_steps continues, "
        "--resume none starts over"
    )


def test_a_shorter_run_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(config(tmp_path))
    assert run(config(tmp_path, num_steps=4)) == []
    (line,) = caplog.messages
    assert "00000006: is at step 6, beyond num_steps 4; nothing is trained" in line
