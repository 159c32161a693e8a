"""Clips from real files: a folder of numbered videos and its caption CSV."""

from __future__ import annotations

import csv
import os
import pickle
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from demo_t2v.data.captions import find_video, read_captions
from demo_t2v.data.clips import (
    BadVideos,
    CaptionedClip,
    ClipError,
    VideoClips,
    write_sprite_dataset,
)
from demo_t2v.data.sprites import draw_clip
from demo_t2v.data.video import Sampling, VideoError, read_video, sample_video
from helpers.numbered_videos import damage, numbers, write_numbered

DOC = Path(__file__).parent.parent / "docs" / "own_dataset.md"
SMALL = {"frames": 4, "fps": 10.0, "resolution": 32}


def write_csv(file: Path, rows: Sequence[Sequence[str]]) -> Path:
    with file.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(rows)
    return file


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four good videos of 60 frames at 30 a second, and three bad ones."""
    folder = tmp_path_factory.mktemp("videos")
    for name in ("1", "2", "3", "4"):
        write_numbered(folder / f"{name}.mp4", 60)
    damage(write_numbered(folder / "damaged.mp4", 60), 0, 59)
    (folder / "text.mp4").write_text("no video at all\n" * 20)
    write_numbered(folder / "short.mp4", 3)
    return folder


@pytest.fixture
def webvid(tmp_path: Path, videos: Path) -> VideoClips:
    rows = [(name, f"caption {name}", "page") for name in "1234"]
    captions = write_csv(tmp_path / "a.csv", [("videoid", "name", "page_dir"), *rows])
    return VideoClips(captions, videos, **SMALL)


def test_a_clip_is_its_index_and_seed(webvid: VideoClips) -> None:
    assert len(webvid) == 4
    starts = set()
    for seed in range(10):
        one, same = webvid.clip(2, seed), webvid.clip(2, seed)
        assert (one.key, one.caption, one.skipped) == ("3", "caption 3", ())
        assert one.frames.dtype == np.uint8
        assert one.frames.shape == (4, 32, 32, 3)
        np.testing.assert_array_equal(one.frames, same.frames)
        start, *_ = seen = numbers(one.frames)
        assert seen == [start, start + 3, start + 6, start + 9]
        starts.add(start)
    assert len(starts) > 5
    assert numbers(webvid.clip(0, 0).frames) != numbers(webvid.clip(1, 0).frames)


def test_defaults_are_sixteen_frames_three_a_second_256_wide(tmp_path: Path) -> None:
    write_numbered(tmp_path / "7.mp4", 161)
    captions = write_csv(tmp_path / "a.csv", [("videoid", "name"), ("7", "a")])
    clip = VideoClips(captions, tmp_path).clip(0, 0)
    assert clip.frames.shape == (16, 256, 256, 3)
    assert np.diff(numbers(clip.frames)).tolist() == [10] * 15


def test_other_columns_suffixes_and_captions(tmp_path: Path, videos: Path) -> None:
    nested = tmp_path / "videos" / "page"
    nested.mkdir(parents=True)
    for name in ("1.mp4", "2.mp4"):
        os.link(videos / name, nested / name)
    os.link(videos / "3.mp4", nested / "3.part.webm")  # what FFmpeg finds counts, not the ending
    rows = [
        ("page/1.mp4", "a dog, running"),
        ("page/2", "ein Bär\nim Schnee"),
        ("page/3.part.webm", "猫"),
    ]
    captions = write_csv(tmp_path / "a.csv", [("file", "text"), *rows])
    captions.write_bytes(b"\xef\xbb\xbf" + captions.read_bytes())  # as Excel begins a file
    clips = VideoClips(
        captions, tmp_path / "videos", path_column="file", caption_column="text", **SMALL
    )
    assert [(c.key, c.caption) for c in (clips.clip(row, 0) for row in range(3))] == rows
    joined = write_csv(tmp_path / "b.csv", [("name", "page_dir", "videoid"), ("x", "page", "1")])
    clips = VideoClips(joined, tmp_path / "videos", path_column="page_dir/videoid", **SMALL)
    assert clips.clip(0, 0).key == "page/1"


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("c", "c.MP4"),
        ("c.mp4", "c.MP4"),
        ("c.MP4", "c.mp4"),
        ("c.mov", "c.MOV"),
        ("v1.5", "v1.5.MP4"),
        ("f\u00fcr", "fu\u0308r.mp4"),  # composed in the table, decomposed on the disk
        ("fu\u0308r.mp4", "f\u00fcr.mp4"),
        ("f\u00fcr", "fu\u0308r.MP4"),
        ("caf\u00e9/\u00fcber", "cafe\u0301/\u00fcber.mp4"),
        ("\uac00", "\u1100\u1161.mp4"),
    ],
)
def test_names_in_other_forms(tmp_path: Path, videos: Path, key: str, name: str) -> None:
    file = tmp_path / "videos" / name
    file.parent.mkdir(parents=True)
    os.link(videos / "1.mp4", file)
    captions = write_csv(tmp_path / "a.csv", [("videoid", "name"), (key, "a")])
    clips = VideoClips(captions, tmp_path / "videos", **SMALL)
    assert clips.clip(0, 0).key == key
    assert clips.video(0)[1] == file


def test_the_name_as_it_is_comes_first(tmp_path: Path) -> None:
    for name in ("c", "c.mp4", "c.MP4"):
        (tmp_path / name).touch()
    names = [find_video(tmp_path, key).name for key in ("c", "c.mp4", "c.MP4", "C", "d")]
    assert names == ["c", "c.mp4", "c.MP4", "C.mp4", "d.mp4"]


def test_bad_videos_are_passed_over_counted_and_listed(tmp_path: Path, videos: Path) -> None:
    names = ["damaged", "1", "text", "short", "missing", "", "2", "3"]
    rows = [(name, "" if name == "3" else f"caption {name}") for name in names]
    captions = write_csv(tmp_path / "a.csv", [("videoid", "name"), *rows])
    clips = VideoClips(captions, videos, **SMALL)
    for row in range(len(names)):
        clip, same = clips.clip(row, 5), VideoClips(captions, videos, **SMALL).clip(row, 5)
        assert clip.key in ("1", "2")
        assert clip.caption == f"caption {clip.key}"
        np.testing.assert_array_equal(clip.frames, same.frames)
        assert (clip.key, clip.skipped) == (same.key, same.skipped)
        assert len(clip.skipped) > 0 or row in (1, 6)
    assert clips.clip(3, 5).skipped[0] == "short: has 3 frames, a clip takes 4"
    assert clips.bad.tried == clips.bad.failed + len(names) + 1
    reasons = clips.bad.reasons
    assert set(reasons) == {"damaged", "text", "short", "missing", "row 6", "3"}
    assert reasons["missing"] == "No such file or directory"
    assert reasons["3"] == "has no caption"
    assert reasons["row 6"] == "has no path"
    assert "no video that FFmpeg can read" in reasons["text"]
    assert reasons["damaged"] == "holds no frames that can be decoded"
    # Another seed draws other replacements.
    assert len({clips.clip(0, seed).key for seed in range(12)}) == 2


def test_too_many_bad_videos_end_the_search(tmp_path: Path, videos: Path) -> None:
    rows = [(f"gone{n}" if n % 5 == 0 else "1", "a") for n in range(200)]
    captions = write_csv(tmp_path / "a.csv", [("videoid", "name"), *rows])
    clips = VideoClips(captions, videos, **SMALL)
    expected = (
        r"a\.csv: \d+ of 1\d\d videos could not be used, more than the share of 0\.1 that may be "
        r"bad: gone0 \(No such file or directory\), gone5 .*, gone10 .*, \.\.\.$"
    )
    with pytest.raises(ClipError, match=expected):
        [clips.clip(row, 0) for row in range(200)]
    assert clips.bad.tried >= 100  # not before there is something to judge by
    patient = VideoClips(captions, videos, max_bad_share=0.5, **SMALL)
    assert all(patient.clip(row, 0).key == "1" for row in range(200))


def test_nothing_but_bad_videos(tmp_path: Path, videos: Path) -> None:
    rows = [("missing", "a"), ("text", "b")]
    captions = write_csv(tmp_path / "a.csv", [("videoid", "name"), *rows])
    with pytest.raises(ClipError, match="100 of 100 videos could not be used"):
        VideoClips(captions, videos, **SMALL).clip(0, 0)
    patient = VideoClips(captions, videos, max_bad_share=1.0, **SMALL)
    with pytest.raises(ClipError, match="none of 100 videos in a row could be used: missing"):
        patient.clip(0, 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no column 'videoid'; the columns are none"),
        ("videoid,name\n", "names no videos, it has only a header"),
        ("id,name,page\n1,a,b\n", "has no column 'videoid'; the columns are id, name, page"),
        ("videoid,text\n1,a\n", "has no column 'name'; the columns are videoid, text"),
        ("videoid,name\n1,a dog, running\n", "line 2: has 3 columns, not 2; quote cells"),
        ('videoid,name\n1,"a "big" dog"\n', "line 2: is not valid CSV"),
    ],
)
def test_a_csv_that_cannot_be_used(tmp_path: Path, content: str, message: str) -> None:
    captions = tmp_path / "captions.csv"
    captions.write_text(content)
    with pytest.raises(ClipError, match=r"captions\.csv.*" + re.escape(message)):
        VideoClips(captions, tmp_path)


def test_files_that_are_not_there(tmp_path: Path, webvid: VideoClips) -> None:
    with pytest.raises(ClipError, match=r"none\.csv: cannot be read \(No such file"):
        VideoClips(tmp_path / "none.csv", tmp_path)
    with pytest.raises(ClipError, match="nowhere: is no folder of videos"):
        VideoClips(tmp_path / "a.csv", tmp_path / "nowhere")
    (tmp_path / "latin.csv").write_bytes("videoid,name\n1,Bär\n".encode("latin-1"))
    with pytest.raises(ClipError, match=r"latin\.csv: is not UTF-8 text"):
        list(read_captions(tmp_path / "latin.csv", "videoid", "name"))
    with pytest.raises(IndexError, match="no row 4 of 4"):
        webvid.clip(4, 0)
    with pytest.raises(ClipError, match="a share from 0 to 1, not 10"):
        BadVideos("x", 10)
    with pytest.raises(VideoError, match="should be positive"):
        VideoClips(tmp_path / "a.csv", tmp_path, fps=0)


class Clips:
    """A source for torch's DataLoader: the sampler yields pairs (index, seed)."""

    def __init__(self, source: VideoClips) -> None:
        self.source = source

    def __getitem__(self, item: tuple[int, int]) -> CaptionedClip:
        return self.source.clip(*item)


