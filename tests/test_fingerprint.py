"""Fingerprints of models, and the cache of the hashes that they are made of."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from demo_t2v.checkpoints.fingerprint import cache, fingerprint
from demo_t2v.checkpoints.resolve import resolve
from demo_t2v.model_folder import ModelError

LARGE = 40 << 20
LONG_AGO = 10**18
"""2001, in nanoseconds."""


@pytest.fixture
def model(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model with one large file, written long ago."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    write(folder, b"one")
    return folder


def write(folder: Path, content: bytes, mtime_ns: int = LONG_AGO) -> None:
    file = folder / "unet" / "large.safetensors"
    with file.open("wb") as stream:
        stream.write(content)
        stream.truncate(LARGE)
    os.utime(file, ns=(mtime_ns, mtime_ns))


def test_every_file_counts(model: Path) -> None:
    first = fingerprint(model)
    assert first == resolve(str(model)).fingerprint
    assert len(first) == 16
    with (model / "unet/config.json").open("a") as stream:
        stream.write("\n")
    assert fingerprint(model) != first


def test_large_files_are_hashed_once(model: Path) -> None:
    first = fingerprint(model)
    write(model, b"two")  # of the same size and time: only the cache can take it for the first
    assert fingerprint(model) == first
    write(model, b"two", LONG_AGO + 1)
    assert fingerprint(model) != first


def test_files_that_were_just_written_are_hashed_every_time(model: Path) -> None:
    file = model / "unet" / "large.safetensors"
    file.touch()
    mtime_ns = file.stat().st_mtime_ns
    first = fingerprint(model)
    write(model, b"two", mtime_ns)
    assert fingerprint(model) != first


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"unet/large.safetensors": 1}'])
def test_a_damaged_cache_is_ignored(model: Path, content: bytes) -> None:
    first = fingerprint(model)
    (file,) = (cache() / "fingerprints").iterdir()
    file.write_bytes(content)
    assert fingerprint(model) == first


def test_a_cache_that_cannot_be_written_is_no_error(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fingerprint(model)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert fingerprint(model) == first


def test_a_file_that_cannot_be_read_is_named(model: Path) -> None:
    (model / "vae" / "lost.json").symlink_to("nowhere")
    with pytest.raises(ModelError, match=r"lost\.json: cannot be read \(is a link to nowhere"):
        fingerprint(model)
