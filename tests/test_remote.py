"""Output folders that are reached by an URL, on two real file systems of fsspec."""

import json
from pathlib import Path

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from demo_t2v.data.video import read_video
from demo_t2v.inference.jobs import Job
from demo_t2v.inference.outputs import MANIFEST, OutputError, OutputFolder
from demo_t2v.inference.storage import RemoteFolder, open_folder

SETTINGS = {"fps": 8, "format": "mp4", "height": 32, "width": 32, "dtype": "auto"}
FRAMES = np.full((3, 32, 32, 3), 90, dtype=np.uint8)
ROCKET, FISH = Job("7", "A rocket", 0, 123), Job("8", "A fish", 1, 456)


def opened(place: str, format: str = "mp4") -> OutputFolder:  # noqa: A002
    folder = open_folder(place, "sprites", {**SETTINGS, "format": format}, "12ab")
    folder.prepare()
    return folder


@pytest.mark.parametrize("format", ["mp4", "png"])
def test_a_folder_at_an_url(tmp_path: Path, format: str) -> None:  # noqa: A002
    url = f"file://{tmp_path}/made"
    folder = opened(url, format)
    assert folder.missing([ROCKET, FISH]) == [ROCKET, FISH]
    for job in (ROCKET, FISH):
        folder.save(job, FRAMES, 1.0)
    name = folder.file(ROCKET).name
    there = tmp_path / "made" / name
    assert folder.shown(folder.file(ROCKET)) == f"{url}/{name}"
    files = {name, folder.file(FISH).name, MANIFEST}
    assert {file.name for file in (tmp_path / "made").iterdir()} == files
    later = opened(url, format)
    assert later.missing([ROCKET, FISH]) == []
    if format == "mp4":
        assert read_video(there)[0].shape == FRAMES.shape
    damaged = there if format == "mp4" else there / "0000.png"
    damaged.write_bytes(b"x")
    assert opened(url, format).missing([ROCKET, FISH]) == [ROCKET]
    later.save(ROCKET, FRAMES, 1.0)
    lines = (tmp_path / "made" / MANIFEST).read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["7", "8", "7"]
    assert opened(url, format).missing([ROCKET, FISH]) == []


def test_what_was_made_otherwise_is_not_replaced(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/made"
    opened(url).save(ROCKET, FRAMES, 1.0)
    other = open_folder(url, "sprites", SETTINGS, "34cd")
    with pytest.raises(OutputError, match=f"{url}/7-a-rocket-0.mp4: already exists"):
        other.missing([ROCKET])


def test_a_file_system_that_is_no_disk() -> None:
    folder = opened("memory://bucket/videos")
    folder.save(ROCKET, FRAMES, 1.0)
    assert set(MemoryFileSystem().ls("/bucket/videos", detail=False)) == {
        "/bucket/videos/7-a-rocket-0.mp4",
        f"/bucket/videos/{MANIFEST}",
    }
    assert opened("memory://bucket/videos").missing([ROCKET, FISH]) == [FISH]


def test_to_overwrite_some_loses_no_other_line(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/made"
    first = opened(url)
    for job in (ROCKET, FISH):
        first.save(job, FRAMES, 1.0)
    later = opened(url)
    assert later.missing([ROCKET], overwrite=True) == [ROCKET]
    later.save(ROCKET, FRAMES, 1.0)
    lines = (tmp_path / "made" / MANIFEST).read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["7", "8", "7"]


def test_nothing_is_left_on_this_machine(tmp_path: Path) -> None:
    folder = opened(f"file://{tmp_path}/made")
    assert isinstance(folder, RemoteFolder)
    folder.save(ROCKET, FRAMES, 1.0)
    assert [file.name for file in folder.path.iterdir()] == [MANIFEST]
    local = folder.path
    del folder
    assert not local.exists()


def test_an_url_that_leads_nowhere() -> None:
    with pytest.raises(OutputError, match="s4://a/b: cannot be written to") as error:
        open_folder("s4://a/b", "sprites", SETTINGS, "")
    assert "\n" not in str(error.value)
