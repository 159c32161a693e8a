"""Reading and writing video files."""

from fractions import Fraction
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from demo_t2v.data.video import (
    Format,
    Sampling,
    VideoError,
    gif_bytes,
    read_video,
    sample_video,
    write_video,
)
from helpers.numbered_videos import damage, numbers, write_numbered
from helpers.video_kinds import write_song

NAMES = ["12:30/x", "file:x", "http:x", "concat:x|y", "a:", "%d", "-"]


@pytest.mark.parametrize("kind", ["mp4", "webm", "gif"])
@pytest.mark.parametrize("name", NAMES)
def test_relative_names_that_ffmpeg_would_take_for_protocols(
    frames: NDArray[np.uint8],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    kind: Format,
) -> None:
    monkeypatch.chdir(tmp_path)
    file = Path(f"{name}.{kind}" if name != "-" else name)
    file.parent.mkdir(exist_ok=True)
    write_video(frames, file, 8, kind)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [tmp_path / file]
    assert len(read_video(file)[0]) == len(frames)
    clip = sample_video(file, Sampling(4, 8, 32), np.random.default_rng(0))
    assert clip.shape == (4, 32, 32, 3)
    with pytest.raises(FileNotFoundError):
        read_video(Path(f"gone:{name}"))


@pytest.fixture(scope="module")
def frames() -> NDArray[np.uint8]:
    """Twelve frames, 48 wide and 32 high: a green square walks to the right over red."""
    clip = np.zeros((12, 32, 48, 3), dtype=np.uint8)
    clip[:] = (200, 40, 90)
    for index in range(12):
        clip[index, 8:24, 2 + 2 * index : 18 + 2 * index] = (20, 220, 40)
    return clip


