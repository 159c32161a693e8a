"""An output folder in any place that fsspec knows: a bucket, a share, another machine's disk."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from demo_t2v.core.atomic_io import digest
from demo_t2v.inference.outputs import MANIFEST, OutputError, OutputFolder, read_manifest


@dataclass(frozen=True)
class RemoteFolder(OutputFolder):
    """The folder `root` of the file system `files`; `path` is a local one, emptied at the end.

    Videos are written there and then moved. The manifest is kept there too and sent whole, as
    buckets cannot append: so one process alone may `record`.
    """

    url: str = ""
    root: str = ""
    files: Any = None
    local: Any = None
    """The temporary folder, which is deleted with this object."""

    def shown(self, file: Path) -> str:
        return f"{self.url}/{file.name}"

    def entries(self) -> dict[str, dict[str, Any]]:
        if self.files.exists(self._there(self.path / MANIFEST)):
            self.files.get_file(self._there(self.path / MANIFEST), str(self.path / MANIFEST))
        return read_manifest(self.path)

    def prepare(self) -> None:
        super().prepare()
        self.files.makedirs(self.root, exist_ok=True)

    def record(self, entry: Mapping[str, Any]) -> None:
        super().record(entry)
        self._send(self.path / MANIFEST, self.path / MANIFEST)

    def _exists(self, file: Path) -> bool:
        return bool(self.files.exists(self._there(file)))

    def _digest(self, file: Path) -> str:
        with tempfile.TemporaryDirectory() as scratch:
            copy = Path(scratch) / file.name
            there = self._there(file)
            self.files.get(there, str(copy), recursive=self.files.isdir(there))
            return digest(copy)

    def _put(self, partial: Path, file: Path) -> None:
        self._send(partial, file)

    def _send(self, source: Path, file: Path) -> None:
        """Copy a file or a folder there; a file under another name first."""
        there = self._there(file)
        if source.is_dir():
            if self.files.exists(there):
                self.files.rm(there, recursive=True)
            self.files.put(f"{source}/", there, recursive=True)
            return
        halfway = self._there(file.with_name(f".{file.name}.partial"))
        self.files.put_file(str(source), halfway)
        self.files.mv(halfway, there)

    def _there(self, file: Path) -> str:
        return f"{self.root}/{file.name}"


def open_folder(
    place: str, model: str, settings: Mapping[str, Any], model_hash: str
) -> OutputFolder:
    """The folder at a path, or at an URL such as `s3://bucket/videos`. Raises OutputError."""
    if "://" not in place:
        return OutputFolder(Path(place), model, settings, model_hash)
    try:
        files, root = fsspec.core.url_to_fs(place)
    except (ValueError, ImportError) as error:  # an unknown kind of URL, or its library is not here
        raise OutputError(f"{place}: cannot be written to ({error})") from None
    local, url = tempfile.TemporaryDirectory(prefix="demo-t2v-"), place.rstrip("/")
    return RemoteFolder(Path(local.name), model, settings, model_hash, url, root, files, local)
