"""The program as people and scripts run it: real processes, real files."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from demo_t2v.data.video import read_video
from demo_t2v.inference.outputs import MANIFEST, read_manifest
from helpers import in_process
from helpers.processes import accept_interrupts, started
from helpers.program import COMMAND, ENVIRONMENT, ROOT, TIMEOUT, assert_one_line, messages, run


def only_entry(folder: Path) -> dict[str, Any]:
    """The manifest's line on the only video of a folder."""
    (entry,) = read_manifest(folder).values()
    return entry


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A folder with a model, a file of prompts and a configuration that names both."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "model").symlink_to(tiny_folder)
    (folder / "two.csv").write_text("id,prompt\n3,a fish falls, in the snow\nx,a car falls\n")
    (folder / "long.csv").write_text(f"id,prompt\n1,{'a car ' * 170_000}\n")  # a megabyte
    (folder / "run.yaml").write_text(
        "pretrained: model\nout: made\nddim_timesteps: 2\nfps: 5\n"
        "infer_dataset:\n  csv_path: two.csv\n  repeat_times: 2\n"
    )
    return folder


@pytest.fixture(scope="module")
def first(place: Path) -> subprocess.CompletedProcess[str]:
    """The first run: two prompts, two videos each."""
    return run(place, "generate", "--config", "run.yaml", "--json", "batch_size=3")


NAMES = ["3-a-fish-falls-in-the-snow-0.mp4", "3-a-fish-falls-in-the-snow-1.mp4"]
NAMES += ["x-a-car-falls-0.mp4", "x-a-car-falls-1.mp4"]


def test_the_first_run(place: Path, first: subprocess.CompletedProcess[str]) -> None:
    assert first.returncode == 0, first.stderr
    report = json.loads(first.stdout)
    assert list(report) == ["model", "videos", "skipped", "failed"]
    assert (report["model"], report["skipped"], report["failed"]) == ("model", 0, 0)
    assert [video["file"] for video in report["videos"]] == [f"made/{name}" for name in NAMES]
    for video in report["videos"]:
        assert list(video) == ["id", "prompt", "repeat", "seed", "file", "seconds"]
        frames, fps = read_video(place / video["file"])
        assert frames.shape == (4, 32, 32, 3)
        assert fps == 5
    assert report["videos"][0]["prompt"] == "a fish falls, in the snow"
    assert [video["repeat"] for video in report["videos"]] == [0, 1, 0, 1]
    assert sorted(os.listdir(place / "made")) == sorted([*NAMES, MANIFEST])
    entries = [json.loads(line) for line in (place / "made" / MANIFEST).read_text().splitlines()]
    assert [entry["file"] for entry in entries] == NAMES
    assert [entry["seed"] for entry in entries] == [video["seed"] for video in report["videos"]]
    assert entries[0]["settings"]["num_inference_steps"] == 2
    assert entries[0]["settings"]["height"] == 32  # the model's own, filled in
    assert entries[0]["settings"]["dtype"] in ("float32", "float16")
    events = [json.loads(line) for line in first.stderr.splitlines()]
    assert [event["file"] for event in events if event["event"] == "made"] == NAMES
    progress = [event for event in events if event["event"] == "progress"]
    assert progress[0]["made"] == 0  # the first comes after the first step
    assert {event["videos"] for event in progress} == {4}
    assert all(event["per_minute"] > 0 <= event["seconds_left"] for event in progress)


def test_schedulers_by_name(place: Path) -> None:
    words = ("generate", "a car falls", "--model", "model", "--steps", "4", "--out")
    made = {}
    for name in ("dpm++", "euler", "ddim"):
        done = in_process.run(place, *words, f"by-{name}", "--scheduler", name)
        assert done.returncode == 0, done.stderr
        video = only_entry(place / f"by-{name}")
        assert video["settings"]["scheduler"] == name
        made[name] = video["sha256"]
    assert len(set(made.values())) == 3
    again = in_process.run(place, *words, "by-euler", "--scheduler", "ddim")
    assert again.returncode == 2
    assert "made with scheduler 'euler', not 'ddim'" in again.stderr


@pytest.mark.usefixtures("first")
def test_the_second_run_makes_what_is_missing(place: Path) -> None:
    made = place / "made"
    before = {name: (made / name).stat().st_mtime_ns for name in NAMES}
    done = run(place, "generate", "--config", "run.yaml", "--json")
    assert json.loads(done.stdout) == {"model": "model", "videos": [], "skipped": 4, "failed": 0}
    content = (made / NAMES[2]).read_bytes()
    (made / NAMES[2]).unlink()
    done = run(place, "generate", "--config", "run.yaml")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"made/{NAMES[2]}\n"
    assert "1 made, 3 were there already" in done.stderr
    after = {name: (made / name).stat().st_mtime_ns for name in NAMES}
    assert [name for name in NAMES if before[name] != after[name]] == [NAMES[2]]
    assert (made / NAMES[2]).read_bytes() == content  # though it rode in another batch