@pytest.mark.usefixtures("forks")
def test_workers_give_the_same_clips(webvid: VideoClips) -> None:
    items = [(index, seed) for seed in (0, 1) for index in range(4)]
    here = [webvid.clip(*item) for item in items]
    loader = DataLoader(Clips(webvid), None, sampler=items, num_workers=2)
    for clip, expected in zip(loader, here, strict=True):
        assert (clip.key, clip.caption) == (expected.key, expected.caption)
        np.testing.assert_array_equal(clip.frames, expected.frames)
    spawned = pickle.loads(pickle.dumps(webvid))
    np.testing.assert_array_equal(spawned.clip(1, 3).frames, webvid.clip(1, 3).frames)


def test_reading_leaves_no_file_open(webvid: VideoClips) -> None:
    if not Path("/proc/self/fd").exists():
        pytest.skip("there is no /proc here")
    kept = [webvid.clip(index % 4, index) for index in range(40)]
    assert len(kept) == 40
    links = [file for file in Path("/proc/self/fd").iterdir() if file.is_symlink()]
    assert [file for file in map(os.path.realpath, links) if file.endswith(".mp4")] == []


def test_the_example_of_the_documentation(tmp_path: Path, videos: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)
    for name in ("1", "2"):
        os.link(videos / f"{name}.mp4", tmp_path / f"{name}.mp4")
        (tmp_path / f"{name}.txt").write_text(f"caption {name}\n", encoding="utf-8")
    names: dict[str, type] = {}
    exec(compile(example, DOC, "exec"), names)
    source = names["TextBesideVideo"](tmp_path, Sampling(**SMALL))
    assert len(source) == 2
    clip = source.clip(1, 7)
    assert (clip.key, clip.caption) == ("2", "caption 2")
    start = numbers(clip.frames)[0]
    assert numbers(clip.frames) == [start, start + 3, start + 6, start + 9]
    assert source.clip(0, 0).key == "1"


