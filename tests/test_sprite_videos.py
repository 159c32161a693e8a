"""The sprite score of videos that any program made."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import time
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demo_t2v.data.sprites import SHEET, render, trajectory
from demo_t2v.data.video import write_video
from demo_t2v.evaluation.errors import EvaluationError
from demo_t2v.evaluation.model_card import CardInfo, front_matter
from demo_t2v.evaluation.report import BENCHMARK_VERSION, read_report
from demo_t2v.evaluation.sprites import video_folder
from demo_t2v.evaluation.sprites.prompts import list_prompts
from demo_t2v.evaluation.sprites.scene import area_weights, read_scene
from demo_t2v.evaluation.sprites.video_folder import frame_count, score_folder
from demo_t2v.inference.jobs import read_prompts
from helpers.in_process import run
from helpers.processes import accept_interrupts, descendants, needs_proc, started
from helpers.program import COMMAND, ENVIRONMENT, TIMEOUT

PROMPTS = list_prompts(6, 1)
FIRST = PROMPTS[0]


def clip(prompt, frames=16, side=64):
    path = trajectory(prompt.motion, prompt.speed, np.random.default_rng(prompt.seed), frames)
    return render(prompt.thing, prompt.background, path, side)


def save(folder: Path, name: str, frames, fps=8, kind="png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_video(frames, folder / name, fps, kind)


def test_the_list_and_the_world_of_this_version():
    """Whoever changes the digest raises BENCHMARK_VERSION: old scores are not comparable."""
    digest = hashlib.sha256()
    for prompt in list_prompts():
        digest.update(repr(astuple(prompt)).encode())
        drawn = trajectory(prompt.motion, prompt.speed, np.random.default_rng(prompt.seed))
        for axis in vars(drawn).values():
            digest.update(np.rint(axis * 1e4).astype("<i8").tobytes())
    with Image.open(SHEET) as sheet:
        digest.update(sheet.convert("RGBA").tobytes())
    assert (BENCHMARK_VERSION, digest.hexdigest()[:16]) == (1, "63f319c0a12c7e15")


def test_prompts_are_written_for_any_model(tmp_path):
    done = run(
        tmp_path, "evaluate", "sprites", "--write-prompts", "new/p.csv", "--trained", 3,
        "--held-out", 2,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "new/p.csv\n")
    rows = read_prompts(tmp_path / "new" / "p.csv")
    assert rows == [(prompt.id, prompt.prompt) for prompt in list_prompts(3, 2)]


def test_real_clips_of_several_sizes_lengths_and_rates(tmp_path):
    """Right for their own prompts, wrong for those of another clip."""
    wide = np.pad(clip(PROMPTS[1], 24, 72), ((0, 0), (0, 0), (20, 20), (0, 0)), mode="edge")
    save(tmp_path, f"{PROMPTS[0].id}.mp4", clip(PROMPTS[0], side=128), 8, "mp4")
    save(tmp_path, f"{PROMPTS[1].id}.gif", wide, 12, "gif")
    save(tmp_path, f"{PROMPTS[2].id}", clip(PROMPTS[2], 8, 50))
    save(tmp_path / "more", f"{PROMPTS[3].id}.webm", clip(PROMPTS[3], 48), 24, "webm")
    save(tmp_path, "another.mp4", clip(FIRST), 8, "mp4")
    report = score_folder(tmp_path, PROMPTS)
    (subject,) = report.subjects
    assert [score.right["both"] for score in subject.videos] == [True] * 4
    assert subject.missing == [prompt.id for prompt in PROMPTS[4:]]
    for score, other in zip(subject.videos, [*PROMPTS[1:4], FIRST], strict=True):
        shuffled = replace(score, thing=other.thing, motion=other.motion)
        assert not shuffled.right["motion"]
        assert not shuffled.right["content"]


def test_a_still_video_has_the_thing_but_not_the_motion(tmp_path):
    save(tmp_path, FIRST.id, clip(FIRST)[:1].repeat(16, 0))
    (score,) = score_folder(tmp_path, [FIRST]).subjects[0].videos
    assert (score.seen_thing, score.seen_motion) == (FIRST.thing, "still")
    assert not score.right["motion"]


def test_videos_of_generate_are_found_by_the_manifest(tmp_path):
    """From the command line; the report says how many videos it has, and a card reads it."""
    save(tmp_path / "v", "some-name.mp4", clip(FIRST), 8, "mp4")
    entry = {"file": "some-name.mp4", "id": FIRST.id, "prompt": FIRST.prompt}
    (tmp_path / "v" / "manifest.jsonl").write_text(json.dumps(entry) + "\n")
    done = run(
        tmp_path, "evaluate", "sprites", "--videos", "v", "--trained", 2, "--held-out", 1,
        "--out", "r.json",
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stderr == "demo-t2v: v: 2 of 3 videos are missing, the first is trained-001\n"
    assert "100.0%" in done.stdout
    tree = json.loads((tmp_path / "r.json").read_text())
    assert (tree["version"], tree["seed"]) == (BENCHMARK_VERSION, None)
    assert tree["subjects"][0]["missing"] == ["trained-001", "held-out-000"]
    assert tree["subjects"][0]["trained"]["both"]["count"] == 1
    report = read_report(tmp_path / "r.json")
    assert "value: 1.0" in front_matter(CardInfo(), report)
    tree["version"] = BENCHMARK_VERSION + 1
    (tmp_path / "r.json").write_text(json.dumps(tree))
    with pytest.raises(EvaluationError, match="this program has version"):
        read_report(tmp_path / "r.json")


def test_several_processes_find_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(video_folder, "VIDEOS_PER_PROCESS", 1)
    for prompt in PROMPTS[:2]:
        save(tmp_path, prompt.id, clip(prompt))
    done: list[None] = []
    report = score_folder(tmp_path, PROMPTS, processes=2, on_video=lambda: done.append(None))
    assert len(done) == 2
    for found, expected in zip(
        report.subjects[0].videos, score_folder(tmp_path, PROMPTS).subjects[0].videos, strict=True
    ):  # sums have another order with another number of threads
        assert found.share == pytest.approx(expected.share, abs=1e-4)
        assert found.deviation == pytest.approx(expected.deviation, abs=1e-3)
        assert found.id == expected.id
        assert found.right == expected.right


@needs_proc
def test_ctrl_c_is_one_line_also_while_processes_begin(tmp_path):
    for prompt in list_prompts()[: 2 * video_folder.VIDEOS_PER_PROCESS]:
        save(tmp_path / "videos", prompt.id, clip(prompt))
    command = (*COMMAND, "evaluate", "sprites", "--videos", "videos", "--processes", "2")
    options = {"cwd": tmp_path, "env": ENVIRONMENT, "preexec_fn": accept_interrupts}
    with started(command, stderr=subprocess.PIPE, start_new_session=True, **options) as process:
        while len(descendants(process.pid)) < 3 and process.poll() is None:
            time.sleep(0.01)
        time.sleep(1)  # they import
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130
    assert len(said.splitlines()) <= 1, said


@pytest.mark.parametrize(
    ("frames", "fps", "count"),
    [(16, 8, 16), (10, 8, 10), (16, 24, 16), (48, 24, 16), (81, 16, 40), (49, 8, 49), (30, 30, 16)],
)
def test_frames_are_taken_at_eight_a_second_but_at_least_sixteen(frames, fps, count):
    assert frame_count(frames, fps) == count


def test_pictures_are_averaged_over_areas():
    assert area_weights(3, 2) * 3 == pytest.approx(np.array([[2, 1, 0], [0, 1, 2]]))
    assert area_weights(2, 4) == pytest.approx(np.repeat(np.eye(2), 2, axis=0))
    frame = np.zeros((48, 80, 3), np.uint8)
    frame[:, 16:17] = 255  # the first column of the centre square, of 1.5 pixels each
    pixels = read_scene(frame[None]).pixels
    assert pixels[0, :, 0] == pytest.approx(np.full((32, 3), 2 / 3))
    assert not pixels[0, :, 1:].any()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--videos", "none"], "none: is no folder of videos"),
        (["--videos", "others"], "others: has no video with the id of a prompt, such as trained-"),
        (["--videos", "broken"], "trained-000.mp4: is no video that FFmpeg can read"),
        (["--videos", "twice"], "a/trained-000 and b/trained-000 are both trained-000"),
        (["--videos", "changed"], "was made for 'a dog'; trained-000 of version 1 is 'a"),
        (["--videos", "short"], "has 7 frames; the sprite score takes at least 8"),
        (["--videos", "small"], "small/trained-000: a video of shape (8, 31, 40, 3)"),
        (["--videos", "small", "--model", "sprites"], "remove --model and --base"),
        (["--write-prompts", "others"], "others: is a folder; name a file"),
        (["--write-prompts", "p.csv", "--trained", "461"], "461 trained pairs: there are 460"),
    ],
)
def test_bad_input_is_one_line(tmp_path, words, problem):
    black = np.zeros((8, 31, 40, 3), np.uint8)
    save(tmp_path / "others", "a", black)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "trained-000.mp4").write_bytes(b"no video" * 100)
    save(tmp_path / "twice" / "a", "trained-000", black)
    save(tmp_path / "twice" / "b", "trained-000", black)
    save(tmp_path / "changed", "trained-000", black)
    entry = {"file": "trained-000", "prompt": "a dog"}
    (tmp_path / "changed" / "manifest.jsonl").write_text(json.dumps(entry) + "\n")
    save(tmp_path / "short", "trained-000", black[:7])
    save(tmp_path / "small", "trained-000", black)
    done = run(tmp_path, "evaluate", "sprites", *words)
    assert done.returncode == 2
    assert problem in done.stderr
    assert done.stderr.count("\n") == 1
