"""`demo-t2v evaluate videos`: folders of videos made by anything."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from PIL import Image

from demo_t2v.data.video import write_video
from demo_t2v.evaluation.errors import EvaluationError
from demo_t2v.evaluation.measurement import measure
from demo_t2v.evaluation.metrics.metric import VideoMetric, mean_interval
from demo_t2v.evaluation.results import read_results
from demo_t2v.evaluation.video_files import ClipFormat, list_videos
from helpers.in_process import run

BLACK = np.zeros((8, 32, 32, 3), np.uint8)
BLINKING = BLACK.copy()
BLINKING[1::2] = 255


def write(folder, **videos):
    folder.mkdir(parents=True)
    for name, frames in videos.items():
        write_video(frames, folder / name, 8, "png")
    return folder


def test_a_still_and_a_blinking_video(tmp_path):
    write(tmp_path / "videos", still=BLACK, blinking=BLINKING)
    done = run(tmp_path, "evaluate", "videos", "videos", "--out", "r.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert "temporal flickering" in done.stdout
    results = json.loads((tmp_path / "r.json").read_text())
    rows = {row["name"]: row["temporal flickering"] for row in results["videos"]}
    assert rows == {"still": 100.0, "blinking": 0.0}
    (figure,) = [m["figure"] for m in results["metrics"] if m["name"] == "temporal flickering"]
    assert (figure["value"], figure["count"]) == (50, 2)
    assert read_results(tmp_path / "r.json").subject == "videos"


def test_prompts_come_from_the_manifest_and_names_from_the_folder(tmp_path):
    write(tmp_path / "all" / "mine", one=BLACK)
    entry = {"file": "one", "prompt": "a dog, running"}
    (tmp_path / "all" / "mine" / "manifest.jsonl").write_text(json.dumps(entry) + "\n")
    write_video(BLACK, tmp_path / "all" / "two.mp4", 5, "mp4")
    videos = list_videos(tmp_path / "all", {"two": "a cat"})
    assert [(v.name, v.prompt) for v in videos] == [
        ("mine/one", "a dog, running"),
        ("two.mp4", "a cat"),
    ]
    assert videos[1].read(ClipFormat()).fps == 5


@pytest.mark.parametrize("mode", ["RGBA", "L", "P"])
def test_frames_of_any_png_are_read_in_rgb(tmp_path, mode):
    folder = tmp_path / "all" / "one"
    folder.mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (32, 40), "white").convert(mode).save(folder / f"{number}.png")
    (video,) = list_videos(tmp_path / "all")
    assert (video.read(ClipFormat()).frames == np.full((3, 40, 32, 3), 255)).all()


def test_frames_of_several_sizes_and_damaged_ones_are_one_line(tmp_path):
    folder = tmp_path / "all" / "one"
    folder.mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (32, 32 + number)).save(folder / f"{number}.png")
    (video,) = list_videos(tmp_path / "all")
    with pytest.raises(EvaluationError, match="one: has frames of different sizes"):
        video.read(ClipFormat())
    (folder / "1.png").write_bytes(b"no picture")
    with pytest.raises(EvaluationError, match=r"one: 1\.png is no complete picture"):
        video.read(ClipFormat())


def test_a_name_that_is_no_utf8_is_kept(tmp_path):
    name = os.fsdecode(b"caf\xe9.mp4")
    (tmp_path / "videos").mkdir()
    write_video(BLACK, tmp_path / "videos" / "a.mp4", 8, "mp4")
    (tmp_path / "videos" / "a.mp4").rename(tmp_path / "videos" / name)
    done = run(tmp_path, "evaluate", "videos", "videos", "--out", "r.json")
    assert done.returncode == 0, done.stderr
    assert [row["name"] for row in read_results(tmp_path / "r.json").videos] == [name]


def test_a_clip_is_cut_from_the_start(tmp_path):
    ramp = np.broadcast_to(np.arange(16, dtype=np.uint8)[:, None, None, None] * 10, (16, 40, 64, 3))
    (video,) = list_videos(write(tmp_path / "videos", ramp=ramp))
    clip = video.read(ClipFormat(frames=4, fps=2, resolution=32))
    assert clip.frames.shape == (4, 32, 32, 3)
    assert clip.frames[:, 0, 0, 0].tolist() == [0, 40, 80, 120]  # each 4th of 8 a second


class Length(VideoMetric):
    name = "length"
    needs_real = True

    def measure(self, clip):
        return float(len(clip.frames))

    def depends_on(self):
        return {}


def test_real_videos_are_told_apart_by_content(tmp_path):
    videos = list_videos(write(tmp_path / "videos", one=BLACK))
    folders = {
        "real": {"one": BLACK, "two": BLINKING},
        "renamed": {"b": BLACK, "a": BLINKING},
        "other": {"one": BLACK, "two": BLACK},
    }
    hashes = []
    for name, contents in folders.items():
        real = list_videos(write(tmp_path / name, **contents))
        hashes.append(measure([Length()], videos, subject="v", real=real).real_sha256)
    assert hashes[0] == hashes[1] != hashes[2]
    assert measure([Length()], videos, subject="v").real_sha256 == ""


def test_the_interval_of_a_mean_holds_it_and_narrows():
    values = np.random.default_rng(1).normal(5, 1, 400)
    low, high = mean_interval(values)
    # The standard error is 1 / sqrt(400); 1.96 of them on each side, within 15 %.
    assert (high - low) / (2 * 1.96 * values.std() / 20) == pytest.approx(1, abs=0.15)
    assert mean_interval(values[:1]) is None
    assert mean_interval(np.ones(5)) == (1, 1)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["none"], "none: is no folder of videos"),
        (["empty"], "empty: holds no videos (avi, gif, m4v"),
        (["videos", "--frames", "4"], "frames, fps and resolution: give all three or none"),
        (["videos", "--real", "empty"], "empty: holds no videos"),
        (["broken"], "broken/a.mp4: is no video that FFmpeg can read"),
        (["videos", "--frames", 9, "--fps", 8, "--resolution", 32], "has 8 frames, a clip takes 9"),
        (["videos", "--fps", "-1", "--frames", 2, "--resolution", 32], "should be positive"),
        (["single"], "still: has 1 frames; this takes at least 2"),
    ],
)
def test_bad_input_is_one_line(tmp_path, words, problem):
    write(tmp_path / "videos", still=BLACK)
    write(tmp_path / "single", still=BLACK[:1])
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.mp4").write_bytes(b"no video" * 100)
    done = run(tmp_path, "evaluate", "videos", *words)
    assert done.returncode == 2
    assert problem in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("no json", "holds no results"),
        ("[]", "holds no results"),
        ('{"format": 99, "metrics": []}', "has format 99; this version reads format 1"),
        ('{"format": 1, "metrics": []}', "holds no complete results"),
    ],
)
def test_other_files_are_no_results(tmp_path, text, problem):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(EvaluationError, match=problem):
        read_results(tmp_path / "r.json")
