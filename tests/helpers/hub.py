"""The Hugging Face hub as a server of this machine, for its real client."""

from __future__ import annotations

import hashlib
import json
import os
import re
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar

COMMIT = "0" * 40


class FolderHub(BaseHTTPRequestHandler):
    """Serves the files of `folder` as those of every repository; subclasses set it.

    `sent` are the names of the files that were downloaded, each with the first byte.
    """

    folder: ClassVar[Path]
    sent: ClassVar[list[tuple[str, int]]]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def content(self, file: Path) -> bytes:
        """The bytes of a file that are sent; fewer than it has are a broken connection."""
        return file.read_bytes()

    def _answer(self, body: bool) -> None:
        _, _, name = self.path.partition("/resolve/")
        if not name:
            self._send_listing()
            return
        file = self.folder / name.partition("/")[2]
        if not file.is_file():
            self.send_error(404)
            return
        size = file.stat().st_size
        requested = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(requested[1]) if requested else 0
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{_oid(file)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(size - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.end_headers()
        if body:
            self.sent.append((file.relative_to(self.folder).as_posix(), start))
            self.wfile.write(self.content(file)[start:])

    def _send_listing(self) -> None:
        files = [file for file in self.folder.rglob("*") if file.is_file()]
        names = {file.relative_to(self.folder).as_posix(): file for file in files}
        listing: Any = {"id": "org/name", "sha": COMMIT}
        listing["siblings"] = [{"rfilename": name} for name in names]
        if "/tree/" in self.path:
            listing = [
                {"type": "file", "path": name, "oid": _oid(file), "size": file.stat().st_size}
                for name, file in names.items()
            ]
        content = json.dumps(listing).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def _oid(file: Path) -> str:
    return hashlib.sha1(str(file).encode()).hexdigest()


def hub_environment(address: str, home: Path) -> dict[str, str]:
    """The environment of a program whose hub is at `address`, with an empty cache in `home`."""
    return os.environ | {
        "HF_ENDPOINT": address,
        "HF_HOME": str(home / "hf"),
        "XDG_CACHE_HOME": str(home / "cache"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "OMP_NUM_THREADS": "1",
    }
