"""Files and folders that appear complete or not at all, and are on the disk for certain."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from demo_t2v.core.errors import UserError


class PathError(UserError):
    """A path at which nothing can be made; one line for a person."""


def dangling(file: Path) -> str:
    """What is wrong with `file` where it is a link, or below a link, that leads nowhere; or ""."""
    for path in (file, *file.parents):
        if os.path.islink(path) and not os.path.exists(path):  # noqa: PTH110, PTH114 (never raise)
            subject = "" if path == file else f"{path} "
            return f"{subject}is a link to {path.readlink()}, which is not there"
    return ""


def reason(error: OSError, file: Path) -> str:
    """Why a file cannot be read or written."""
    return dangling(file) or error.strerror or str(error)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, where they are missing. Raises PathError, OSError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        problem = dangling(folder) or "a file is in the way of this folder"
        raise PathError(f"{folder}: {problem}") from None


def taken(path: Path) -> bool:
    """Whether there is something at the path: a link that leads nowhere counts."""
    return os.path.lexists(path)


@contextmanager
def beside(path: Path, suffix: str = "") -> Iterator[Path]:
    """A temporary name beside `path`; what is left of it at the end is deleted.

    What a killed process left under this name is deleted first. `suffix` becomes part of the name,
    to keep processes apart that may write `path` at once.
    """
    partial = path.with_name(f".{path.name}{suffix}.partial")
    _remove(partial)
    try:
        yield partial
    finally:
        _remove(partial)


@contextmanager
def atomic_write(path: Path, *, new_folder: bool = False) -> Iterator[Path]:
    """A temporary name beside `path`, which becomes `path` when the block ends well.

    The block makes a file or a folder of that name; it is synced first. Several processes may write
    `path` at once, and the last one's stays. With `new_folder` the temporary folder is there
    already, one process alone may write it, and nothing is ever replaced. Raises OSError, and
    PathError where `path` of a new folder is taken.
    """
    if new_folder and taken(path):
        raise PathError(f"{path}: is there already; give the name of a new folder")
    with beside(path, "" if new_folder else f".{os.getpid()}") as partial:
        if new_folder:
            partial.mkdir(parents=True)
        yield partial
        sync_all(partial)
        (partial.rename if new_folder else partial.replace)(path)
    sync(path.parent)


def sync_all(path: Path) -> None:
    """Wait until a file, or a folder and all that is below it, is on the disk."""
    for part in (*path.rglob("*"), path):
        sync(part)


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on the disk."""
    if path.is_dir() and os.name != "posix":
        return  # Windows cannot, and need not
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(path: Path) -> str:
    """The SHA-256 of a file, or of a folder's files, one after another by name; in hexadecimal."""
    combined = hashlib.sha256()
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        with file.open("rb") as stream:
            while part := stream.read(1 << 20):
                combined.update(part)
    return combined.hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
