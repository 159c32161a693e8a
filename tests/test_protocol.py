"""Evaluation protocols: `demo-t2v evaluate PROTOCOL`."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from demo_t2v.config import ConfigError
from demo_t2v.data.sprites import render, trajectory
from demo_t2v.data.video import write_video
from demo_t2v.evaluation.all_metrics import make_metrics
from demo_t2v.evaluation.errors import EvaluationError
from demo_t2v.evaluation.metrics.metric import VideoClip
from demo_t2v.evaluation.protocol import (
    find_protocol,
    load_protocol,
    shipped_protocols,
    split_overrides,
)
from demo_t2v.evaluation.protocol_run import read_protocol_prompts
from demo_t2v.evaluation.results import read_results
from demo_t2v.evaluation.sprites.prompts import list_prompts
from demo_t2v.evaluation.sprites.sprite_score import SpriteScore
from demo_t2v.inference.jobs import sample_seed
from demo_t2v.inference.outputs import read_manifest
from helpers import in_process, program

PROTOCOL = """\
name: tiny
version: 3
prompts: prompts.csv
num_prompts: 2
repeats: 2
seed: 7
num_frames: 4
fps: 8
resolution: 32
real: real
"""
PROMPTS = "id,prompt\na,a car falls\nb,a pear grows\n"
STEPS = ("--steps", "1", "--model", "model")


class MeanColour(nn.Module):
    """In I3D's place: the mean colour of the video."""

    def forward(
        self,
        video: torch.Tensor,
        rescale: bool = False,  # noqa: ARG002
        resize: bool = False,  # noqa: ARG002
        return_features: bool = False,  # noqa: ARG002
    ) -> torch.Tensor:
        return video.mean(dim=[2, 3, 4])


@pytest.fixture
def place(tmp_path: Path, tiny_folder: Path) -> Path:
    """A protocol of two prompts, three real videos, a model, and a network for FVD."""
    (tmp_path / "tiny.yaml").write_text(PROTOCOL)
    (tmp_path / "prompts.csv").write_text(PROMPTS)
    (tmp_path / "model").symlink_to(tiny_folder)
    (tmp_path / "real").mkdir()
    for number in range(3):
        frames = np.random.default_rng(number).integers(0, 256, (5, 40, 48, 3), np.uint8)
        write_video(frames, tmp_path / "real" / f"{number}.mp4", 8, "mp4")
    torch.jit.script(MeanColour()).save(tmp_path / "i3d.pt")
    return tmp_path


def only_results(folder: Path) -> Path:
    (file,) = folder.glob("*.json")
    return file


def test_a_protocol_is_run_in_a_process_of_its_own(place: Path) -> None:
    done = program.run(place, "evaluate", "tiny.yaml", *STEPS, "i3d=i3d.pt", "clip=org/none")
    assert done.returncode == 0, done.stderr
    file = only_results(place / "outputs" / "tiny")
    assert done.stdout.splitlines()[-1] == str(file.relative_to(place))
    results = read_results(file)
    fingerprint = results.settings["fingerprint"]
    assert file.stem == f"model-num-inference-steps-1-{fingerprint[:8]}"
    expected = {
        "protocol": "tiny",
        "protocol_version": 3,
        "protocol_changes": {},
        "frames": 4,
        "fps": 8,
        "resolution": 32,
        "resizing": "short side scaled by area averaging, centre cropped",
        "seed": 7,
        "repeats": 2,
        "prompts": 2,
        "real_videos": 3,
        "model": "model",
    }
    assert {key: results.settings[key] for key in expected} == expected
    assert results.settings["generation"]["num_inference_steps"] == 1
    assert (results.subject, results.real) == ("model, num_inference_steps=1", "real")
    assert [row["name"] for row in results.videos] == [
        f"{key}-{words}-{repeat}.mp4"
        for key, words in (("a", "a-car-falls"), ("b", "a-pear-grows"))
        for repeat in (0, 1)
    ]
    assert {(row["frames"], row["fps"], row["height"]) for row in results.videos} == {(4, 8, 32)}
    assert [row["seed"] for row in results.videos] == [
        sample_seed(7, key, repeat) for key in ("a", "b") for repeat in (0, 1)
    ]
    figures = {result.name: result for result in results.metrics}
    fvd = figures["FVD (I3D)"]
    assert fvd.figure is not None
    assert fvd.figure.count == 4
    assert fvd.depends_on["extractor"] == "I3D"
    assert "--inception FILE: weights-inception" in figures["FID"].not_computed
    assert "the hub does not give it" in figures["CLIPSIM"].not_computed
    manifest = read_manifest(file.with_suffix(""))
    assert {entry["model_hash"] for entry in manifest.values()} == {fingerprint}
    assert len(list((file.parent / "features").rglob("*.npy"))) == 7