@pytest.mark.usefixtures("first")
def test_other_settings_replace_nothing(place: Path) -> None:
    for words in (["--seed", "9"], ["--guidance", "77"], ["fps=6"]):
        done = in_process.run(place, "generate", "--config", "run.yaml", *words)
        assert_one_line(done, 2, f"made/{NAMES[0]}: already exists, made with", "--overwrite")


def test_options_and_overrides(place: Path) -> None:
    done = run(
        *(place, "generate", "x = y, a car falls", "--model", "model", "--out", "one"),
        *("--format", "webm", "format=gif", "--steps", "1", "--frames", "3", "--fps", "4"),
        *("--height", "64", "--negative", "blur", "--json", "--device", "cpu"),
    )
    assert done.returncode == 0, done.stderr
    (video,) = json.loads(done.stdout)["videos"]
    assert video["prompt"] == "x = y, a car falls"
    assert video["file"] == "one/1-x-y-a-car-falls-0.gif"
    frames, fps = read_video(place / video["file"])
    assert frames.shape == (3, 64, 32, 3)
    assert fps == 4
    assert messages(done.stderr) == []
    assert only_entry(place / "one")["settings"]["negative_prompt"] == "blur"


def test_the_model_s_negative_prompt_is_used_and_recorded(place: Path) -> None:
    shutil.copytree(place / "model", place / "told")
    file = place / "told/model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"negative_prompt": "ugly"}))
    (place / "told.yaml").write_text("pretrained: told\nout: yaml\n")
    words = ("--steps", "1", "--format", "gif", "--device", "cpu")
    for out, prompt, options in (
        ("default", "ugly", ("--model", "told")),
        ("yaml", "ugly", ("--config", "told.yaml")),
        ("empty", "", ("--model", "told", "--negative", "")),
        ("before", "", ("--model", "model")),
    ):
        done = in_process.run(place, "generate", "a car falls", f"out={out}", *options, *words)
        assert done.returncode == 0, done.stderr
        assert only_entry(place / out)["settings"]["negative_prompt"] == prompt
    default, empty, before = (
        (place / out / "1-a-car-falls-0.gif").read_bytes() for out in ("default", "empty", "before")
    )
    assert default != empty == before


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ["no prompt"]),
        ([""], ["prompt is empty"]),
        (["a car " * 2000], ["prompt has 11,999 characters; write at most 10,000"]),
        (["--prompts", "long.csv"], ["long.csv, line 2: has a cell of more than 131,072"]),
        (["a", "car"], ["'a' and 'car'", "quotes"]),
        (["two.csv"], ["two.csv: is a file", "`demo-t2v generate --prompts two.csv`"]),
        (["my two.csv"], ["is a file", "`demo-t2v generate --prompts 'my two.csv'`"]),
        (["run.yaml"], ["is a file", "`demo-t2v generate --config run.yaml`"]),
        (["tow.CSV"], ["tow.CSV: is no prompt, and there is no such file; see --prompts FILE"]),
        (["--prompts", "semicolons.csv"], ["semicolons.csv: separates its columns by semicolons"]),
        (["a car", "--prompts", "two.csv"], ["two.csv", "give one of them"]),
        (["--prompts", "caption.csv"], ["caption.csv", "`prompt`"]),
        (["--prompts", "hole.csv"], ["hole.csv, row 2 (line 3)", "nothing in it"]),
        (["--prompts", "latin.csv"], ["latin.csv", "UTF-8"]),
        (["--prompts", "none.csv"], ["none.csv", "No such file"]),
        (["--config", "typo.yaml"], ["typo.yaml", "guide_scal", "guide_scale"]),
        (["a car", "gide_scale=3"], ["gide_scale", "guide_scale"]),
        (["a car", "--format", "avi"], ["format", "mp4, webm, gif or png, not avi"]),
        (["a car", "--scheduler", "edm"], ["scheduler", "one of dpm++, ddim,", "ddpm, not edm"]),
        (["a car", "--motion-guidance", "-1"], ["motion_guidance_scale", "at least 0, not -1"]),
        (["a car", "--bypass-guidance", "nan"], ["bypass_guidance_scale", "finite"]),
        (["a car", "--guidance-order", "first"], ["guidance_order", "content or motion"]),
        (["a car", "--guidance-interval", "0.6"], ["guidance_interval", "two noise levels"]),
        (["a car", "--guidance-interval", "0.6-0.3"], ["guidance_interval", "lower"]),
        (["a car", "--content-guidance-interval", "0.6"], ["two noise levels, as in 0.3-1"]),
        (["a car", "--motion-guidance-interval", "0.6-0.3"], ["motion_guidance_interval", "lower"]),
        (["a car", "--bypass-guidance-interval", "0-2"], ["bypass_guidance_interval", "at most 1"]),
        (["a car", "--model", "sprites-base", "--motion-guidance", "2"], ["has no motion branch"]),
        (["a car", "--repeat", "0"], ["repeat_times", "at least 1, not 0"]),
        (["a car", "--model", "."], [".", "model_index.json"]),
        (["a car", "--model", "model", "--out", "two.csv"], ["two.csv", "a file is in the way"]),
        (["a car", "--model", "model", "--format", "gif", "--fps", "90"], ["gif", "at most 50"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input(place: Path, words: list[str], parts: list[str]) -> None:
    (place / "caption.csv").write_text("id,caption\n1,a\n")
    (place / "hole.csv").write_text("id,prompt\n1,a\n,\n2,b\n")
    (place / "semicolons.csv").write_text("id;prompt\n1;a\n")
    shutil.copy(place / "two.csv", place / "my two.csv")
    (place / "latin.csv").write_bytes("prompt\nschön\n".encode("latin-1"))
    (place / "typo.yaml").write_text("guide_scal: 3\n")
    done = in_process.run(place, "generate", *words)
    assert_one_line(done, 2, *parts)
    assert done.stdout == ""


def test_prompts_from_standard_input(place: Path) -> None:
    words = ("generate", "--prompts", "-", "--model", "model", "--steps", "1", "--out", "piped")
    command, text = [*COMMAND, *words], "id,prompt\nx,a car falls\nx,a fish, at night\n\n"
    there = {"cwd": place, "input": text, "capture_output": True, "text": True, "check": False}
    done = subprocess.run(command, env=ENVIRONMENT, **there)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "piped/x-a-car-falls-0.mp4\npiped/x-2-a-fish-at-night-0.mp4\n"
    warning = "standard input: column `id` has repeated ids; row 2 (line 3) is x-2"
    assert done.stderr.splitlines()[0] == warning
    done = subprocess.run(command, env=ENVIRONMENT | {"WORLD_SIZE": "2"}, **there)
    assert_one_line(done, 2, "several processes need a file of prompts, not standard input")


def test_a_prompt_may_end_like_a_file(place: Path) -> None:
    words = ("--model", "model", "--steps", "1", "--out", "alike")
    done = in_process.run(place, "generate", "a cat beside two.csv", *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "alike/1-a-cat-beside-two-csv-0.mp4\n"


def test_json_says_everything_as_events(place: Path) -> None:
    """A long prompt in three batches, and the line about memory."""
    words = " ".join(["a car falls"] * 40)
    done = run(
        *(place, "generate", words, "--model", "model", "--out", "long", "--steps", "1"),
        *("--repeat", "3", "--batch-size", "1", "--device", "cpu", "--max-memory", "8GB"),
        *("--frames", "2", "--json"),
    )
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert {event["event"] for event in events} == {"message", "progress", "made"}
    memory, cut = [event["text"] for event in events if event["event"] == "message"]
    assert memory.startswith("max_memory on cpu")
    assert re.match(r"the prompt is longer than \d+ tokens; dropped: '.*falls'$", cut)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--frob"], "--frob is not an option"),
        (["--steps", "many"], "--steps: should be a whole number"),
        (["a car", "--model", "nowhere"], "nowhere: is no model"),
        (["a car", "--out", "x", "width=no"], "width"),
    ],
)
def test_json_says_errors_as_events(place: Path, words: list[str], text: str) -> None:
    done = run(place, "generate", "--json", *words)
    assert done.returncode == 2
    assert done.stdout == ""
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert {event["event"] for event in events} <= {"error", "message"}
    assert any(text in event["text"] for event in events)


def test_every_line_on_stderr_becomes_an_event() -> None:
    """Python's warnings, logging, a library in C, a process of its own, a progress bar."""
    code = """if True:
        import logging, os, subprocess, sys, warnings
        from demo_t2v.cli.terminal import events_on_stderr
        with events_on_stderr():
            print('{"event": "made", "id": 1}', file=sys.stderr)
            print('{"half', file=sys.stderr)
            logging.warning("from logging")
            warnings.warn("from Python")
            os.write(2, "from C, \u00e9\\n\\n".encode() + b"\\xff x\\n")
            subprocess.run([sys.executable, "-c", "import sys; sys.exit('from a process')"])
            os.write(2, b"50%\\r100%\\n")
            os.write(2, b"demo-t2v: an error")
        print("plain again", file=sys.stderr)
        """
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=ENVIRONMENT | {"PYTHONIOENCODING": "utf-8"},
    )
    *lines, last = done.stderr.splitlines()
    assert last == "plain again"
    events = [json.loads(line) for line in lines]
    assert events[0] == {"event": "made", "id": 1}
    assert events[-1] == {"event": "error", "text": "an error"}
    texts = [event["text"] for event in events[1:-1]]
    assert texts[:2] == ['{"half', "WARNING:root:from logging"]
    assert "UserWarning: from Python" in texts[2]
    assert texts[-5:] == ["from C, \u00e9", "\ufffd x", "from a process", "50%", "100%"]


