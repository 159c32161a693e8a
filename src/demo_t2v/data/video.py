"""Read and write video: the only codec code. FFmpeg comes inside of PyAV."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Final, Literal, get_args

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Format = Literal["mp4", "webm", "gif", "png"]

# Encoder, pixel format and encoder options; the qualities are visually lossless.
_CODECS: Final[dict[str, tuple[str, str, dict[str, str]]]] = {
    "mp4": ("libx264", "yuv420p", {"crf": "18"}),
    "webm": ("libvpx-vp9", "yuv420p", {"crf": "20", "b": "0", "cpu-used": "2"}),
    "gif": ("gif", "pal8", {}),
}
_MAX_GIF_FPS: Final = 50


class VideoError(ValueError):
    """Frames that cannot be written, or a file that is no video; one line for a person."""


def write_video(frames: NDArray[np.uint8], file: Path, fps: int, format: Format) -> None:  # noqa: A002
    """Write RGB `frames`, uint8 of shape (F, H, W, 3), to `file`, whatever the name's ending.

    mp4 is H.264 and webm VP9, both yuv420p; gif loops for ever; png makes a folder of
    `0000.png`, `0001.png` ... and has no `fps`. Raises VideoError for frames that the format
    cannot hold, OSError when the file cannot be written whole.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise VideoError(f"frames should be uint8 (F, H, W, 3), not {frames.dtype} {frames.shape}")
    check_format(format, fps, *frames.shape[1:3])
    if format == "png":
        file.mkdir()
        for index, frame in enumerate(frames):
            Image.fromarray(frame).save(file / f"{index:04d}.png")
        return
    codec, pixels, options = _CODECS[format]
    muxing = {"movflags": "+faststart"} if format == "mp4" else {}
    with av.open(str(file), "w", format=format, options=muxing) as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixels
        pictures = _timed(frames, fps)
        for picture in _with_palette(pictures, frames, fps) if format == "gif" else pictures:
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    # FFmpeg may lose an error that comes while a file is being closed, as on a full disk.
    written = _count_packets(file)
    if written != len(frames):
        lost = f"only {written} of {len(frames)} frames were written; is the disk full?"
        raise OSError(errno.EIO, lost, str(file))


def check_format(format: str, fps: int, height: int, width: int) -> None:  # noqa: A002
    """Whether `format` can hold pictures of this size at this rate; raises VideoError."""
    if format not in get_args(Format):
        raise VideoError(f"format {format!r} is unknown: use one of {', '.join(get_args(Format))}")
    if format in ("mp4", "webm") and (height % 2 or width % 2):
        raise VideoError(
            f"{format} needs an even width and height, not {width}x{height}; gif and png take any"
        )
    if format == "gif" and fps > _MAX_GIF_FPS:
        raise VideoError(f"gif plays at most {_MAX_GIF_FPS} frames a second, not {fps}")


def read_video(file: Path) -> tuple[NDArray[np.uint8], float]:
    """All frames of a video file as RGB, uint8 (F, H, W, 3), and its mean frame rate in Hz.

    Raises VideoError for a file that holds no video, OSError for one that cannot be read.
    """
    try:
        with av.open(str(file)) as container:
            if not container.streams.video:
                raise VideoError(f"{file}: holds no video")
            stream = container.streams.video[0]
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
            rate = stream.average_rate or stream.guessed_rate
    except (av.error.InvalidDataError, av.error.EOFError) as error:
        raise VideoError(f"{file}: is no video that FFmpeg can read ({error.strerror})") from None
    if not frames or not rate:
        raise VideoError(f"{file}: holds no frames")
    return np.stack(frames), float(rate)


def _timed(frames: NDArray[np.uint8], fps: int) -> Iterator[av.VideoFrame]:
    for index, frame in enumerate(frames):
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture.pts, picture.time_base = index, Fraction(1, fps)
        yield picture


def _with_palette(
    pictures: Iterator[av.VideoFrame], frames: NDArray[np.uint8], fps: int
) -> Iterator[av.VideoFrame]:
    """The pictures in the 256 colours that suit the whole clip best, dithered."""
    height, width = frames.shape[1:3]
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=width,
        height=height,
        format=av.VideoFormat("rgb24", width, height),
        time_base=Fraction(1, fps),
    )
    split, sink = graph.add("split"), graph.add("buffersink")
    palette = graph.add("palettegen", "reserve_transparent=0")
    quantise = graph.add("paletteuse", "dither=sierra2_4a")
    source.link_to(split)
    split.link_to(quantise, 0, 0)
    split.link_to(palette, 1, 0)
    palette.link_to(quantise, 0, 1)
    quantise.link_to(sink)
    graph.configure()
    for picture in pictures:
        graph.push(picture)
    graph.push(None)
    for _ in frames:
        quantised = graph.pull()
        assert isinstance(quantised, av.VideoFrame)
        yield quantised


def _count_packets(file: Path) -> int:
    try:
        with av.open(str(file)) as container:
            return sum(packet.size > 0 for packet in container.demux(video=0))
    except (av.error.InvalidDataError, av.error.EOFError):
        return 0
