"""The only place that writes generated files: their names, the manifest, and what is left to make.

An output folder holds `<id>-<slug of prompt>-<repeat>.<format>` and `manifest.jsonl`, one JSON
object a line. A video counts as finished when its file is there and the manifest's last line on
it names the same prompt, seed, model and settings. Then it is left alone. A file of the same name
that was made otherwise is never replaced silently: that needs `overwrite`, another folder, or the
old settings. A file that the manifest does not know (the machine stopped between the two) is made
again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

MANIFEST: Final = "manifest.jsonl"
_ID_LENGTH: Final = 40
_SLUG_LENGTH: Final = 60


class OutputError(ValueError):
    """An output folder that cannot take what is asked for; one line for a person."""


@dataclass(frozen=True)
class Job:
    """One video to be made. `repeat` counts from 0; `seed` is this sample's own."""

    id: str
    prompt: str
    repeat: int
    seed: int


def slug(text: str, length: int) -> str:
    """`text` as at most `length` characters of a-z, 0-9 and single inner dashes, never empty.

    When letters had to be dropped or cut off, eight digits of a hash keep different texts apart.
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    words = "-".join(re.findall(r"[a-z0-9]+", plain))
    lost = any(letter.isalnum() and not letter.isascii() for letter in _without_accents(text))
    if words and not lost and len(words) <= length:
        return words
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{words[: length - 9]}-{digest}".replace("--", "-").lstrip("-")


def file_name(job: Job, format: str) -> str:  # noqa: A002
    """The job's file name, safe on every file system; for png the name of its folder."""
    stem = f"{slug(job.id, _ID_LENGTH)}-{slug(job.prompt, _SLUG_LENGTH)}-{job.repeat}"
    return stem if format == "png" else f"{stem}.{format}"


@dataclass(frozen=True)
class OutputFolder:
    """One folder of videos made by one model with one set of settings.

    `settings` is what shapes the videos, JSON values only: `fps`, `format`, `resolution` (height
    and width in pixels) and whatever else the maker names. A `dtype` of "auto" asks for nothing.
    """

    path: Path
    model: str
    settings: Mapping[str, Any]

    def file(self, job: Job) -> Path:
        """Where the job's video is, or will be."""
        return self.path / file_name(job, self.settings["format"])

    def missing(self, jobs: Sequence[Job], overwrite: bool = False) -> list[Job]:
        """The jobs that are still to be made; all of them with `overwrite`.

        Raises OutputError when two jobs want the same file, or when a file is there that was
        made from another prompt, seed, model or settings (unless `overwrite`).
        """
        names: dict[str, Job] = {}
        for job in jobs:
            other = names.setdefault(self.file(job).name, job)
            if other is not job:
                raise OutputError(
                    f"ids {other.id!r} and {job.id!r} would both be written to "
                    f"{self.file(job).name}: give them ids that differ in letters or digits"
                )
        if overwrite:
            return list(jobs)
        known = read_manifest(self.path)
        return [job for job in jobs if not self._finished(job, known.get(self.file(job).name))]

    def _finished(self, job: Job, entry: Mapping[str, Any] | None) -> bool:
        if entry is None or not self.file(job).exists():
            return False
        asked = {"prompt": job.prompt, "model": self.model, **self.settings, "seed": job.seed}
        settings = entry.get("settings")
        made = {**entry, **settings} if isinstance(settings, dict) else entry
        for key, value in asked.items():
            if made.get(key) != value and (key, value) != ("dtype", "auto"):
                raise OutputError(
                    f"{self.file(job)}: is there already, made with {key} {made.get(key)!r}, "
                    f"not {value!r}: give --overwrite, or another --out"
                )
        return True

    def prepare(self) -> None:
        """Make the folder, and see that the format can hold the videos, before any is made.

        Raises OutputError or data.video.VideoError, OSError when the folder cannot be made.
        """
        from demo_t2v.data.video import check_format  # FFmpeg loads slowly, and only to write

        check_format(self.settings["format"], self.settings["fps"], *self.settings["resolution"])
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise OutputError(f"{self.path}: a file is in the way of this folder") from None

    def save(self, job: Job, frames: NDArray[np.uint8], seconds: float) -> Path:
        """Write the job's video, (F, H, W, 3), and its manifest line; returns the file.

        The file appears by rename once it is whole and on the disk. Raises OSError.
        """
        from demo_t2v.data.video import write_video

        file = self.file(job)
        try:
            with _partial(file) as partial:
                write_video(frames, partial, self.settings["fps"], self.settings["format"])
                for written in (*partial.glob("*"), partial) if partial.is_dir() else (partial,):
                    sync(written)
                if file.is_dir():
                    shutil.rmtree(file)  # a folder of frames cannot be replaced by rename
                partial.replace(file)
        except OSError as error:  # name the video, not the temporary file or none at all
            raise OSError(error.errno, error.strerror or str(error), str(file)) from error
        sync(self.path)
        entry = {**asdict(job), "file": file.name, "seconds": round(seconds, 3)}
        entry |= {"model": self.model, "settings": dict(self.settings)}
        _append(self.path / MANIFEST, entry)
        return file


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """The last entry on each file of `folder`, by file name; lines torn by a crash are skipped."""
    try:
        lines = (folder / MANIFEST).read_bytes().splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    entries: dict[str, dict[str, Any]] = {}
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("file"), str):
            entries[entry["file"]] = entry
    return entries


def _without_accents(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))


@contextmanager
def _partial(file: Path) -> Iterator[Path]:
    """A temporary name beside `file`; nothing of it is left, whatever happens."""
    partial = file.with_name(f".{file.name}.partial")
    _remove(partial)
    try:
        yield partial
    finally:
        _remove(partial)


@contextmanager
def whole_or_nothing(folder: Path) -> Iterator[Path]:
    """A temporary folder that is synced and called `folder` at the end, if all went well.

    Raises OutputError if there is something of that name.
    """
    if folder.exists():
        raise OutputError(f"{folder}: is there already; give the name of a new folder")
    with _partial(folder) as partial:
        partial.mkdir(parents=True)
        yield partial
        sync_all(partial)
        partial.rename(folder)
    sync(folder.parent)


def sync_all(folder: Path) -> None:
    """Wait until a folder and all that is below it are on the disk."""
    for path in (*folder.rglob("*"), folder):
        sync(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on the disk."""
    if path.is_dir() and os.name != "posix":
        return  # Windows cannot, and need not
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _append(file: Path, entry: Mapping[str, Any]) -> None:
    """Add one line to the manifest, in one write, after a line that a crash tore if need be."""
    with file.open("a+b", buffering=0) as stream:
        line = json.dumps(entry, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        if stream.seek(0, os.SEEK_END):
            stream.seek(-1, os.SEEK_END)
            line = line if stream.read(1) == b"\n" else b"\n" + line
        if stream.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
        os.fsync(stream.fileno())
