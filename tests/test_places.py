"""Names of files and folders as people give them: with colons, `~`, slashes, links."""

import shutil
from pathlib import Path

import pytest

from demo_t2v.data.video import read_video
from helpers import in_process
from helpers.program import assert_one_line


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A folder with a model, one whose weights are a link to nowhere, and such a link."""
    folder = tmp_path_factory.mktemp("places")
    (folder / "model").symlink_to(tiny_folder)
    (folder / "lost").symlink_to("gone")
    shutil.copytree(tiny_folder, folder / "broken")
    weights = folder / "broken/unet/diffusion_pytorch_model.safetensors"
    weights.unlink()
    weights.symlink_to("gone")
    return folder


def test_places_with_colons_links_and_homes(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(place / "home"))
    words = ("--steps", "1", "--frames", "2", "--device", "cpu")
    done = in_process.run(
        place, "generate", "a car", "--model", "model", "--out", "at 12:30:05", *words
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "at 12:30:05/1-a-car-0.mp4\n"
    assert read_video(place / "at 12:30:05/1-a-car-0.mp4")[0].shape == (2, 32, 32, 3)
    (place / "home").mkdir()
    for model in ("model/", "./model", str(place / "model"), str((place / "model").resolve())):
        done = in_process.run(
            place, "generate", "a car", "--model", model, "out=at 12:30:05", *words
        )
        assert "0 made, 1 were there already" in done.stderr
    done = in_process.run(place, "generate", "a car", "pretrained=model", "out=~/a", *words)
    assert done.returncode == 0, done.stderr
    assert (place / "home/a/1-a-car-0.mp4").is_file()
    assert not (place / "~").exists()


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
def test_links_that_lead_nowhere(place: Path, words: list[str]) -> None:
    done = in_process.run(place, *words)
    assert_one_line(done, 2, "is a link to gone, which does not exist")