def test_a_size_that_the_network_cannot_take(place: Path) -> None:
    words = ("generate", "a car", "--model", "model", "--out", "odd", "--height", "34")
    done = in_process.run(place, *words)
    assert_one_line(done, 2, "height 34: ")
    assert not (place / "odd").exists()


@pytest.mark.usefixtures("first")
def test_a_full_disk(place: Path) -> None:
    """As a full disk, a limit on the size of files lets a write begin and then fail."""
    full = place / "full"
    shutil.copytree(place / "made", full)
    size = (full / NAMES[1]).stat().st_size // 2
    for name in NAMES[1:3]:
        (full / name).unlink()

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    words = ("generate", "--config", "run.yaml", "--out", "full", "--json")
    done = run(place, *words, limit=limit)
    assert_one_line(done, 1, f"full/{NAMES[1]}: File too large")
    assert json.loads(done.stdout) == {"model": "model", "videos": [], "skipped": 2, "failed": 2}
    assert sorted(os.listdir(full)) == sorted([NAMES[0], NAMES[3], MANIFEST])
    for name in (NAMES[0], NAMES[3]):
        assert (full / name).read_bytes() == (place / "made" / name).read_bytes()


def two_lines(file: Path) -> bool:
    return file.exists() and file.read_text().count("\n") >= 2