def test_a_killed_evaluation_resumes(place: Path) -> None:
    words = ("evaluate", "tiny.yaml", *STEPS, "repeats=6", "batch_size=1", "real=none")
    process = subprocess.Popen(
        [*program.COMMAND, *words],
        cwd=place,
        env=program.ENVIRONMENT,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    outputs = place / "outputs" / "tiny"
    until = time.monotonic() + program.TIMEOUT
    while process.poll() is None and not list(outputs.glob("*/*.mp4")):
        assert time.monotonic() < until
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert process.returncode == -signal.SIGKILL
    (folder,) = {video.parent for video in outputs.glob("*/*.mp4")}
    before = read_manifest(folder)
    assert not list(outputs.glob("*.json"))
    done = in_process.run(place, *words)
    assert done.returncode == 0, done.stderr
    after = read_manifest(folder)
    assert len(after) == 12
    assert {name: after[name] for name in before} == before
    assert len(read_results(only_results(outputs)).videos) == 12


def test_several_processes_make_the_videos_and_the_first_measures(place: Path) -> None:
    launch = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "demo_t2v")
    words = ("evaluate", "tiny.yaml", *STEPS, "batch_size=1", "real=none")
    done = subprocess.run(
        [sys.executable, "-m", *launch, *words],
        cwd=place,
        env=program.ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=program.TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outputs = place / "outputs" / "tiny"
    assert done.stdout.count(str(only_results(outputs).relative_to(place))) == 1
    results = read_results(only_results(outputs))
    assert len(results.videos) == 4
    alone = in_process.run(place, *words, "--out", "alone")
    assert alone.returncode == 0
    assert read_results(only_results(place / "alone")).videos == results.videos


def test_what_is_there_is_not_made_or_computed_again(place: Path) -> None:
    words = ("evaluate", "tiny.yaml", *STEPS, "i3d=i3d.pt")
    first = in_process.run(place, *words)
    outputs = place / "outputs" / "tiny"
    text = only_results(outputs).read_text()
    times = {file: file.stat().st_mtime_ns for file in outputs.rglob("*") if file.suffix != ".json"}
    second = in_process.run(place, *words)
    assert (first.returncode, second.returncode) == (0, 0)
    assert first.stdout == second.stdout
    assert only_results(outputs).read_text() == text
    assert times == {file: file.stat().st_mtime_ns for file in times}


def test_a_trial_without_a_metric_replaces_no_figure(place: Path) -> None:
    words = ("evaluate", "tiny.yaml", *STEPS)
    first = in_process.run(place, *words, "i3d=i3d.pt")
    outputs = place / "outputs" / "tiny"
    file = only_results(outputs)
    text = file.read_text()
    trial = in_process.run(place, *words, "real=none")
    assert (first.returncode, trial.returncode) == (0, 0), trial.stderr
    other = outputs / f"{file.stem}-without-fvd-i3d.json"
    assert set(outputs.glob("*.json")) == {file, other}
    assert trial.stdout.splitlines()[-1] == str(other.relative_to(place))
    assert file.read_text() == text


def test_overrides_and_flags_are_stated(place: Path) -> None:
    done = in_process.run(
        place, "evaluate", "tiny.yaml", *STEPS, "repeats=1", "--seed", 9, "max_prompts=1",
        "real=none", "guidance_scale=2", "--out", "here",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    file = only_results(place / "here")
    assert file.stem.endswith("-max-prompts-1-repeats-1-seed-9")
    results = read_results(file)
    assert results.settings["protocol_changes"] == {"repeats": 1, "seed": 9, "max_prompts": 1}
    assert results.settings["generation"]["guidance_scale"] == 2
    assert (results.real, results.settings["prompts"]) == ("", 1)
    assert [row["prompt"] for row in results.videos] == ["a car falls"]


def test_each_model_and_its_options_have_a_folder(place: Path) -> None:
    words = ("evaluate", "tiny.yaml", "--model", "model", "real=none", "repeats=1")
    for more in ((), ("--steps", "1"), ("num_inference_steps=1", "motion_strength=0")):
        assert in_process.run(place, *words, *more).returncode == 0
    files = list((place / "outputs" / "tiny").glob("*.json"))
    assert {read_results(file).subject for file in files} == {
        "model",
        "model, num_inference_steps=1",
        "model, num_inference_steps=1, motion_strength=0.0",
    }
    done = in_process.run(place, "evaluate", "report", *files)
    assert done.returncode == 0, done.stderr
    assert "## Videos: tiny" in done.stdout


def test_the_same_name_with_another_prompt_is_not_replaced_silently(place: Path) -> None:
    words = ("evaluate", "tiny.yaml", *STEPS, "real=none", "repeats=1")
    assert in_process.run(place, *words).returncode == 0
    done = in_process.run(place, *words, "seed=8")
    program.assert_one_line(done, 2, "made with seed", "give --overwrite, or another --out")
    assert in_process.run(place, *words, "seed=8", "--overwrite").returncode == 0


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("nonsense", ["nonsense is no command (", "videos", "no protocol (", "msr-vtt"]),
        ("none.yaml", ["none.yaml is no command (", "no file"]),
        ("protocol nonsense", ["nonsense: is no file, and no protocol: evalcrafter, msr-vtt"]),
        ("msr-vtt", ["data/msr-vtt/prompts.csv: there is no such file", "prompts=FILE"]),
        ("ucf-101", ["data/ucf-101/videos: is no folder of real videos", "real=none"]),
        ("tiny.yaml nonsense=3", ["unknown key nonsense"]),
        ("tiny.yaml max_frames=3", ["max_frames: a protocol sets this by keys of its own"]),
        ("tiny.yaml num_frames=0", ["num_frames: should be at least 1, not 0"]),
        ("tiny.yaml --frames x", ["--frames: should be a whole number"]),
        ("tiny.yaml fps=0.5", ["fps: should be a whole number"]),
        ("tiny.yaml num_prompts=3", ["prompts.csv: has 2 prompts, tiny has 3"]),
        ("tiny.yaml prompts=none.csv", ["none.csv: there is no such file of prompts"]),
        ("tiny.yaml prompts=empty.csv", ["empty.csv: has no prompts"]),
        ("tiny.yaml prompts=row.csv", ["row.csv, row 2", "column `prompt` is empty"]),
        ("tiny.yaml real=dir", ["dir: holds no videos"]),
        ("tiny.yaml resolution=null", ["real: real videos are cut", "give resolution"]),
        ("tiny.yaml sprite_score=true", ["sprite_score: has prompts of its own"]),
        ("tiny.yaml i3d=text", ["text: is no TorchScript file"]),
        ("tiny.yaml --model none", ["none"]),
        ("tiny.yaml max_prompts", ["'max_prompts' is not an override"]),
        ("keys.yaml", ["keys.yaml: unknown key nframes; did you mean num_frames?"]),
        ("unnamed.yaml", ["unnamed.yaml: name is missing"]),
        ("without.yaml", ["without: has no prompts; write prompts=FILE"]),
        ("list.yaml", ["list.yaml: should hold `key: value` lines"]),
    ],
)
def test_bad_input_is_one_line(place: Path, words: str, parts: list[str]) -> None:
    (place / "keys.yaml").write_text("name: keys\nversion: 1\nnframes: 3\n")
    (place / "unnamed.yaml").write_text("version: 1\n")
    (place / "without.yaml").write_text("name: without\nversion: 1\n")
    (place / "list.yaml").write_text("[]\n")
    (place / "empty.csv").write_text("id,prompt\n")
    (place / "row.csv").write_text("id,prompt\na,a car\nb,\nc,a hat\n")
    (place / "text").write_text("hello\n")
    (place / "dir").mkdir()
    model = () if "--model" in words else STEPS
    done = in_process.run(place, "evaluate", *words.split(), *model)
    program.assert_one_line(done, 2, *parts)
    assert not list(place.glob("outputs/*/*.json"))


