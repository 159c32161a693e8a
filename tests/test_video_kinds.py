"""Every draw gives a clip with the right frames, whatever the container and the codec."""

from __future__ import annotations

import os
from bisect import bisect_right
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import Interpolation

from demo_t2v.data.decoding import Footage
from demo_t2v.data.video import Sampling, VideoError, sample_video
from helpers.numbered_videos import numbers
from helpers.video_kinds import KINDS, RATE, VARIABLE, Kind, write_kind

SAMPLING = Sampling(16, 3.0, 64)
os.environ.setdefault("SVT_LOG", "1")  # errors only


def make(folder: Path, kind: Kind) -> Path:
    if kind.codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no encoder {kind.codec}")
    return write_kind(folder / "video", kind)


def decoded(file: Path, kind: Kind) -> tuple[list[Fraction], list[int]]:
    """When each frame appears, in seconds, and its number: all of the file, by FFmpeg alone."""
    with av.open(str(file)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        packets = [packet for packet in container.demux(video=0) if not packet.is_corrupt]
        frames = [frame for packet in packets for frame in packet.decode()]
        times = [frame.pts * frame.time_base for frame in frames] if kind.timed else []
    size = min(kind.size)
    top, left = ((side - size) // 2 for side in kind.size)
    pictures = np.stack([frame.to_ndarray(format="rgb24") for frame in frames])
    shown = numbers(pictures[:, top : top + size, left : left + size])
    return times or [Fraction(index, RATE) for index in range(len(shown))], shown


def possible(times: list[Fraction], shown: list[int]) -> list[list[int]]:
    """All clips of a video of a steady rate."""
    grid = [RATE * index // 3 + Fraction(1, 2) for index in range(SAMPLING.frames)]
    starts = range(round((times[-1] - times[0]) * RATE) - RATE * (SAMPLING.frames - 1) // 3 + 1)
    return [
        [shown[bisect_right(times, times[0] + (start + at) / RATE) - 1] for at in grid]
        for start in starts
    ]


def keeps_pace(times: list[Fraction], shown: list[int], seen: list[int]) -> bool:
    """Whether all of `seen` are on the screen a third of a second apart, to one frame."""
    places = [shown.index(number) for number in seen]
    ends = [*times[1:], times[-1] + 1]
    late = max(times[place] - Fraction(index, 3) for index, place in enumerate(places))
    early = min(ends[place] - Fraction(index, 3) for index, place in enumerate(places))
    return late < early + Fraction(1, RATE)


def check(file: Path, kind: Kind, draws: int) -> int:
    """How many draws succeed; each of them shows the right frames."""
    times, shown = decoded(file, kind)
    clips = possible(times, shown)
    succeeded = 0
    for seed in range(draws):
        try:
            clip = sample_video(file, SAMPLING, np.random.default_rng(seed))
        except (VideoError, OSError):
            continue
        seen = numbers(np.rot90(clip, -kind.rotation // 90, axes=(1, 2)))
        assert seen in clips or (kind.times is VARIABLE and keeps_pace(times, shown, seen))
        succeeded += 1
    return succeeded


@pytest.mark.parametrize("name", KINDS)
def test_every_draw_gives_a_clip(tmp_path: Path, name: str) -> None:
    file = make(tmp_path, KINDS[name])
    assert check(file, KINDS[name], draws=6) == 6
    times, _ = decoded(file, KINDS[name])
    with closing(Footage(file)) as video:
        assert (video.last - video.first) * video.time_base == times[-1] - times[0]


@pytest.mark.slow
def test_draws_of_all_kinds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = {}
    for number, (name, kind) in enumerate(KINDS.items()):
        if kind.codec in av.codecs_available:
            table[name] = check(write_kind(tmp_path / str(number), kind), kind, draws=40)
    with capsys.disabled():
        print(f"\n{len(table)} kinds, {sum(table.values())} of {40 * len(table)} draws")
        for name, clips in table.items():
            print(f"{name:36}{clips} of 40")
    assert set(table.values()) == {40}


CASES = Path(__file__).parent / "data" / "videos"
EXACT = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
"""How chroma is enlarged where frames are compared; other ways differ at coloured edges."""


@pytest.mark.parametrize(
    ("name", "frames"), [("edit_list.mp4", 102), ("longer_audio.mkv", 75), ("offset_start.mkv", 75)]
)
def test_files_of_others(name: str, frames: int) -> None:
    """Cut, muxed and recorded by other programs; 25 frames a second each."""
    with av.open(str(CASES / name)) as container:
        every = [
            frame.reformat(format="rgb24", interpolation=EXACT).to_ndarray()
            for frame in container.decode(video=0)
        ]
    assert len(every) == frames
    sampling = Sampling(8, 25.0, min(every[0].shape[:2]))
    starts = set()
    for seed in range(40):
        clip = sample_video(CASES / name, sampling, np.random.default_rng(seed))
        start = sampling.indices(frames, Fraction(25), np.random.default_rng(seed))[0]
        starts.add(start)
        height, width = every[0].shape[:2]
        top, left = (height - sampling.resolution) // 2, (width - sampling.resolution) // 2
        whole = np.stack(every[start : start + 8])[:, top:, left:]
        whole = whole[:, : sampling.resolution, : sampling.resolution]
        np.testing.assert_allclose(clip.astype(float), whole, atol=3)
    assert max(starts) + 8 > frames - 5