@pytest.mark.parametrize(
    ("kind", "codec", "pixels"),
    [("mp4", "h264", "yuv420p"), ("webm", "vp9", "yuv420p"), ("gif", "gif", None)],
)
def test_formats(
    tmp_path: Path, frames: NDArray[np.uint8], kind: Format, codec: str, pixels: str | None
) -> None:
    file = tmp_path / "clip.partial"  # the format never depends on the name
    write_video(frames, file, fps=10, format=kind)
    with av.open(str(file)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == codec
        assert (stream.width, stream.height) == (48, 32)
        assert pixels is None or stream.pix_fmt == pixels
    read, fps = read_video(file)
    assert read.shape == frames.shape
    assert fps == 10
    # Inside of the square and far from it the colours are the ones that went in.
    for index in (0, 5, 11):
        assert np.abs(read[index, 16, 10 + 2 * index] - np.array([20.0, 220, 40])).max() < 12
        assert np.abs(read[index, 2, 2] - np.array([200.0, 40, 90])).max() < 12


COLOURS = {
    "green": (0, 255, 0),
    "red": (255, 0, 0),
    "blue": (0, 0, 255),
    "white": (255, 255, 255),
    "gray": (128, 128, 128),
    "black": (0, 0, 0),
    "skin": (224, 172, 105),
}


@pytest.mark.parametrize("kind", ["mp4", "webm"])
@pytest.mark.parametrize("colour", COLOURS.values(), ids=COLOURS)
def test_colours_are_those_that_the_file_states(
    tmp_path: Path, kind: Format, colour: tuple[int, int, int]
) -> None:
    """By the equations of ITU-R BT.709 for 8 bits, limited range, on the planes as decoded."""
    file = tmp_path / "a"
    write_video(np.full((3, 32, 48, 3), colour, dtype=np.uint8), file, fps=8, format=kind)
    with av.open(str(file)) as container:
        stream = container.streams.video[0]
        stated = (stream.colorspace, stream.color_primaries, stream.color_trc, stream.color_range)
        frame = next(container.decode(stream))
    assert stated == (1, 1, 1, 1)  # BT.709 three times, limited range
    luma, blue, red = (
        np.frombuffer(plane, np.uint8).reshape(plane.height, -1)[:, : plane.width].mean()
        for plane in frame.planes
    )
    y, pb, pr = (luma - 16) / 219, (blue - 128) / 224, (red - 128) / 224
    r, b = y + 1.5748 * pr, y + 1.8556 * pb
    g = (y - 0.2126 * r - 0.0722 * b) / 0.7152
    np.testing.assert_allclose([255 * r, 255 * g, 255 * b], colour, atol=3)
    # What players that look at the container alone find.
    tags = {"mp4": b"colrnclx" + bytes([0, 1, 0, 1, 0, 1]), "webm": b"\x55\xb1\x81\x01"}
    assert tags[kind] in file.read_bytes()
    sampled = sample_video(file, Sampling(2, 8.0, 16), np.random.default_rng(0))
    for read in (read_video(file)[0], sampled):
        np.testing.assert_allclose(read.mean((0, 1, 2)), colour, atol=2)


def test_mp4_can_be_played_while_it_loads(tmp_path: Path, frames: NDArray[np.uint8]) -> None:
    write_video(frames, tmp_path / "a.mp4", fps=8, format="mp4")
    content = (tmp_path / "a.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


@pytest.mark.parametrize("kind", ["mp4", "webm", "gif"])
def test_the_same_frames_are_the_same_file(tmp_path: Path, kind: Format) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    found = set()
    for _ in range(60):
        write_video(noise, tmp_path / "video", 8, kind)
        found.add((tmp_path / "video").read_bytes())
        (tmp_path / "video").unlink()
    assert len(found) == 1


def test_a_single_frame(tmp_path: Path, frames: NDArray[np.uint8]) -> None:
    for kind in ("mp4", "webm", "gif"):
        write_video(frames[:1], tmp_path / kind, fps=8, format=kind)  # type: ignore[arg-type]
        assert len(read_video(tmp_path / kind)[0]) == 1


def test_identical_frames_stay_all(tmp_path: Path, frames: NDArray[np.uint8]) -> None:
    still = np.repeat(frames[:1], 9, axis=0)
    for kind in ("mp4", "webm", "gif"):
        write_video(still, tmp_path / kind, fps=8, format=kind)  # type: ignore[arg-type]
        assert len(read_video(tmp_path / kind)[0]) == 9


def test_gif_bytes_are_those_of_a_file(tmp_path: Path, frames: NDArray[np.uint8]) -> None:
    write_video(frames, tmp_path / "a.gif", fps=8, format="gif")
    assert gif_bytes(frames, 8) == (tmp_path / "a.gif").read_bytes()
    with av.open(BytesIO(gif_bytes(frames, 7.5))) as container:
        assert abs(float(container.streams.video[0].average_rate) - 7.5) < 0.2
    assert gif_bytes(frames[:1], 90).startswith(b"GIF89a")


def test_gif_plays_at_the_right_speed(tmp_path: Path, frames: NDArray[np.uint8]) -> None:
    """Gif counts in hundredths of a second, 1/8 s does not fit: the sum must all the same."""
    write_video(frames, tmp_path / "a.gif", fps=8, format="gif")
    with av.open(str(tmp_path / "a.gif")) as container:
        times = [Fraction(f.pts or 0) * (f.time_base or 0) for f in container.decode(video=0)]
    assert times[8] == 1
    assert max(abs(t - Fraction(i, 8)) for i, t in enumerate(times)) <= Fraction(1, 100)


def test_png_is_exact(tmp_path: Path, frames: NDArray[np.uint8]) -> None:
    write_video(frames, tmp_path / "clip", fps=8, format="png")
    files = sorted((tmp_path / "clip").iterdir())
    assert [f.name for f in files] == [f"{i:04d}.png" for i in range(12)]
    for file, frame in zip(files, frames, strict=True):
        with Image.open(file) as image:
            np.testing.assert_array_equal(np.asarray(image), frame)


def test_odd_sizes(tmp_path: Path) -> None:
    odd = np.zeros((2, 31, 33, 3), dtype=np.uint8)
    for kind in ("mp4", "webm"):
        with pytest.raises(VideoError, match="even width and height, not 33x31"):
            write_video(odd, tmp_path / "a", fps=8, format=kind)  # type: ignore[arg-type]
    assert not (tmp_path / "a").exists()
    write_video(odd, tmp_path / "a.gif", fps=8, format="gif")
    assert read_video(tmp_path / "a.gif")[0].shape == odd.shape


def test_what_cannot_be_written(tmp_path: Path, frames: NDArray[np.uint8]) -> None:
    with pytest.raises(VideoError, match="at most 50 frames a second, not 60"):
        write_video(frames, tmp_path / "a", fps=60, format="gif")
    with pytest.raises(VideoError, match="uint8"):
        write_video(frames.astype(np.float32), tmp_path / "a", fps=8, format="mp4")  # type: ignore[arg-type]
    with pytest.raises(VideoError, match="use one of mp4, webm, gif, png"):
        write_video(frames, tmp_path / "a", fps=8, format="avi")  # type: ignore[arg-type]
    with pytest.raises(OSError, match="No such file"):
        write_video(frames, tmp_path / "nowhere" / "a", fps=8, format="mp4")


def test_what_is_no_video(tmp_path: Path) -> None:
    text = tmp_path / "a.mp4"
    text.write_text("this is no video\n" * 50)
    with pytest.raises(VideoError, match=r"a\.mp4"):
        read_video(text)
    with pytest.raises(OSError, match="No such file"):
        read_video(tmp_path / "missing.mp4")


@pytest.mark.parametrize("kind", ["mp4", "webm", "gif"])
def test_a_full_device_is_an_error(frames: NDArray[np.uint8], kind: Format) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full here")
    with pytest.raises(OSError, match=r"No space left|disk full"):
        write_video(frames, full, fps=8, format=kind)


EVERY_TENTH = [10 * i for i in range(16)]
# Every third of a second at 25 frames a second is every 8 1/3 frames, rounded down.
AT_25_FPS = [0, 8, 16, 25, 33, 41, 50, 58, 66, 75, 83, 91, 100, 108, 116, 125]


@pytest.mark.parametrize(
    ("total", "rate", "expected"),
    [
        (151, 30, EVERY_TENTH),  # the shortest video that three a second fit into
        (126, 25, AT_25_FPS),
        (46, 30, list(range(0, 46, 3))),  # too short: spread over all of it
        (60, 30, [0, 3, 7, 11, 15, 19, 23, 27, 31, 35, 39, 43, 47, 51, 55, 59]),  # 59/15 apart
        (16, 30, list(range(16))),
        (16, 2, list(range(16))),  # slower than three a second: none is taken twice
    ],
)
def test_sampled_indices(total: int, rate: int, expected: list[int]) -> None:
    assert Sampling(16, 3.0).indices(total, Fraction(rate), np.random.default_rng(0)) == expected


@pytest.mark.parametrize(
    ("total", "expected"),
    [
        (1, [0] * 16),
        (5, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 4]),  # 4/15 apart, rounded down
        (15, [0, 0, *range(1, 14), 14]),
        (16, list(range(16))),
        (151, EVERY_TENTH),
    ],
)
def test_short_videos_repeat_frames_where_that_is_asked_for(
    tmp_path: Path, total: int, expected: list[int]
) -> None:
    file = write_numbered(tmp_path / "a.mp4", total)
    clip = sample_video(file, Sampling(16, 3.0, 64, True), np.random.default_rng(0))
    assert numbers(clip) == expected
    if total < 16:
        with pytest.raises(VideoError, match=f"has {total} frames, a clip takes 16"):
            sample_video(file, Sampling(16, 3.0, 64), np.random.default_rng(0))


@given(
    st.integers(1, 40),
    st.floats(0.1, 60),
    st.integers(1, 5000),
    st.fractions(1, 120, max_denominator=1001),
    st.integers(0, 2**32),
)
def test_indices_rise_inside_of_the_video(
    frames: int, fps: float, total: int, rate: Fraction, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    if total < frames:
        with pytest.raises(VideoError, match=f"has {total} frames, a clip takes {frames}"):
            Sampling(frames, fps).indices(total, rate, rng)
        return
    chosen = Sampling(frames, fps).indices(total, rate, rng)
    assert len(chosen) == frames
    assert chosen[0] >= 0
    assert chosen[-1] < total
    assert all(b > a for a, b in pairwise(chosen))


@pytest.mark.parametrize(
    ("container", "codec", "options"),
    [
        ("mp4", "libx264", {"g": "40"}),
        ("mp4", "libx264", {"g": "40", "x264-params": "open-gop=1:bframes=8:b-adapt=0"}),
        ("mp4", "libx264", {"bf": "0"}),
        ("webm", "libvpx-vp9", {"g": "40", "cpu-used": "8", "deadline": "realtime"}),
        ("matroska", "libx264", {"g": "40"}),
        ("mpegts", "libx264", {"g": "40"}),
        ("avi", "mpeg4", {"g": "12"}),
    ],
)
def test_a_clip_shows_the_frames_of_its_times(
    tmp_path: Path, container: str, codec: str, options: dict[str, str]
) -> None:
    file = write_numbered(tmp_path / "a", 170, format=container, codec=codec, **options)
    starts = set()
    for seed in range(12):
        clip = sample_video(file, Sampling(16, 3.0, 64), np.random.default_rng(seed))
        start, *_ = seen = numbers(clip)
        assert seen == [start + index for index in EVERY_TENTH]
        starts.add(start)
    assert starts <= set(range(20))
    assert len(starts) > 5


@pytest.mark.parametrize("b_frames", ["0", "3"])
def test_a_variable_rate_keeps_its_pace(tmp_path: Path, b_frames: str) -> None:
    """One second of 16 frames, then 14 in two: frames are found by time, not by their number.

    The last of the 30 frames appears at 2.86 s, so every 5.8th is taken in its middle: at 0.05,
    0.54, 1.13, 1.72, 2.32 and 2.91 s.
    """
    times = [round(62.5 * i) for i in range(16)] + [round(1000 + i * 2000 / 14) for i in range(14)]
    file = write_numbered(tmp_path / "a.mp4", 30, milliseconds=times, bf=b_frames)
    clip = sample_video(file, Sampling(6, 10 / 5.8, 64), np.random.default_rng(0))
    assert numbers(clip) == [0, 8, 16, 21, 25, 29]


@pytest.mark.parametrize("container", ["mp4", "matroska", "avi"])
def test_a_slow_video_gives_one_frame_after_another(tmp_path: Path, container: str) -> None:
    file = write_numbered(tmp_path / "a", 4, rate=1, format=container)
    clip = sample_video(file, Sampling(4, 3.0, 64), np.random.default_rng(0))
    assert numbers(clip) == [0, 1, 2, 3]
    with pytest.raises(VideoError, match=r"^has 4 frames, a clip takes 5$"):
        sample_video(file, Sampling(5, 3.0, 64), np.random.default_rng(0))


class Counted(BytesIO):
    """A file in memory that counts the bytes that are read."""

    count = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.count += len(data)
        return data


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts", "avi"])
def test_a_clip_of_a_long_video_reads_little_of_it(tmp_path: Path, container: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (10, 256, 256, 3), dtype=np.uint8)
    file = tmp_path / "a"
    with av.open(str(file), "w", format=container) as out:
        stream = out.add_stream("mpeg4", rate=25, options={"g": "12", "b": "4M"})
        stream.height, stream.width, stream.pix_fmt = 256, 256, "yuv420p"
        for number in range(500):
            frame = av.VideoFrame.from_ndarray(noise[number % 10])
            frame.pts, frame.time_base = number, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    for seed in range(5):
        source = Counted(file.read_bytes())
        sample_video(source, Sampling(4, 10.0, 64), np.random.default_rng(seed))
        assert source.count < file.stat().st_size / 4


def test_only_what_the_clip_needs_is_decoded(tmp_path: Path) -> None:
    """Damage before the clip's keyframe does no harm, damage inside of the clip is found."""
    keyframes = {"g": "30", "x264-params": "scenecut=0"}
    file = damage(write_numbered(tmp_path / "a.mp4", 180, **keyframes), 30, 59)
    sampling, whole, damaged = Sampling(8, 15.0, 64), 0, 0
    for seed in range(40):
        first, *_, last = sampling.indices(180, Fraction(30), np.random.default_rng(seed))
        rng = np.random.default_rng(seed)
        if last < 28 or first >= 60:
            assert numbers(sample_video(file, sampling, rng)) == list(range(first, first + 15, 2))
            whole += 1
        elif last >= 32 and first < 58:
            with pytest.raises(VideoError, match=r"damaged|no video that FFmpeg can read"):
                sample_video(file, sampling, rng)
            damaged += 1
    assert whole > 10
    assert damaged > 3


def test_what_follows_a_damaged_frame_is_damaged_too(tmp_path: Path) -> None:
    """FFmpeg hides the damage, and marks only the one frame: others lean on it all the same."""
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
    file = tmp_path / "a.mp4"
    write_video(np.stack([np.roll(texture, n, axis=1) for n in range(90)]), file, 30, "mp4")
    damage(file, 10, 10, intact=0.7)
    sampling = Sampling(4, 30.0, 64)
    seeds = range(30)
    starts = [sampling.indices(90, Fraction(30), np.random.default_rng(s))[0] for s in seeds]
    late = next(seed for seed in seeds if 20 < starts[seed] < 60)
    with pytest.raises(VideoError, match=r"damaged|no video that FFmpeg can read"):
        sample_video(file, sampling, np.random.default_rng(late))


def test_a_video_that_is_shorter_than_it_states(tmp_path: Path) -> None:
    """Matroska states its length at the beginning; its last frame is cut off here."""
    file = write_numbered(tmp_path / "a.mkv", 31, format="matroska", bf="0")
    with av.open(str(file)) as container:
        *_, last, _ = container.demux(video=0)
    file.write_bytes(file.read_bytes()[: last.pos])
    # For every other frame it is too short by one.
    clip = sample_video(file, Sampling(16, 15.0, 64), np.random.default_rng(0))
    assert numbers(clip) == [0, *range(1, 30, 2)]
    with pytest.raises(VideoError, match=r"^has 30 frames, a clip takes 31$"):
        sample_video(file, Sampling(31, 30.0, 64), np.random.default_rng(0))


@pytest.mark.parametrize("size", [(64, 128), (128, 64), (64, 64), (70, 64), (256, 320)])
def test_the_middle_square(tmp_path: Path, size: tuple[int, int]) -> None:
    file = write_numbered(tmp_path / "a.mp4", 20, size=size)
    for side in (32, 64, 100):
        clip = sample_video(file, Sampling(4, 15.0, side), np.random.default_rng(1))
        assert clip.shape == (4, side, side, 3)
        start = numbers(clip)[0]
        assert numbers(clip) == [start, start + 2, start + 4, start + 6]
        red = clip[..., 0].astype(int) - clip[..., 1]
        assert (red[:, 4:-4, 4:-4] < 60).all()  # what lies round the square was cut off


def test_colours_survive_scaling(tmp_path: Path) -> None:
    gray = np.full((6, 72, 128, 3), 255, dtype=np.uint8)
    gray[:, ::2] = 0  # thin lines, which are gray from far away: four to each new pixel
    write_video(gray, tmp_path / "a.mp4", 10, "mp4")
    clip = sample_video(tmp_path / "a.mp4", Sampling(3, 10.0, 18), np.random.default_rng(0))
    assert np.abs(clip[:, 3:-3, 3:-3].astype(float) - 127).max() < 12


@pytest.mark.parametrize(("rotation", "turns"), [(90, 1), (-90, -1), (180, 2)])
def test_a_stated_rotation_is_heeded(tmp_path: Path, rotation: int, turns: int) -> None:
    straight = write_numbered(tmp_path / "a.mp4", 20)
    turned = write_numbered(tmp_path / "b.mp4", 20, rotation=rotation)
    clips = [
        sample_video(file, Sampling(4, 30.0, 64), np.random.default_rng(3))
        for file in (straight, turned)
    ]
    np.testing.assert_array_equal(clips[1], np.rot90(clips[0], turns, axes=(1, 2)))


def test_pixels_that_are_not_square(tmp_path: Path) -> None:
    """A frame 64 by 64 whose pixels are twice as wide as high is shown 128 by 64."""
    file = write_numbered(tmp_path / "a.mp4", 20, pixel=Fraction(2))
    clip = sample_video(file, Sampling(4, 30.0, 64), np.random.default_rng(3))
    # Only the middle half is seen: four of the eight stripes, those of bits 2 to 5.
    bits = clip[:, 32, [8, 24, 40, 56]].mean(-1) > 128
    seen = (bits @ (4 << np.arange(4))).tolist()
    start = Sampling(4, 30.0, 64).indices(20, Fraction(30), np.random.default_rng(3))[0]
    assert seen == [(start + index) & 0b111100 for index in range(4)]


def test_clips_from_memory(tmp_path: Path) -> None:
    file = write_numbered(tmp_path / "a.mp4", 60)
    sampling = Sampling(4, 3.0, 64)
    one = sample_video(file, sampling, np.random.default_rng(5))
    other = sample_video(BytesIO(file.read_bytes()), sampling, np.random.default_rng(5))
    np.testing.assert_array_equal(one, other)


def test_what_cannot_be_sampled(tmp_path: Path) -> None:
    rng, sampling = np.random.default_rng(0), Sampling(16, 3.0, 64)
    short = write_numbered(tmp_path / "short.mp4", 9)
    with pytest.raises(VideoError, match=r"^has 9 frames, a clip takes 16$"):
        sample_video(short, sampling, rng)
    text = tmp_path / "text.mp4"
    text.write_text("this is no video\n" * 50)
    with pytest.raises(VideoError, match=r"^is no video that FFmpeg can read \(Invalid data"):
        sample_video(text, sampling, rng)
    sound = tmp_path / "sound.mp4"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), "fltp", "mono")
        silence.sample_rate = 8000
        container.mux(stream.encode(silence))
        container.mux(stream.encode())
    with pytest.raises(VideoError, match=r"^holds no video$"):
        sample_video(sound, sampling, rng)
    with pytest.raises(FileNotFoundError):
        sample_video(tmp_path / "missing.mp4", sampling, rng)
    cut = tmp_path / "cut.mp4"
    frames = np.random.default_rng(0).integers(0, 255, (40, 64, 64, 3), dtype=np.uint8)
    write_video(frames, cut, 10, "mp4")
    cut.write_bytes(cut.read_bytes()[:-60_000])
    with pytest.raises(VideoError, match=r"^has 2\d frames, a clip takes 40$"):
        sample_video(cut, Sampling(40, 10.0, 64), rng)