def test_sprites_as_real_videos(tmp_path: Path) -> None:
    calls: list[None] = []
    captions = write_sprite_dataset(tmp_path, 3, seed=4, on_clip=lambda: calls.append(None))
    assert len(calls) == 3
    files = {file: file.read_bytes() for file in (tmp_path / "videos").iterdir()}
    assert sorted(file.suffix for file in files) == [".mp4"] * 3
    clips = VideoClips(captions, tmp_path / "videos", resolution=64)
    assert len(clips) == 3
    for index in range(3):
        truth = draw_clip(np.random.default_rng([4, index]), 64, 16)
        clip = clips.clip(index, seed=0)
        assert clip.caption == truth.caption
        # Sixteen frames, three a second: the whole video, whatever the seed.
        assert np.abs(clip.frames.astype(float) - truth.frames).mean() < 4
    # A second run keeps what is there and makes what is missing.
    first, *_ = files
    shown = read_video(first)[0]
    first.unlink()
    times = {file: file.stat().st_mtime_ns for file in files if file != first}
    before = captions.read_bytes()
    write_sprite_dataset(tmp_path, 3, seed=4)
    assert {file: file.stat().st_mtime_ns for file in times} == times
    assert np.abs(read_video(first)[0].astype(float) - shown).mean() < 1
    assert captions.read_bytes() == before
    assert sorted(tmp_path.rglob("*.partial")) == []


def test_another_run_is_never_taken_for_this_one(tmp_path: Path) -> None:
    write_sprite_dataset(tmp_path, 1, seed=1, resolution=32, frames=4)
    captions = write_sprite_dataset(tmp_path, 1, seed=2, resolution=48, frames=6, fps=8)
    (name, _), *_ = read_captions(captions, "videoid", "name")
    frames, fps = read_video(tmp_path / "videos" / f"{name}.mp4")
    assert (frames.shape, fps) == ((6, 48, 48, 3), 8)
    assert len(list((tmp_path / "videos").iterdir())) == 2


def test_sprites_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ClipError, match="at least one clip, not 0"):
        write_sprite_dataset(tmp_path, 0)
    with pytest.raises(VideoError, match="even width and height"):
        write_sprite_dataset(tmp_path, 1, resolution=33)
    assert not (tmp_path / "captions.csv").exists()
    assert list((tmp_path / "videos").iterdir()) == []


def test_sampling_is_the_same_inside_and_outside_of_a_dataset(
    webvid: VideoClips, videos: Path
) -> None:
    frames = sample_video(videos / "2.mp4", Sampling(**SMALL), np.random.default_rng([9, 1]))
    np.testing.assert_array_equal(webvid.clip(1, 9).frames, frames)
