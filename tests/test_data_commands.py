"""`demo-t2v data`, and a training on what it made."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers import in_process
from helpers.datasets import PARTS, configure
from helpers.program import assert_one_line
from helpers.program import run as command


def test_the_commands(world: Path, tmp_path: Path) -> None:
    size = ("--resolution", 32, "--frames", 8, "--fps", 5, "--seed", 3)
    done = command(tmp_path, "data", "sprites", "--clips", 3, "--out", "made", *size)
    assert (done.returncode, done.stdout, done.stderr) == (0, "made/captions.csv\n", "")
    with (tmp_path / "made/captions.csv").open("a") as stream:
        stream.write("gone,a fish\n")
    named = ("--csv", "made/captions.csv", "--videos", "made/videos", "--out", "tars")
    done = command(tmp_path, "data", "shards", *named, "--megabytes", 1)
    assert (done.returncode, done.stdout) == (0, "tars\n")
    assert done.stderr.splitlines() == ["skipped gone: No such file or directory", "3 videos"]
    assert [file.name for file in (tmp_path / "tars").iterdir()] == ["00000.tar"]
    assert_one_line(in_process.run(tmp_path, "data", "shards", *named), 2, "tars: already exists")
    source = {"type": "webvid", "csv_path": "made/captions.csv", "video_dir": "made/videos"}
    configure(world, tmp_path, source)
    encode = ("data", "encode", "--config", "train.yaml", "latents=kept")
    done = command(tmp_path, *encode)
    assert (done.returncode, done.stdout) == (0, "kept\n"), done.stderr
    images, skipped, told = done.stderr.splitlines()
    assert "preprocessor_config.json: is missing; images are scaled to 32 pixels" in images
    assert skipped == "skipped gone: No such file or directory"
    assert told == "4 clips, 4 of them encoded now"
    assert len(list((tmp_path / "kept").iterdir())) == len(PARTS)
    done = in_process.run(tmp_path, *encode)
    assert done.stderr == "4 clips, 0 of them encoded now\n"
    refused = in_process.run(tmp_path, *encode, "num_frames=3")
    assert_one_line(refused, 2, "made from other clips", "delete kept")
    done = in_process.run(tmp_path, "train", "--config", "train.yaml", "latents=kept")
    assert done.returncode == 0, done.stderr
    assert "step 2" in done.stderr


@pytest.mark.parametrize("name", ["clips", "resolution", "frames", "fps"])
def test_no_clip_is_made_of_nothing(tmp_path: Path, name: str) -> None:
    options = {"--clips": 1, "--out": "made", f"--{name}": 0}
    done = in_process.run(
        tmp_path, "data", "sprites", *(w for pair in options.items() for w in pair)
    )
    assert done.returncode == 2
    assert f"--{name}" in done.stderr
    assert not (tmp_path / "made").exists()


def test_commands_that_cannot_be_done(tmp_path: Path) -> None:
    odd = ("data", "sprites", "--clips", 1, "--out", "odd", "--resolution", 33)
    assert_one_line(in_process.run(tmp_path, *odd), 2, "even width and height")
    nothing = ("data", "shards", "--csv", "a.csv", "--videos", ".", "--out", "b")
    assert_one_line(in_process.run(tmp_path, *nothing), 2, "a.csv: cannot be read")
    (tmp_path / "clip.yaml").write_text(
        "{task: clip, log_dir: a, num_steps: 1, batch_size: 1, lr: 1}"
    )
    done = in_process.run(tmp_path, "data", "encode", "--config", "clip.yaml")
    assert_one_line(done, 2, "clip.yaml: task: only the clips of a denoiser")
