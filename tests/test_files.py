"""Files that are written atomically."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from demo_t2v.core.atomic_io import (
    PathError,
    atomic_write,
    describe_broken_link,
    digest,
    make_folder,
    path_exists,
    temporary_path,
)


def test_a_file_is_written_atomically(tmp_path: Path) -> None:
    def stop_halfway() -> None:
        with atomic_write(tmp_path / "a") as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_halfway()
    assert list(tmp_path.iterdir()) == []
    with atomic_write(tmp_path / "a") as partial:
        partial.write_text("whole")
        assert not (tmp_path / "a").exists()
    assert [file.read_text() for file in tmp_path.iterdir()] == ["whole"]


def test_a_new_folder_replaces_nothing(tmp_path: Path) -> None:
    (tmp_path / ".a.partial").mkdir()
    (tmp_path / ".a.partial" / "left").touch()
    with atomic_write(tmp_path / "a", new_folder=True) as partial:
        assert list(partial.iterdir()) == []
        (partial / "b").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "b"]
    with (
        pytest.raises(PathError, match="a: already exists; give the name of a new folder"),
        atomic_write(tmp_path / "a", new_folder=True),
    ):
        pytest.fail("the block runs")


def test_a_folder_is_written_atomically(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a") as partial:
        (partial / "b").mkdir(parents=True)
        (partial / "b" / "c").write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a" / "b" / "c").read_text() == "whole"


def test_the_temporary_path_of_a_killed_process_is_deleted(tmp_path: Path) -> None:
    left = tmp_path / ".a.partial"
    left.mkdir()
    (left / "half").touch()
    with temporary_path(tmp_path / "a") as partial:
        assert partial == left
        assert not left.exists()
        partial.write_text("not wanted after all")
    assert list(tmp_path.iterdir()) == []


def test_suffixes_separate_writers(tmp_path: Path) -> None:
    with temporary_path(tmp_path / "a", ".1") as one, temporary_path(tmp_path / "a", ".2") as other:
        one.touch()
        assert not other.exists()


def test_a_digest_is_of_all_the_bytes(tmp_path: Path) -> None:
    one, other = tmp_path / "1", tmp_path / "2"
    one.write_bytes(b"ab")
    other.write_bytes(b"c")
    # FIPS 180-2, appendix B.1: the SHA-256 of "abc"
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digest(tmp_path) == known
    assert digest(one) == hashlib.sha256(b"ab").hexdigest()


def test_broken_links(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("gone")
    assert describe_broken_link(link) == "is a link to gone, which does not exist"
    assert (
        describe_broken_link(link / "a" / "b") == f"{link} is a link to gone, which does not exist"
    )
    assert path_exists(link)
    assert not path_exists(tmp_path / "gone")
    for folder in (link, link / "a"):
        with pytest.raises(PathError, match="is a link to gone, which does not exist"):
            make_folder(folder)
    make_folder(tmp_path / "gone")
    assert describe_broken_link(link) == ""
    make_folder(link / "a")
    assert (tmp_path / "gone" / "a").is_dir()


def test_a_file_in_the_way_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "a"):
        with pytest.raises(PathError, match="a file is in the way of this folder"):
            make_folder(folder)
