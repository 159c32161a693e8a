"""Shards of real videos: written, dealt out to nodes, and left and taken up in mid-epoch."""

from __future__ import annotations

import csv
import io
import json
import sys
import tarfile
from collections import Counter
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest

from demo_t2v.data.clips import CaptionedClip, ClipError, VideoClips
from demo_t2v.data.shards import ShardedClips, write_shards
from helpers.numbered_videos import damage, numbers, write_numbered

SMALL = {"frames": 4, "fps": 10.0, "resolution": 32}
COUNT = 22


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> VideoClips:
    """22 videos, their keys with dots and slashes, of one folder."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "a.b").mkdir()
    rows = [(f"a.b/{n}.x", f"caption {n}, 猫") for n in range(COUNT)]
    for n in range(COUNT):
        write_numbered(folder / "a.b" / f"{n}.x.mp4", 30 + n)
    with (folder / "a.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("videoid", "name"), *rows])
    return VideoClips(folder / "a.csv", folder, **SMALL)


@pytest.fixture(scope="module")
def shards(clips: VideoClips, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six shards: five of four videos and one of two."""
    folder = tmp_path_factory.mktemp("shards") / "of [clips]"
    sizes = sorted(clips.video(row)[1].stat().st_size for row in range(COUNT))
    assert write_shards(clips, folder, megabytes=sum(sizes[-3:]) * 1.001e-6) == COUNT
    return folder


def same(one: list[CaptionedClip], other: list[CaptionedClip]) -> bool:
    return [c.key for c in one] == [c.key for c in other] and all(
        np.array_equal(a.frames, b.frames) for a, b in zip(one, other, strict=True)
    )


def test_what_a_shard_holds(clips: VideoClips, shards: Path) -> None:
    files = sorted(shards.iterdir())
    assert [file.name for file in files] == [f"{n:05d}.tar" for n in range(6)]
    found = {}
    names = []
    for file in files:
        with tarfile.open(file) as tar:
            names += tar.getnames()
            for video, text in zip(*[iter(tar.getmembers())] * 2, strict=True):
                sample = json.loads(tar.extractfile(text).read())
                found[sample["key"]] = (sample["caption"], tar.extractfile(video).read())
    endings = [name for n in range(COUNT) for name in (f"{n:09d}.mp4", f"{n:09d}.json")]
    assert names == endings
    expected = {key: (text, f.read_bytes()) for key, f, text in map(clips.video, range(COUNT))}
    assert found == expected
    assert list(found) != list(expected)  # shuffled


def test_writing_is_deterministic_and_all_or_nothing(clips: VideoClips, tmp_path: Path) -> None:
    for name in "ab":
        write_shards(clips, tmp_path / name, megabytes=0.02, seed=3)
    one, other = ([f.read_bytes() for f in sorted((tmp_path / n).iterdir())] for n in "ab")
    assert one == other
    with pytest.raises(ClipError, match="a: already exists; name a new folder"):
        write_shards(clips, tmp_path / "a")
    with pytest.raises(OSError, match="File name too long"):
        write_shards(clips, tmp_path / ("c" * 300))
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a", "b"]


def test_an_epoch_has_every_clip_once_and_its_own_order(shards: Path) -> None:
    stream = ShardedClips(shards, threads=3, **SMALL)
    first, second = list(stream), list(stream)
    assert stream.epoch == 2
    for epoch in (first, second):
        assert Counter(c.key for c in epoch) == {f"a.b/{n}.x": 1 for n in range(COUNT)}
        for clip in epoch:
            number = clip.key.removeprefix("a.b/").removesuffix(".x")
            assert clip.caption == f"caption {number}, 猫"
            start = numbers(clip.frames)[0]
            assert numbers(clip.frames) == [start, start + 3, start + 6, start + 9]
    assert [c.key for c in first] != [c.key for c in second]
    starts = [{c.key: numbers(c.frames)[0] for c in epoch} for epoch in (first, second)]
    assert sum(starts[0][key] != starts[1][key] for key in starts[0]) > COUNT / 2
    assert same(first, list(ShardedClips(shards, **SMALL)))
    assert not same(first, list(ShardedClips(shards, seed=1, **SMALL)))


