"""Atomic, durable writes of files and folders, and messages about paths that cannot be used."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from demo_t2v.core.errors import UserError


class PathError(UserError):
    """A path at which no file or folder can be made."""


def describe_broken_link(file: Path) -> str:
    """Message about the broken symbolic link that `file` is or lies below; "" without one."""
    for path in (file, *file.parents):
        if os.path.islink(path) and not os.path.exists(path):  # noqa: PTH110, PTH114 (never raise)
            subject = "" if path == file else f"{path} "
            return f"{subject}is a link to {path.readlink()}, which does not exist"
    return ""


def reason(error: OSError, file: Path) -> str:
    """Message about why a file cannot be read or written."""
    return describe_broken_link(file) or error.strerror or str(error)


def make_folder(folder: Path) -> None:
    """Make a folder and its missing parents. Raises PathError, OSError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        problem = describe_broken_link(folder) or "a file is in the way of this folder"
        raise PathError(f"{folder}: {problem}") from None


def path_exists(path: Path) -> bool:
    """Whether the path exists; a broken link counts."""
    return os.path.lexists(path)


@contextmanager
def temporary_path(path: Path, suffix: str = "") -> Iterator[Path]:
    """A temporary path in the folder of `path`; it is deleted before and after the block.

    `suffix` becomes part of the name. Processes that may write `path` at once need different ones.
    """
    partial = path.with_name(f".{path.name}{suffix}.partial")
    _remove(partial)
    try:
        yield partial
    finally:
        _remove(partial)


@contextmanager
def atomic_write(path: Path, *, new_folder: bool = False) -> Iterator[Path]:
    """A temporary path in the folder of `path`, which is synced and renamed to `path` at the end.

    The block makes a file or a folder at the temporary path; an exception deletes it. Several
    processes may write `path` at once; the last one wins. With `new_folder`, the temporary folder
    is made already, only one process may write it, and no existing path is replaced. Raises
    OSError, and PathError if `path` of a new folder exists.
    """
    if new_folder and path_exists(path):
        raise PathError(f"{path}: already exists; give the name of a new folder")
    with temporary_path(path, "" if new_folder else f".{os.getpid()}") as partial:
        if new_folder:
            partial.mkdir(parents=True)
        yield partial
        sync_all(partial)
        (partial.rename if new_folder else partial.replace)(path)
    sync(path.parent)


def sync_all(path: Path) -> None:
    """Sync a file, or a folder with everything below it, to the disk."""
    for each in (*path.rglob("*"), path):
        sync(each)


def sync(path: Path) -> None:
    """Sync a file, or the entries of a folder, to the disk."""
    if path.is_dir() and os.name != "posix":
        return  # Windows cannot sync folders and does not need to
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(path: Path) -> str:
    """The hexadecimal SHA-256 of a file, or of a folder's files, concatenated in order of name."""
    combined = hashlib.sha256()
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                combined.update(chunk)
    return combined.hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
