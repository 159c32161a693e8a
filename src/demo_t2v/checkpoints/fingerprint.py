"""Hashes that identify a model's files, and the cache that saves hashing large ones again."""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from demo_t2v.core.atomic_io import atomic_write, reason
from demo_t2v.model_folder import ModelError

MODEL_FILES: Final = ("model_index.json", "*/*.json", "*/*.safetensors", "*/*.txt")
"""Patterns of the files that make up a model folder."""
_CACHED_FROM: Final = 32 << 20
"""Bytes. Smaller files are hashed faster than it is worth a cache."""
_SETTLED: Final = 2.0
"""Seconds. A file changed later than that ago may change again within its clock's tick."""


def cache() -> Path:
    """Folder of converted models and hashes: `demo-t2v` below `$XDG_CACHE_HOME` or `~/.cache`.

    Raises RuntimeError for a user without a home folder.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "demo-t2v"


def fingerprint(folder: Path) -> str:
    """Sixteen hexadecimal digits of the SHA-256 of a model's files. Raises ModelError.

    Hashes of large files are cached by path, size and modification time.
    """
    files = sorted(file for pattern in MODEL_FILES for file in folder.glob(pattern))
    cached = _read_cache(folder)
    hashes = dict(cached)
    combined = hashlib.sha256()
    for file in files:
        name = file.relative_to(folder).as_posix()
        try:
            content = _file_hash(file, name, hashes)
        except OSError as error:
            raise ModelError(f"{file}: cannot be read ({reason(error, file)})") from None
        combined.update(f"{name} {content}\n".encode())
    if hashes != cached:
        _write_cache(folder, hashes)
    return combined.hexdigest()[:16]


def _file_hash(file: Path, name: str, hashes: dict[str, Any]) -> str:
    """The file's SHA-256, from `hashes` or added to it where it is worth that. Raises OSError."""
    state = file.stat()
    match hashes.get(name):
        case [state.st_size, state.st_mtime_ns, str(content)]:
            return content
    with file.open("rb") as stream:
        content = hashlib.file_digest(stream, "sha256").hexdigest()
    if state.st_size >= _CACHED_FROM and time.time() - state.st_mtime > _SETTLED:
        hashes[name] = [state.st_size, state.st_mtime_ns, content]
    return content


def _cache_file(folder: Path) -> Path:
    path = str(folder.resolve()).encode("utf-8", "surrogateescape")
    return cache() / "fingerprints" / f"{hashlib.sha256(path).hexdigest()[:16]}.json"


def _read_cache(folder: Path) -> dict[str, Any]:
    """The folder's cached hashes; empty where there are none that can be read."""
    try:
        tree = json.loads(_cache_file(folder).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, RuntimeError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _write_cache(folder: Path, hashes: dict[str, Any]) -> None:
    """Write the hashes where the cache can be written to."""
    with suppress(OSError, RuntimeError):
        file = _cache_file(folder)
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as partial:
            partial.write_text(json.dumps(hashes), encoding="utf-8")
