"""`demo-t2v download` against a hub of this machine: the real client, files of the real layout."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import ClassVar

import pytest

from demo_t2v.checkpoints.original.files import BASE_REPOSITORY, DEMO_REPOSITORY
from helpers.http_server import serve
from helpers.published_layout import write_published

TIMEOUT = 120
COMMIT = "0" * 40


class Hub(BaseHTTPRequestHandler):
    """Gives the files of `folder`, whoever is asked; demo.pth breaks off `cuts` times."""

    folder: ClassVar[Path]
    cuts: ClassVar[int] = 0
    given: ClassVar[list[tuple[str, int]]] = []

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        if self.path.startswith("/api/models/"):
            self._say(json.dumps({"id": "a/b", "sha": COMMIT, "siblings": []}).encode())
            return
        file = self.folder / self.path.rpartition("/")[2]
        if not file.exists():
            self.send_error(404)
            return
        size = file.stat().st_size
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(wanted[1]) if wanted else 0
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{file.name}-{size}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(size - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.end_headers()
        if body:
            self.given.append((file.name, start))
            end = size // 2 if file.name == "demo.pth" and self.cuts > 0 else size
            Hub.cuts -= end < size
            self.wfile.write(file.read_bytes()[start:end])

    def _say(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    Hub.folder = tmp_path / "hub"
    Hub.folder.mkdir()
    write_published(Hub.folder, motion=True)
    with serve(Hub) as address:
        yield address


@pytest.mark.slow  # the client tries many times
def test_a_download_that_breaks_off_goes_on_and_becomes_a_model(tmp_path: Path, hub: str) -> None:
    env = os.environ | {
        "HF_ENDPOINT": hub,
        "HF_HOME": str(tmp_path / "hf"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "OMP_NUM_THREADS": "1",
    }

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
    Hub.cuts, Hub.given[:] = 1, []
    ended = run("download", "demo")
    assert ended.returncode == 0, ended.stderr
    names, starts = zip(*Hub.given, strict=True)  # what was there is not asked for again
    assert names == ("demo.pth", "demo.pth", "motion_encoder.pth")
    assert starts[1] > 0  # nor is what had come
    assert f"{BASE_REPOSITORY}: licence CC BY-NC 4.0" in ended.stderr
    ended = run(*generate)
    assert ended.returncode == 0, ended.stderr
    assert len(list((tmp_path / "outputs").rglob("*.png"))) == 1
