"""`demo-t2v explain`: frames, flow, attention and the effect of a second motion prompt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from demo_t2v.config import InferenceConfig
from demo_t2v.data.video import write_video
from demo_t2v.evaluation.explanation import (
    Explanation,
    explain_prompt,
    explain_video,
    read_clip,
    with_motion,
)
from demo_t2v.evaluation.explanation_picture import COLUMNS, draw_explanation
from demo_t2v.inference.jobs import Job
from demo_t2v.inference.runner import Runner
from demo_t2v.pipeline import DemoPipeline
from helpers import in_process

JOB = Job("1", "a car falls", 0, 7)


@pytest.fixture(scope="module")
def runner(tiny_pipeline: DemoPipeline) -> Iterator[Runner]:
    """Its motion transformers have an effect; new ones are the identity."""
    torch.manual_seed(0)
    changed = {
        name: weight
        for name, weight in tiny_pipeline.unet.named_parameters()
        if "motion_attentions" in name and "proj_out.weight" in name
    }
    before = {name: weight.detach().clone() for name, weight in changed.items()}
    for weight in changed.values():
        torch.nn.init.normal_(weight, std=0.5)
    yield Runner(tiny_pipeline, InferenceConfig(device="cpu", num_inference_steps=2))
    for name, weight in changed.items():
        weight.data = before[name]


def test_a_prompt_has_the_frames_of_generate(runner: Runner) -> None:
    found = explain_prompt(runner, JOB, "a pear grows")
    assert found.other_frames is not None
    for frames, motion in ((found.frames, ""), (found.other_frames, "a pear grows")):
        (video,) = runner.videos([Job("1", JOB.prompt, 0, JOB.seed, motion)])
        assert np.abs(frames.astype(int) - video.frames).max() <= 1
    assert found.attention.shape[0] == len(found.frames)
    assert 0 <= found.attention.min() <= found.attention.max() <= 1
    expected = np.abs(found.frames.astype(float) - found.other_frames).mean(axis=-1) / 255
    assert np.allclose(found.difference, expected, atol=1e-6)
    assert found.difference.max() > 0


def test_the_second_motion_is_the_negative_prompt_unless_given(runner: Runner) -> None:
    config = runner.config.model_copy(update={"negative_prompt": "snow", "motion": ("0: rises",)})
    negative = Runner(runner.pipeline, config)
    other, job = with_motion(negative, Job("1", "a car", 0, 7, "it falls"), None)
    assert (other.config.motion_prompt, other.config.motion, job.motion) == ("snow", None, "")
    other, job = with_motion(negative, JOB, "")
    assert (other.config.motion_prompt, job.motion) == ("", "")
    same, job = with_motion(negative, JOB, "0: rises; 2: falls")
    assert (same, job.motion) == (negative, "0: rises; 2: falls")


def test_a_video_keeps_its_frames(runner: Runner) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    found = explain_video(runner, frames, JOB, "a pear grows")
    assert (found.frames == frames).all()
    assert found.other_frames is None
    assert found.attention.shape == found.difference.shape
    assert 0 <= found.attention.min() <= found.attention.max() <= 1
    assert found.difference.max() > 0
    same = explain_video(runner, frames, JOB, JOB.prompt)
    assert same.difference.max() < 1e-5
    assert (same.attention == found.attention).all()


def test_a_clip_has_the_model_s_length_and_size(tmp_path: Path) -> None:
    frames = np.stack([np.full((48, 64, 3), 20 * n, np.uint8) for n in range(9)])
    file = tmp_path / "clip.mp4"
    write_video(frames, file, 8, "mp4")
    config = InferenceConfig(num_frames=9, height=32, width=32)
    clip = read_clip(file, config)
    assert clip.shape == (9, 32, 32, 3)
    assert np.abs(clip.mean(axis=(1, 2, 3)) - 20 * np.arange(9)).max() < 4


@pytest.mark.parametrize(("frames", "columns"), [(16, COLUMNS), (5, 4), (2, 1)])
@pytest.mark.parametrize("other", [True, False])
def test_the_picture_has_a_row_for_each_answer(frames: int, columns: int, other: bool) -> None:
    video = np.full((frames, 32, 32, 3), (90, 10, 200), np.uint8)
    maps = np.zeros((frames, 4, 4), np.float32)
    second = np.full_like(video, (10, 90, 200)) if other else None
    picture = draw_explanation(Explanation(video, maps, maps, second), "a car falls", "it grows")
    pixels = np.asarray(picture)
    side = 160
    own = (pixels == (90, 10, 200)).all(axis=-1)
    assert own.sum() == 2 * columns * side * side  # frames, and the same without arrows
    assert ((pixels == (10, 90, 200)).all(axis=-1)).sum() == other * columns * side * side
    assert picture.height > (5 if other else 4) * side
    assert (pixels[:40] < 100).any()


@pytest.fixture
def place(tmp_path: Path, tiny_folder: Path) -> Path:
    (tmp_path / "model").symlink_to(tiny_folder)
    write_video(np.zeros((6, 48, 48, 3), np.uint8), tmp_path / "clip.mp4", 8, "mp4")
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    return tmp_path


WORDS = ("explain", "--model", "model", "--steps", "1")


@pytest.mark.parametrize(
    "words",
    [
        ("a car falls", "--against", "0: rises; 2: falls", "--guidance", "3"),
        ("clip.mp4", "--prompt", "a car falls", "--motion", "0: falls", "--motion", "2: grows"),
    ],
)
def test_the_command_line(place: Path, words: tuple[str, ...]) -> None:
    done = in_process.run(place, *WORDS, *words, "--out", "new/why.png")
    assert (done.returncode, done.stdout) == (0, "new/why.png\n"), done.stderr
    with Image.open(place / "new" / "why.png") as picture:
        assert picture.format == "PNG"
    assert len(list((place / "new").iterdir())) == 1


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("clip.mp4",), "clip.mp4: is a video, whose prompt is needed; write `demo-t2v explain"),
        (("none.mp4", "--prompt", "a car"), "none.mp4: cannot be read"),
        (("broken.mp4", "--prompt", "a car"), "broken.mp4: "),
        (("a car", "--prompt", "a car"), "a prompt and --prompt are both given"),
        ((" ",), "the prompt is empty"),
        (("a car", "--out", "why.jpg"), "--out why.jpg: should be a .png file"),
        (("a car", "--motion-strength", "0"), "motion_strength: 0 switches the motion branch off"),
        (("a car", "--frames", "1"), "num_frames: should be at least 2, not 1"),
        (
            ("clip.mp4", "--prompt", "a car", "--frames", "5"),
            "num_frames: a given video is one window; write at most 4",
        ),
        (("a car", "--against", "0: rises; 9: falls"), "frame 9 is beyond the clip"),
        (("a car", "--model", "sprites-base"), "sprites-base: has no motion branch"),
    ],
)
def test_bad_input(place: Path, words: tuple[str, ...], line: str) -> None:
    before = sorted(place.iterdir())
    done = in_process.run(place, *WORDS, *words)
    assert done.returncode == 2, done.stderr
    (said,) = done.stderr.splitlines()
    assert line in said
    assert sorted(place.iterdir()) == before
