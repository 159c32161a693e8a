"""Reading and writing video files."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from demo_t2v.data.video import Format, VideoError, read_video, write_video


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


def test_mp4_can_be_played_while_it_loads(tmp_path: Path, frames: NDArray[np.uint8]) -> None:
    write_video(frames, tmp_path / "a.mp4", fps=8, format="mp4")
    content = (tmp_path / "a.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


def test_a_single_frame(tmp_path: Path, frames: NDArray[np.uint8]) -> None:
    for kind in ("mp4", "webm", "gif"):
        write_video(frames[:1], tmp_path / kind, fps=8, format=kind)  # type: ignore[arg-type]
        assert len(read_video(tmp_path / kind)[0]) == 1


def test_identical_frames_stay_all(tmp_path: Path, frames: NDArray[np.uint8]) -> None:
    still = np.repeat(frames[:1], 9, axis=0)
    for kind in ("mp4", "webm", "gif"):
        write_video(still, tmp_path / kind, fps=8, format=kind)  # type: ignore[arg-type]
        assert len(read_video(tmp_path / kind)[0]) == 9


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