def test_ctrl_c(place: Path) -> None:
    out = place / "stopped"
    words = ("generate", "a car", "--config", "run.yaml", "--out", "stopped", "--repeat", "500")
    with started(
        [*COMMAND, *words, "--batch-size", "1", "--json"],
        cwd=place,
        env=ENVIRONMENT,
        preexec_fn=accept_interrupts,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        deadline = time.monotonic() + TIMEOUT
        # The first video is in the report for certain once the second is made.
        while not two_lines(out / MANIFEST) and time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130, stderr
    assert messages(stderr) == ["demo-t2v: stopped"]
    report = json.loads(stdout)
    assert 1 <= len(report["videos"]) < 500
    assert len(report["videos"]) + report["failed"] == 500
    left = {path.name for path in out.iterdir()} - {MANIFEST}
    assert {Path(video["file"]).name for video in report["videos"]} <= left
    for name in left:  # whole ones, and nothing temporary
        assert len(read_video(out / name)[0]) == 4


def test_help_and_version(place: Path) -> None:
    assert run(place, "--version").stdout.startswith("demo-t2v ")
    assert "Usage: demo-t2v [" in run(place, "--help").stdout
    for command in ("generate", "train", "evaluate"):
        done = in_process.run(place, command, "--help")
        assert done.returncode == 0
        assert f" {command} [" in done.stdout
    assert in_process.run(place, "generate", "--nonsense").returncode == 2


def test_a_bad_training_configuration(place: Path) -> None:
    (place / "train.yaml").write_text("task: clip\nlog_dir: a\nnum_stepz: 3\n")
    words = ("train", "--config", "train.yaml", "num_steps=1", "batch_size=1", "lr=1")
    done = in_process.run(place, *words)
    assert_one_line(done, 2, "train.yaml: unknown key num_stepz; did you mean num_steps?")


def test_a_model_that_cannot_be_scored(place: Path) -> None:
    for words in (["--model", "nowhere"], ["--model", "model", "--base", "nowhere"]):
        done = in_process.run(place, "evaluate", "sprites", *words)
        assert_one_line(done, 2, "nowhere: is no model")


def test_a_stage_is_trained_and_goes_on(tmp_path: Path) -> None:
    stage = ROOT / "configs/sprites/autoencoder.yaml"
    small = ("log_dir=run", "batch_size=1", "log_interval=1", "threads=1", "resolution=32")
    small += ("crop=16", "model.block_out_channels=[8, 8, 8, 8]")
    first = run(tmp_path, "train", "--config", stage, *small, "num_steps=1")
    assert first.returncode == 0, first.stderr
    assert "step 1" in first.stderr
    assert (tmp_path / "run/final/vae/config.json").is_file()
    second = run(tmp_path, "train", "--config", stage, *small, "num_steps=2")
    assert second.returncode == 0, second.stderr
    assert "step 2" in second.stderr
    assert "step 1 " not in second.stderr
