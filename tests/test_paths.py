"""Names of files and folders: with colons, `~`, slashes, links."""

import shutil
from pathlib import Path

import pytest

from demo_t2v.data.video import read_video
from helpers import in_process
from helpers.program import assert_one_line


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A folder with a model, one whose weights are a broken link, and a broken link."""
    folder = tmp_path_factory.mktemp("paths")
    (folder / "model").symlink_to(tiny_folder)
    (folder / "lost").symlink_to("gone")
    shutil.copytree(tiny_folder, folder / "broken")
    weights = folder / "broken/unet/diffusion_pytorch_model.safetensors"
    weights.unlink()
    weights.symlink_to("gone")
    return folder


def test_paths_with_colons_links_and_homes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder / "home"))
    words = ("--steps", "1", "--frames", "2", "--device", "cpu")
    done = in_process.run(
        folder, "generate", "a car", "--model", "model", "--out", "at 12:30:05", *words
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "at 12:30:05/1-a-car-0.mp4\n"
    assert read_video(folder / "at 12:30:05/1-a-car-0.mp4")[0].shape == (2, 32, 32, 3)
    (folder / "home").mkdir()
    for model in ("model/", "./model", str(folder / "model"), str((folder / "model").resolve())):
        done = in_process.run(
            folder, "generate", "a car", "--model", model, "out=at 12:30:05", *words
        )
        assert "0 made, 1 were there already" in done.stderr
    done = in_process.run(folder, "generate", "a car", "pretrained=model", "out=~/a", *words)
    assert done.returncode == 0, done.stderr
    assert (folder / "home/a/1-a-car-0.mp4").is_file()
    assert not (folder / "~").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "a car", "--model", "model", "--out", "lost"],
        ["generate", "a car", "--model", "model", "--out", "lost/a"],
        ["generate", "a car", "--model", "lost"],
        ["generate", "--prompts", "lost", "--model", "model"],
        ["generate", "--config", "lost"],
        ["generate", "a car", "--model", "broken"],
        ["info", "--model", "lost"],
        ["evaluate", "sprites", "--model", "model", "--out", "lost/a.json"],
        ["data", "sprites", "--clips", "1", "--out", "lost"],
        ["data", "shards", "--csv", "lost", "--videos", ".", "--out", "new"],
        ["train", "--config", "lost"],
    ],
    ids=" ".join,
)
def test_broken_links(folder: Path, words: list[str]) -> None:
    done = in_process.run(folder, *words)
    assert_one_line(done, 2, "is a link to gone, which does not exist")