@pytest.mark.parametrize(
    ("container", "codec"),
    [("mp3", "libmp3lame"), ("mp4", "aac"), ("flac", "flac"), ("matroska", "aac")],
)
def test_a_song_with_a_cover_is_no_video(tmp_path: Path, container: str, codec: str) -> None:
    song = write_song(tmp_path / "song", container, codec)
    with pytest.raises(VideoError, match=r"^holds no video$"):
        sample_video(song, Sampling(1, 3.0, 64), np.random.default_rng(0))
    with pytest.raises(VideoError, match=r"song: holds no video$"):
        read_video(song)


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_a_video_with_a_cover_is_one(tmp_path: Path, container: str) -> None:
    video = write_numbered(tmp_path / "a.mp4", 20, bf="0")
    both = write_song(tmp_path / "both", container, "aac", video)
    clip = sample_video(both, Sampling(20, 30.0, 64), np.random.default_rng(0))
    assert numbers(clip) == list(range(20))
    assert numbers(read_video(both)[0]) == list(range(20))


@pytest.mark.parametrize(("frames", "fps", "side"), [(0, 3.0, 64), (4, 0.0, 64), (4, 3.0, 0)])
def test_sampling_that_makes_no_sense(frames: int, fps: float, side: int) -> None:
    with pytest.raises(VideoError, match="frames, fps and resolution should be positive"):
        Sampling(frames, fps, side)