@pytest.mark.parametrize(("world_size", "rank"), [(1, 0), (2, 1), (4, 3)])
def test_a_stream_goes_on_where_it_stopped(shards: Path, world_size: int, rank: int) -> None:
    """Also when six shards cannot be dealt out evenly, and with clips decoded ahead."""
    node = {"rank": rank, "world_size": world_size, "threads": 2, **SMALL}
    for epoch in (0, 1):
        whole = ShardedClips(shards, **node)
        before = [clip for _ in range(epoch) for clip in whole]
        expected = list(whole)
        for given in (0, 1, len(expected) // 2, len(expected)):
            stream = ShardedClips(shards, **node)
            assert same([clip for _ in range(epoch) for clip in stream], before)
            begun = list(islice(stream, given))
            state = json.loads(json.dumps(stream.state_dict()))
            resumed = ShardedClips(shards, **node)
            resumed.load_state_dict(state)
            assert same(begun + list(resumed), expected)
            assert resumed.epoch == epoch + 1
            assert same(list(resumed), list(whole))
            whole.epoch = epoch + 1


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_nodes_share_an_epoch(shards: Path, world_size: int) -> None:
    parts = [
        [c.key for c in ShardedClips(shards, rank=rank, world_size=world_size, **SMALL)]
        for rank in range(world_size)
    ]
    assert Counter(chain(*parts)) == {f"a.b/{n}.x": 1 for n in range(COUNT)}
    assert min(len(part) for part in parts) >= COUNT // world_size - 4


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def test_bad_samples_are_left_out_counted_and_listed(tmp_path: Path) -> None:
    good = write_numbered(tmp_path / "a.mp4", 30).read_bytes()
    bad = damage(write_numbered(tmp_path / "b.mp4", 30), 0, 29).read_bytes()
    named = json.dumps({"key": "k", "caption": "c", "width": 64}).encode()
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, video, text in (
            ("good", good, named),
            ("damaged", bad, named),
            ("empty", b"", named),
            ("mute", good, json.dumps({"key": "k"}).encode()),
        ):
            add(tar, f"{name}.mp4", video)
            add(tar, f"{name}.json", text)
        add(tar, "lonely.json", named)
        add(tar, "last.json", named)
        add(tar, "last.mp4", good)
    stream = ShardedClips(tmp_path, **SMALL)
    assert [c.caption for c in stream] == ["c", "c"]
    assert (stream.bad.tried, stream.bad.failed) == (6, 4)
    assert set(stream.bad.reasons) == {"damaged", "empty", "mute", "lonely"}
    assert stream.bad.reasons["mute"] == "has no JSON with `key` and `caption`"
    assert stream.bad.reasons["lonely"] == "has no mp4"


def test_what_cannot_be_streamed(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ClipError, match=r"has no shards, files that end in \.tar"):
        ShardedClips(tmp_path, **SMALL)
    content = (shards / "00000.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(content[: len(content) // 2])
    with pytest.raises(ClipError, match="a shard is damaged"):
        list(ShardedClips(tmp_path, **SMALL))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ClipError, match=r"shards need datasets: pip install 'demo-t2v\[train\]'"):
        ShardedClips(shards, **SMALL)


def test_missing_videos_are_left_out_of_shards(clips: VideoClips, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("videoid,name\ngone,a\na.b/3.x,b\n,c\n", encoding="utf-8")
    folder = clips.video(0)[1].parent.parent
    some = VideoClips(tmp_path / "a.csv", folder, **SMALL)
    assert write_shards(some, tmp_path / "shards") == 1
    assert some.bad.reasons == {"gone": "No such file or directory", "row 3": "has no path"}
    assert [c.key for c in ShardedClips(tmp_path / "shards", **SMALL)] == ["a.b/3.x"]
    (tmp_path / "b.csv").write_text("videoid,name\ngone,a\n", encoding="utf-8")
    none = VideoClips(tmp_path / "b.csv", folder, **SMALL)
    with pytest.raises(ClipError, match=r"b\.csv: no video is there: gone \(No such file"):
        write_shards(none, tmp_path / "none")
    assert not (tmp_path / "none").exists()