def test_real_videos_that_are_too_short_are_one_line(place: Path) -> None:
    words = ("num_frames=6", "repeats=1", "i3d=i3d.pt")
    done = in_process.run(place, "evaluate", "tiny.yaml", *STEPS, *words)
    program.assert_one_line(done, 2, "real/0.mp4", "has 5 frames")
    assert not list(place.glob("outputs/**/*.mp4"))  # it is found before a video is made


def test_commands_go_before_protocols(place: Path) -> None:
    """A file named like a command does not replace it."""
    (place / "videos").write_text(PROTOCOL)
    done = in_process.run(place, "evaluate", "videos", "real")
    assert done.returncode == 0
    assert "flickering" in done.stdout


def test_the_hub_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def snapshot_download(name: str, **_: object) -> str:
        asked.append(name)
        raise OSError("no route")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    _, missing = make_metrics(with_real=False, clip="org/clip")
    problems = {each.name: each.not_computed for each in missing}
    for name in ("CLIPSIM", "CLIP temporal consistency"):
        assert "the hub does not give it (no route)" in problems[name]
    assert asked == ["org/clip"]


@pytest.mark.parametrize("file", shipped_protocols().values(), ids=lambda file: file.stem)
def test_shipped_protocols_load(file: Path) -> None:
    protocol = load_protocol(file)
    assert protocol.name == file.stem
    assert find_protocol(file.stem) == find_protocol(file.name) == file
    assert file.read_text().startswith("#")
    assert protocol.real is None or protocol.resolution is not None


