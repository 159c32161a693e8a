"""An output folder on any file system of fsspec: a bucket, a share, another machine's disk."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo_t2v.core.atomic_io import digest
from demo_t2v.inference.outputs import MANIFEST, OutputError, OutputFolder, read_manifest


@dataclass(frozen=True)
class RemoteFolder(OutputFolder):
    """The folder `root` of the file system `files`; `path` is a temporary folder on this machine.

    Videos are written to `path` and then moved. The manifest stays in `path`, and all of it is sent
    again with each line, as buckets cannot append. So one process alone may `record`.
    """

    url: str = ""
    root: str = ""
    files: Any = None
    local: Any = None
    """The temporary folder, which is deleted with this object."""

    def shown(self, file: Path) -> str:
        return f"{self.url}/{file.name}"

    def entries(self) -> dict[str, dict[str, Any]]:
        if self.files.exists(self._remote(self.path / MANIFEST)):
            self.files.get_file(self._remote(self.path / MANIFEST), str(self.path / MANIFEST))
        return read_manifest(self.path)

    def prepare(self) -> None:
        super().prepare()
        self.files.makedirs(self.root, exist_ok=True)

    def record(self, entry: Mapping[str, Any]) -> None:
        super().record(entry)
        self._send(self.path / MANIFEST, self.path / MANIFEST)

    def _exists(self, file: Path) -> bool:
        return bool(self.files.exists(self._remote(file)))

    def _digest(self, file: Path) -> str:
        with tempfile.TemporaryDirectory() as scratch:
            copy = Path(scratch) / file.name
            remote = self._remote(file)
            self.files.get(remote, str(copy), recursive=self.files.isdir(remote))
            return digest(copy)

    def _put(self, partial: Path, file: Path) -> None:
        self._send(partial, file)

    def _send(self, source: Path, file: Path) -> None:
        """Copy a file or a folder; a file under another name first."""
        remote = self._remote(file)
        if source.is_dir():
            if self.files.exists(remote):
                self.files.rm(remote, recursive=True)
            self.files.put(f"{source}/", remote, recursive=True)
            return
        partial = self._remote(file.with_name(f".{file.name}.partial"))
        self.files.put_file(str(source), partial)
        self.files.mv(partial, remote)

    def _remote(self, file: Path) -> str:
        return f"{self.root}/{file.name}"


def open_folder(
    location: str, model: str, settings: Mapping[str, Any], model_hash: str
) -> OutputFolder:
    """The folder at a path, or at an URL such as `s3://bucket/videos`. Raises OutputError."""
    if "://" not in location:
        return OutputFolder(Path(location), model, settings, model_hash)
    import fsspec  # too slow for a command's help

    try:
        files, root = fsspec.core.url_to_fs(location)
    except (ValueError, ImportError) as error:  # an unknown kind of URL, or its library is not here
        raise OutputError(f"{location}: cannot be written to ({error})") from None
    local, url = tempfile.TemporaryDirectory(prefix="demo-t2v-"), location.rstrip("/")
    return RemoteFolder(Path(local.name), model, settings, model_hash, url, root, files, local)
