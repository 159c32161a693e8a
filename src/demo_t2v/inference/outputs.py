"""Output folders: what generated files are called, the manifest, and what is left to make.

An output folder has `<id>-<slug of prompt>-<repeat>.<format>` and `manifest.jsonl`, to which one
JSON object a line is appended for each finished file. A video counts as finished when its file is
there, is what the manifest's last line on it has the hash of, and was made from the same prompt,
seed, model and settings. Then it is left alone. A file of the same name that was made otherwise is
never replaced silently: that needs `overwrite`, another folder, or the old settings. A file that is
damaged, or that the manifest does not know (the machine stopped between the two), is made again.
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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, Self

from demo_t2v.config import InferenceConfig, canonical_keys
from demo_t2v.config.inference import video_settings
from demo_t2v.core.atomic_io import digest, make_folder, sync, sync_all, temporary_path
from demo_t2v.core.errors import UserError
from demo_t2v.inference.jobs import Job

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MANIFEST: Final = "manifest.jsonl"
_ID_LENGTH: Final = 40
_SLUG_LENGTH: Final = 60


class OutputError(UserError):
    """An output folder that cannot take the videos; one line for a person."""


def slug(text: str, length: int) -> str:
    """`text` as at most `length` characters of a-z, 0-9 and single inner dashes, never empty.

    When letters had to be dropped or cut off, eight digits of a hash keep different texts apart.
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    words = "-".join(re.findall(r"[a-z0-9]+", plain))
    lost = any(letter.isalnum() and not letter.isascii() for letter in _without_accents(text))
    if words and not lost and len(words) <= length:
        return words
    return f"{words[: length - 9]}-{_short_hash(text)[:8]}".replace("--", "-").lstrip("-")


def _short_hash(text: str) -> str:
    """The first sixteen hexadecimal digits of the text's SHA-256."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def file_name(job: Job, format: str) -> str:  # noqa: A002
    """The job's file name, safe on every file system; for png the name of its folder."""
    stem = f"{slug(job.id, _ID_LENGTH)}-{slug(job.prompt, _SLUG_LENGTH)}-{job.repeat}"
    return stem if format == "png" else f"{stem}.{format}"