def test_the_facts_of_the_benchmarks() -> None:
    found = {name: load_protocol(file) for name, file in shipped_protocols().items()}
    videos = {name: (p.num_prompts or 0) * p.repeats for name, p in found.items()}
    assert videos == {
        "evalcrafter": 700,
        "msr-vtt": 2990,
        "sprites": 324,
        "ucf-101": 10_100,
        "vbench": 4730,
        "webvid-10m": 5000,
    }
    ucf = read_protocol_prompts(found["ucf-101"].model_copy(update={"real": None}))
    assert len({prompt for _, prompt in ucf}) == 101
    assert ("WalkingWithDog", "walking with dog") in ucf


def test_overrides_of_the_protocol_and_of_the_model() -> None:
    own, generation = split_overrides(["seed=1", "batch_size=2", "fps=3", "ddim_timesteps=4"])
    assert (own, generation) == (["seed=1", "fps=3"], ["batch_size=2", "ddim_timesteps=4"])
    for option in ("infer_dataset.csv_path=x", "out=x", "max_frames=3", "format=gif"):
        with pytest.raises(ConfigError, match="a protocol sets this"):
            split_overrides([option])


def test_a_name_is_safe_as_a_folder(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("name: ../up\nversion: 1\n")
    with pytest.raises(ConfigError, match="name"):
        load_protocol(tmp_path / "p.yaml")


def sprite_clip(prompt: object, motion: str) -> VideoClip:
    path = trajectory(motion, prompt.speed, np.random.default_rng(prompt.seed), 16)
    frames = render(prompt.thing, prompt.background, path, 64)
    return VideoClip(prompt.id, frames, 8, prompt.prompt)


def test_the_sprite_score_is_the_share_of_right_videos() -> None:
    prompts = list_prompts()
    assert len({prompt.prompt for prompt in prompts}) == len(prompts)
    trained, held_out = prompts[0], prompts[-1]
    metric = SpriteScore(prompts)
    wrong = "falls" if trained.motion != "falls" else "grows"
    assert metric.update(sprite_clip(trained, trained.motion)) == 100
    assert metric.update(sprite_clip(trained, wrong)) == 0
    assert metric.update(sprite_clip(held_out, held_out.motion)) == 100
    figure = metric.compute()
    assert figure.value == pytest.approx(200 / 3)
    assert figure.extra["both, trained"] == 50
    assert figure.extra["content, trained"] == 100
    assert figure.extra["motion, held out"] == 100
    with pytest.raises(EvaluationError, match="is no prompt of the sprite score"):
        metric.update(VideoClip("x", np.zeros((16, 64, 64, 3), np.uint8), 8, "a dog"))


def test_the_sprite_protocol_of_a_model(tmp_path: Path, tiny_folder: Path) -> None:
    (tmp_path / "model").symlink_to(tiny_folder)
    done = in_process.run(
        tmp_path, "evaluate", "sprites.yaml", *STEPS, "max_prompts=2", "num_frames=8"
    )
    assert done.returncode == 0, done.stderr
    results = read_results(only_results(tmp_path / "outputs" / "sprites"))
    score = results.metrics[0]
    assert score.name == "sprite score"
    assert score.figure is not None
    assert score.figure.count == 2
    assert [row["prompt"] for row in results.videos] == [p.prompt for p in list_prompts(2, 0)]
    seeds = {entry["seed"] for entry in read_manifest(Path(results.folder)).values()}
    assert seeds == {prompt.seed for prompt in list_prompts(2, 0)}
