"""The dial for speed: words, calibration, its file, the command line, and measured speeds."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import MagicMock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from demo_t2v.checkpoints.fingerprint import fingerprint
from demo_t2v.checkpoints.resolve import BUILT_IN, resolve
from demo_t2v.conditioning.blend import Blend, parse_blend
from demo_t2v.conditioning.speed import FILE, SpeedCalibration, SpeedError, SpeedWords
from demo_t2v.conditioning.timeline import Timeline
from demo_t2v.config import InferenceConfig
from demo_t2v.data.sprites import SPEEDS, Trajectory, caption, render, trajectory
from demo_t2v.data.video import write_video
from demo_t2v.evaluation.sprites.speed import (
    OTHERS,
    WORDS,
    SpeedCase,
    calibrate,
    draw_cases,
    measure,
    path_speed,
)
from demo_t2v.inference.jobs import Job, Video
from demo_t2v.inference.outputs import read_manifest
from demo_t2v.pipeline import DemoPipeline
from helpers import in_process

CALIBRATION = SpeedCalibration(WORDS, (-1.0, 0.0, 2.0), (0.01, 0.02, 0.04), (0.5, 1.0, 1.8))


@pytest.mark.parametrize(
    ("speed", "knob"),
    [
        ("1px", -1),
        ("2px", 0),
        ("1.5 px", -0.5),
        ("3px", 1),
        ("4px", 2),
        ("0.16sides/s", 0),
        ("0.24sides/s", 1),
        ("1x", 0),
        ("1.4x", 1),
        (".75x", -0.5),
    ],
)
def test_a_speed_has_a_knob(speed: str, knob: float) -> None:
    assert CALIBRATION.knob(speed, side=100, fps=8) == pytest.approx(knob)


@given(st.floats(1, 4), st.floats(1, 4))
def test_a_higher_speed_has_a_higher_knob(first: float, second: float) -> None:
    slow, fast = (CALIBRATION.knob(f"{v:.6f}px", 100, 8) for v in sorted((first, second)))
    assert -1 <= slow <= fast <= 2


@pytest.mark.parametrize(
    ("speed", "line"),
    [
        ("2.5", "'2.5' is no speed; write pixels a frame as 2.5px"),
        ("nanpx", "'nanpx' is no speed"),
        ("-1px", "'-1px' is no speed"),
        ("fast", "'fast' is no speed"),
        ("0.5px", "0.5px is outside the calibrated range; choose from 1px to 4px"),
        ("9px", "choose from 1px to 4px"),
        ("1sides/s", "choose from 0.08sides/s to 0.32sides/s"),
        ("2x", "choose from 0.5x to 1.8x"),
    ],
)
def test_bad_speeds(speed: str, line: str) -> None:
    with pytest.raises(SpeedError) as error:
        CALIBRATION.knob(speed, side=100, fps=8)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_the_ends_of_the_range_are_speeds_as_they_are_named() -> None:
    calibration = SpeedCalibration(WORDS, (-1.0, 1.0), (0.0123456, 0.0654321), (1.0, 2.0))
    assert calibration.knob("1.23px", 100, 8) == -1
    with pytest.raises(SpeedError, match=r"choose from 1.23px to 6.54px"):
        calibration.knob("6.6px", 100, 8)


@pytest.mark.parametrize(
    ("knobs", "speeds"),
    [
        ((0.0,), (1.0,)),
        ((0.0, 1.0), (1.0,)),
        ((0.0, 1.0), (1.0, 1.0)),
        ((1.0, 0.0), (1.0, 2.0)),
        ((0.0, 1.0), (1.0, float("nan"))),
    ],
)
def test_bad_calibrations(knobs: tuple[float, ...], speeds: tuple[float, ...]) -> None:
    with pytest.raises(SpeedError):
        SpeedCalibration(WORDS, knobs, speeds, speeds)


@pytest.mark.parametrize("speed", ["slowly", "quickly"])
@pytest.mark.parametrize("knob", [-1.0, 1.0])
def test_the_word_stands_where_captions_have_it(speed: str, knob: float) -> None:
    plain = caption("car", "left", "", "in the sky")
    expected = caption("car", "left", SPEEDS[int(knob) + 1], "in the sky")
    for prompt in (plain, caption("car", "left", speed, "in the sky")):
        assert WORDS.steer(prompt, knob) == Blend((plain, expected), ((0, 0), (1, 1)))
    blend = WORDS.steer("at night, a car slowly falls.", 1)
    assert blend.prompts == ("at night, a car falls.", "at night, a car falls quickly.")


def test_a_knob_mixes_the_prompt_and_its_word() -> None:
    words = SpeedWords("slowly", "quickly")
    half = words.steer("a car falls", -0.5)
    assert half == Blend(("a car falls", "a car falls slowly"), ((0.5, 0.5), (0.5, 0.5)))
    beyond = words.steer("a car falls", 1.5)
    assert beyond == Blend(("a car falls", "a car falls quickly"), ((-0.5, -0.5), (1.5, 1.5)))
    ramp = words.steer(Blend(("a", "b"), ((1, 0), 2.0)), 0.25)
    assert ramp.prompts == ("a", "a quickly", "b", "b quickly")
    assert ramp.ends == ((0.75, 0), (0.25, 0), (1.5, 1.5), (0.5, 0.5))
    timeline = words.steer(Timeline((0, 8), ("a", "b:2 + c:1")), 0)
    assert isinstance(timeline, Timeline)
    assert timeline.starts == (0, 8)
    assert [blend.prompts[::2] for blend in timeline.prompts] == [("a",), ("b", "c")]


def test_the_calibration_is_saved_with_the_model(
    tiny_folder: Path, tiny_pipeline: DemoPipeline, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    before = fingerprint(folder)
    assert resolve(str(folder)).speed_calibration is None
    CALIBRATION.write(folder)
    assert fingerprint(folder) == before
    assert resolve(str(folder)).speed_calibration == CALIBRATION
    pipeline = DemoPipeline.from_pretrained(folder)
    assert pipeline.speed_calibration == CALIBRATION
    pipeline.save_pretrained(tmp_path / "copy")
    assert SpeedCalibration.read(tmp_path / "copy") == CALIBRATION
    tiny_pipeline.save_pretrained(tmp_path / "copy")
    assert SpeedCalibration.read(tmp_path / "copy") is None


def test_the_calibration_is_uploaded_with_the_model(
    tiny_pipeline: DemoPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploaded: list[list[str]] = []
    upload = MagicMock(side_effect=lambda folder, *_, **__: uploaded.append(os.listdir(folder)))
    monkeypatch.setattr(DemoPipeline, "_upload_folder", upload)
    for module in ("create_repo", "load_or_create_model_card", "populate_model_card"):
        monkeypatch.setattr(f"diffusers.pipelines.pipeline_utils.{module}", MagicMock())
    monkeypatch.setattr(tiny_pipeline, "speed_calibration", CALIBRATION)
    tiny_pipeline.save_pretrained(tmp_path / "m", push_to_hub=True, repo_id="a/b")
    assert [FILE in names for names in uploaded] == [True]


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"words": 3}', '{"words": {"slow": "a", "fast": "b", "before": []}}']
)
def test_damaged_files(tmp_path: Path, text: str) -> None:
    (tmp_path / "speed.json").write_text(text)
    with pytest.raises(SpeedError, match=r"speed\.json: is no speed calibration"):
        SpeedCalibration.read(tmp_path)


def test_the_built_in_model_is_calibrated() -> None:
    calibration = resolve("sprites").speed_calibration
    assert calibration
    assert calibration.words == WORDS
    assert calibration.knobs[0] < 0 < calibration.knobs[-1]
    assert (BUILT_IN["sprites"] / "speed.json").stat().st_size < 1000


@pytest.fixture
def place(tmp_path: Path, tiny_folder: Path) -> Path:
    shutil.copytree(tiny_folder, tmp_path / "model")
    CALIBRATION.write(tmp_path / "model")
    (tmp_path / "bare").symlink_to(tiny_folder)
    return tmp_path


def test_the_command_line(place: Path) -> None:
    words = ("generate", "a car falls", "--model", "model", "--steps", "1")
    done = in_process.run(place, *words, "--speed", "1.4x")
    assert done.returncode == 0, done.stderr
    (entry,) = read_manifest(place / "outputs").values()
    assert entry["settings"]["speed"] == "1.4x"
    blend = "a car falls:0 + a car falls quickly:1"
    same = in_process.run(place, *words, "--motion-prompt", blend, "--out", "blend")
    assert same.returncode == 0, same.stderr
    (other,) = read_manifest(place / "blend").values()
    assert other["sha256"] == entry["sha256"]
    assert "speed_calibration" not in other["settings"]
    file = place / "model" / "speed.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"factors": [0.5, 1, 1.9]}))
    again = in_process.run(place, *words, "--speed", "1.4x")
    assert again.returncode == 2
    assert "made with speed_calibration" in again.stderr


def test_a_video_is_explained_at_a_speed(place: Path) -> None:
    write_video(np.zeros((4, 48, 48, 3), np.uint8), place / "clip.mp4", 8, "mp4")
    words = ("explain", "clip.mp4", "--prompt", "a car falls", "--model", "model")
    pictures = []
    for speed in ("1.4x", "0.6x"):
        done = in_process.run(place, *words, "--speed", speed, "--out", f"{speed}.png")
        assert done.returncode == 0, done.stderr
        pictures.append((place / f"{speed}.png").read_bytes())
    assert pictures[0] != pictures[1]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--model", "bare", "--speed", "1x"), "speed: bare has no speed calibration (speed.json)"),
        (("--model", "model", "--speed", "3x"), "3x is outside the calibrated range; choose from"),
        (("--model", "model", "--speed", "2"), "speed: '2' is no speed; write pixels a frame"),
    ],
)
def test_bad_input(place: Path, words: tuple[str, ...], line: str) -> None:
    in_process.assert_refused(place, line, "generate", "a car", "--steps", "1", *words)


def test_the_speed_of_a_path() -> None:
    steps = np.arange(16.0)
    still = np.full(16, 0.5)
    line = Trajectory(0.2 + 0.03 * steps, 0.2 + 0.04 * steps, still, still)
    assert path_speed(line, "down-right") == pytest.approx(0.05)
    assert path_speed(line, "circles") == pytest.approx(0.05)
    shrinking = Trajectory(still, still, 0.5 - 0.01 * steps, still)
    assert path_speed(shrinking, "shrinks") == pytest.approx(0.01)


@pytest.mark.parametrize("speed", SPEEDS)
def test_the_speed_of_a_real_clip_is_measured(speed: str) -> None:
    case = SpeedCase("car", "left", "in the sky")
    path = trajectory("left", speed, np.random.default_rng(0))
    found = measure(render("car", "in the sky", path, 128), case)
    assert found.content
    assert found.motion == "left"
    true = {"slowly": 0.25, "": 0.4, "quickly": 0.55}[speed] / 15
    assert found.speed == pytest.approx(true, rel=0.03)


def test_cases_have_the_motions_in_turn() -> None:
    cases = draw_cases(("left", "up"), 5, seed=3)
    assert [case.motion for case in cases] == ["left", "up", "left", "up", "left"]
    assert cases == draw_cases(("left", "up"), 5, seed=3)


class SpriteWorld:
    """A runner whose videos are drawn: things go 0.02 + 0.01 knob sides a frame, up to knob 1."""

    config = InferenceConfig()
    cases: ClassVar = {
        case.prompt: case for case in draw_cases(("left",), 1, 0) + draw_cases(OTHERS, 1, 1)
    }

    def videos(self, jobs: Sequence[Job]) -> Iterator[Video]:
        for job in jobs:
            case, blend = self.cases[job.prompt], parse_blend(job.motion)
            share = blend.ends[1][0]
            knob = min(-share if "slowly" in blend.prompts[1] else share, 1)
            steps = (0.02 + 0.01 * knob) * (np.arange(16) - 7.5)
            still = np.zeros(16)
            moves = case.motion == "left"
            x = 0.5 - (steps if moves else still)
            path = Trajectory(x, still + 0.5, 0.43 + (still if moves else steps / 2), still)
            yield Video(job, render(case.thing, case.background, path, 64), 0.0)


def test_a_calibration_finds_the_speeds_and_leaves_out_where_they_do_not_rise() -> None:
    runner: Any = SpriteWorld()
    found = calibrate(runner, 1, 1, (-1, 1, 2))
    assert found.knobs == (-1, 0, 1)
    assert found.sides_per_frame == pytest.approx((0.01, 0.02, 0.03), rel=0.05)
    assert found.factors == pytest.approx((0.5, 1, 1.5), rel=0.1)