@dataclass(frozen=True)
class OutputFolder:
    """One folder of videos made by one model with one set of settings.

    `settings` is what shapes the videos, JSON values only: `fps`, `format`, `height` and
    `width` in pixels and any others. A `dtype` of "auto" fits every precision.
    `model_hash` tells a model's weights from others of the same name.
    """

    path: Path
    model: str
    settings: Mapping[str, Any]
    model_hash: str = ""

    def with_settings(self, **settings: Any) -> Self:
        """The same folder, for videos whose settings differ in these."""
        return replace(self, settings={**self.settings, **settings})

    def file(self, job: Job) -> Path:
        """The path of the job's video."""
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
        known = self.entries()  # also to overwrite: a remote manifest is fetched by it
        if overwrite:
            return list(jobs)
        return [job for job in jobs if not self._finished(job, known.get(self.file(job).name))]

    def _finished(self, job: Job, entry: Mapping[str, Any] | None) -> bool:
        file = self.file(job)
        if entry is None or not self._exists(file):
            return False
        facts: dict[str, Any] = {"prompt": job.prompt, "seed": job.seed}
        if job.motion or entry.get("motion"):
            facts["motion"] = job.motion
        facts |= {"model": self.model, "model_hash": self.model_hash}
        for requested, made in ((facts, entry), (self.settings, _settings(entry))):
            for key, value in requested.items():
                free = (key, value) == ("dtype", "auto") or _same_files(key, requested, made)
                if made.get(key) != value and not free:
                    raise OutputError(
                        f"{self.shown(file)}: already exists, made with {key} "
                        f"{made.get(key)!r:.60}, not {value!r:.60}: give --overwrite, or another "
                        "--out"
                    )
        return self._digest(file) == entry.get("sha256")

    def shown(self, file: Path) -> str:
        """The location of a video, for a person or a script."""
        return str(file)

    def entries(self) -> dict[str, dict[str, Any]]:
        """The manifest's last entry on each file, by its name."""
        return read_manifest(self.path)

    def _exists(self, file: Path) -> bool:
        return file.exists()

    def _digest(self, file: Path) -> str:
        return digest(file)

    def prepare(self) -> None:
        """Make the folder, and see that the format can hold the videos, before any is made.

        Raises data.video.VideoError, PathError, OSError when the folder cannot be made.
        """
        from demo_t2v.data.video import check_format  # FFmpeg loads slowly, and only to write

        check_format(
            self.settings["format"],
            self.settings["fps"],
            self.settings["height"],
            self.settings["width"],
        )
        make_folder(self.path)

    def save(
        self, job: Job, frames: NDArray[np.uint8], seconds: float, device: str = "cpu"
    ) -> dict[str, Any]:
        """Write the job's video, (F, H, W, 3), and its manifest line, which is returned.

        The file appears by rename once it is complete and on the disk. Raises OSError.
        """
        entry = self.write(job, frames, seconds, device)
        self.record(entry)
        return entry

    def write(
        self, job: Job, frames: NDArray[np.uint8], seconds: float, device: str
    ) -> dict[str, Any]:
        """Write the job's video alone; returns its manifest line."""
        from demo_t2v.data.video import write_video

        file = self.file(job)
        try:
            with temporary_path(file) as partial:
                write_video(frames, partial, self.settings["fps"], self.settings["format"])
                sha256 = digest(partial)
                sync_all(partial)
                self._put(partial, file)
        except OSError as error:  # name the video, not the temporary file or none at all
            raise OSError(error.errno, error.strerror or str(error), self.shown(file)) from error
        settings = dict(self.settings)
        return {
            **job.entry,
            "file": file.name,
            "seconds": round(seconds, 3),
            "sha256": sha256,
            "device": device,
            "model": self.model,
            "model_hash": self.model_hash,
            "settings": settings,
            "settings_hash": _short_hash(json.dumps(settings, sort_keys=True)),
        }

    def _put(self, partial: Path, file: Path) -> None:
        if file.is_dir():
            shutil.rmtree(file)  # a folder of frames cannot be replaced by rename
        partial.replace(file)
        sync(self.path)

    def record(self, entry: Mapping[str, Any]) -> None:
        """Append a line to the manifest. Raises OSError."""
        _append(self.path / MANIFEST, entry)


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


def _settings(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of a manifest's entry by their canonical names.

    An option that did not exist when the video was made has its default.
    """
    settings = entry.get("settings")
    if not isinstance(settings, dict):  # beside the job's own facts, among them its seed
        settings = {key: value for key, value in entry.items() if key != "seed"}
    return video_settings(InferenceConfig()) | canonical_keys(settings, InferenceConfig)[0]


def _same_files(key: str, requested: Mapping[str, Any], made: Mapping[str, Any]) -> bool:
    """Whether a model or an adapter is the same under another name, as `mine` and `mine/`."""
    known = requested.get(f"{key}_hash")
    return bool(known) and made.get(f"{key}_hash") == known


def _without_accents(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))


def _append(file: Path, entry: Mapping[str, Any]) -> None:
    """Add one line to the manifest, in one write, after a line that a crash tore if need be."""
    with file.open("a+b", buffering=0) as stream, _locked(stream):
        line = json.dumps(entry, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        if stream.seek(0, os.SEEK_END):
            stream.seek(-1, os.SEEK_END)
            line = line if stream.read(1) == b"\n" else b"\n" + line
        if stream.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
        os.fsync(stream.fileno())


@contextmanager
def _locked(stream: IO[bytes]) -> Iterator[None]:
    """Have a file for this process alone, among those that lock it too."""
    try:
        import fcntl
    except ImportError:  # Windows has none: there only one process should write
        yield
        return
    fcntl.flock(stream, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(stream, fcntl.LOCK_UN)
