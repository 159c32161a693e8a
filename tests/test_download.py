"""`demo-t2v download` against a hub of this machine: the real client, files of the real layout."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from demo_t2v.checkpoints.original.files import BASE_REPOSITORY, DEMO_REPOSITORY
from helpers.http_server import serve
from helpers.hub import FolderHub, hub_environment
from helpers.published_layout import write_published

TIMEOUT = 120


class Hub(FolderHub):
    """Sends only half of demo.pth, `cuts` times."""

    cuts: ClassVar[int] = 0

    def content(self, file: Path) -> bytes:
        content = file.read_bytes()
        if file.name != "demo.pth" or self.cuts <= 0:
            return content
        Hub.cuts -= 1
        return content[: len(content) // 2]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    Hub.folder, Hub.sent = tmp_path / "hub", []
    Hub.folder.mkdir()
    write_published(Hub.folder, motion=True)
    with serve(Hub) as address:
        yield address


@pytest.mark.slow  # the client tries many times
def test_a_download_that_breaks_off_goes_on_and_becomes_a_model(tmp_path: Path, hub: str) -> None:
    env = hub_environment(hub, tmp_path)

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "demo_t2v", *words]
        return subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=TIMEOUT,
            check=False,
        )  # fmt: skip

    video = ("--frames", "1", "--height", "64", "--width", "64", "--steps", "1", "--format", "png")
    generate = ("generate", "a dog runs", "--model", DEMO_REPOSITORY, *video)
    Hub.cuts = 99
    ended = run("download", "demo")
    assert ended.returncode == 1, ended.stderr
    assert "demo.pth" in ended.stderr.splitlines()[-1]
    ended = run(*generate)
    assert ended.returncode == 2, ended.stderr
    assert "demo.pth is not downloaded; run `demo-t2v download demo`" in ended.stderr
    Hub.cuts, Hub.sent = 1, []
    ended = run("download", "demo")
    assert ended.returncode == 0, ended.stderr
    names, starts = zip(*Hub.sent, strict=True)  # what was there is not asked for again
    assert names == ("demo.pth", "demo.pth", "motion_encoder.pth")
    assert starts[1] > 0  # nor is what had come
    assert f"{BASE_REPOSITORY}: licence CC BY-NC 4.0" in ended.stderr
    ended = run(*generate)
    assert ended.returncode == 0, ended.stderr
    assert len(list((tmp_path / "outputs").rglob("*.png"))) == 1
