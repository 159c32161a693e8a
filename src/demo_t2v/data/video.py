"""Reading and writing of video by PyAV, which contains FFmpeg."""

from __future__ import annotations

import errno
import io
import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, Final, Literal, get_args

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from numpy.typing import NDArray
from PIL import Image

from demo_t2v.data.decoding import Footage, ffmpeg_errors, local_name, open_video
from demo_t2v.data.decoding import VideoError as VideoError

Format = Literal["mp4", "webm", "gif", "png"]

# Encoder, pixel format and encoder options; the qualities are visually lossless.
_CODECS: Final[dict[str, tuple[str, str, dict[str, str]]]] = {
    # x264's macroblock tree is not the same twice on CPUs with AVX-512.
    "mp4": ("libx264", "yuv420p", {"crf": "18", "mbtree": "0"}),
    "webm": ("libvpx-vp9", "yuv420p", {"crf": "20", "b": "0", "cpu-used": "2"}),
    "gif": ("gif", "pal8", {}),
}
_MAX_GIF_FPS: Final = 50
# Without its two flags swscale darkens small pictures by up to 3 of 255.
_SCALING: Final = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
_BT709: Final = 1
"""FFmpeg's number of matrix, primaries and transfer curve alike."""


def write_video(frames: NDArray[np.uint8], file: Path, fps: int, format: Format) -> None:  # noqa: A002
    """Write RGB `frames`, uint8 of shape (F, H, W, 3), to `file`, whatever the name's ending.

    mp4 is H.264 and webm VP9, both yuv420p in the colours of BT.709. gif loops endlessly. png is a
    folder of `0000.png`, `0001.png` ... without `fps`. Raises VideoError for frames that the format
    cannot hold, OSError when the file cannot be written completely.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise VideoError(f"frames should be uint8 (F, H, W, 3), not {frames.dtype} {frames.shape}")
    check_format(format, fps, *frames.shape[1:3])
    if format == "png":
        file.mkdir()
        for index, frame in enumerate(frames):
            Image.fromarray(frame).save(file / f"{index:04d}.png")
        return
    _encode(frames, local_name(file), fps, format)
    # FFmpeg may lose an error that comes while a file is being closed, as on a full disk.
    written = _count_packets(file)
    if written != len(frames):
        lost = f"only {written} of {len(frames)} frames were written; is the disk full?"
        raise OSError(errno.EIO, lost, str(file))


def gif_bytes(frames: NDArray[np.uint8], fps: float) -> bytes:
    """RGB frames, uint8 (F, H, W, 3), as a GIF that loops, of at most 50 frames a second."""
    stream = io.BytesIO()
    rate = Fraction(min(fps, _MAX_GIF_FPS)).limit_denominator(1000)
    _encode(frames, stream, rate, "gif")
    return stream.getvalue()


def _encode(
    frames: NDArray[np.uint8],
    target: str | BinaryIO,
    fps: int | Fraction,
    format: str,  # noqa: A002
) -> None:
    """Write the frames by FFmpeg to a file, or to an open stream."""
    codec, pixels, options = _CODECS[format]
    muxing = {"mp4": {"movflags": "+faststart"}, "webm": {"fflags": "+bitexact"}}.get(format, {})
    with av.open(target, "w", format=format, options=muxing) as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixels
        pictures = _timed(frames, fps)
        if format == "gif":
            pictures = _with_palette(pictures, frames, fps)
        else:
            pictures = _as_bt709(pictures, stream)
        for picture in pictures:
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def check_format(format: str, fps: int, height: int, width: int) -> None:  # noqa: A002
    """Raise VideoError unless `format` can hold pictures of this size at this rate."""
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
    with ffmpeg_errors(f"{file}: "):
        container, stream = open_video(file, f"{file}: ")
        with container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
            rate = stream.average_rate or stream.guessed_rate
    if not frames or not rate:
        raise VideoError(f"{file}: holds no frames")
    return np.stack(frames), float(rate)


@dataclass(frozen=True)
class Sampling:
    """How a clip is cut from a video: `frames` square pictures, `fps` of them a second.

    `resolution` is their side in pixels. With `repeat_frames` a video with fewer frames than a
    clip is used too. Raises VideoError for values that are not positive.
    """

    frames: int = 16
    fps: float = 3.0
    resolution: int = 256
    repeat_frames: bool = False

    def __post_init__(self) -> None:
        if self.frames < 1 or self.resolution < 1 or not 0 < self.fps < math.inf:
            given = f"{self.frames} of {self.resolution} pixels at {self.fps:g} a second"
            raise VideoError(f"frames, fps and resolution should be positive, not {given}")

    def indices(self, total: int, rate: Fraction, rng: np.random.Generator | None) -> list[int]:
        """Indices of the clip's frames in a video of `total` frames, `rate` of them a second.

        They are 1/fps seconds apart, rounded down to integers, from a random start; without `rng`,
        from the first frame. In a video too
        short for that, they are spread over its length; in one slower than `fps`, they are
        consecutive. No frame is used twice. If the video has fewer frames than a clip, frames are
        repeated evenly with `repeat_frames`; otherwise that is a VideoError.
        """
        if total < (1 if self.repeat_frames else self.frames):
            raise VideoError(f"has {total} frames, a clip takes {self.frames}")
        gaps = self.frames - 1
        step = max(rate / Fraction(self.fps), Fraction(1))
        if gaps * step > total - 1:
            step = Fraction(total - 1, gaps)
        start = int(rng.integers(int(total - 1 - gaps * step) + 1)) if rng else 0
        return [start + int(number * step) for number in range(self.frames)]


def sample_video(
    source: Path | BinaryIO, sampling: Sampling, rng: np.random.Generator | None
) -> NDArray[np.uint8]:
    """One clip of a video, uint8 RGB (F, side, side, 3): short side scaled, centre cropped.

    Decoding begins at the keyframe before the clip. Frames are found by their timestamps, so the
    speed is right for variable frame rates. Rotation and pixel aspect ratio are applied. Raises
    VideoError for a file that is no video, is too short, or is damaged within the clip; its
    message does not name the file. Raises OSError for a file that cannot be read.
    """
    with ffmpeg_errors(), closing(Footage(source)) as video:
        total, rate = _length(video, sampling)
        # The middle of each frame's interval: rounding of timestamps cannot reach the next frame.
        middles = [(index + Fraction(1, 2)) / rate for index in sampling.indices(total, rate, rng)]
        ticks = [video.first + int(time / video.time_base) for time in middles]
        pixel = float(video.stream.sample_aspect_ratio or 1)
        scaler = VideoReformatter()
        return np.stack(
            [_square(frame, sampling.resolution, pixel, scaler) for frame in video.frames_at(ticks)]
        )


def _length(video: Footage, sampling: Sampling) -> tuple[int, Fraction]:
    """The number of frames of a video, and the frame rate in Hz.

    In short and in slow videos, of which a clip may need each frame, frames are counted. Otherwise
    the rate is the one stated by the file.
    """
    seconds = (video.last - video.first) * video.time_base
    rate = video.rate
    if rate and rate >= sampling.fps and seconds * Fraction(sampling.fps) >= sampling.frames:
        return round(seconds * rate) + 1, rate
    total = video.count()
    if total > 1 and seconds:
        return total, (total - 1) / seconds
    return total, rate or Fraction(sampling.fps)


def _square(
    frame: av.VideoFrame, side: int, pixel: float, scaler: VideoReformatter
) -> NDArray[np.uint8]:
    """The scaled centre of a frame, uint8 (side, side, 3); `pixel` is width / height of a pixel."""
    aspect = frame.width * pixel / frame.height
    height, width = max(side, round(side / aspect)), max(side, round(side * aspect))
    scaled = scaler.reformat(frame, width, height, "rgb24", interpolation=_SCALING, threads=1)
    top, left = (height - side) // 2, (width - side) // 2
    picture = scaled.to_ndarray()[top : top + side, left : left + side]
    turned: NDArray[np.uint8] = np.rot90(picture, round(frame.rotation / 90))
    return turned


def _timed(frames: NDArray[np.uint8], fps: int | Fraction) -> Iterator[av.VideoFrame]:
    for index, frame in enumerate(frames):
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture.pts, picture.time_base = index, 1 / Fraction(fps)
        yield picture


def _as_bt709(pictures: Iterator[av.VideoFrame], stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """The pictures in the colours of BT.709, which players expect; the stream states them too."""
    stream.colorspace = stream.color_primaries = stream.color_trc = _BT709
    stream.color_range = ColorRange.MPEG
    for picture in pictures:
        yield picture.reformat(
            format=stream.pix_fmt,
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
        )


def _with_palette(
    pictures: Iterator[av.VideoFrame], frames: NDArray[np.uint8], fps: int | Fraction
) -> Iterator[av.VideoFrame]:
    """The pictures in the best 256 colours for the clip, dithered."""
    height, width = frames.shape[1:3]
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=width,
        height=height,
        format=av.VideoFormat("rgb24", width, height),
        time_base=1 / Fraction(fps),
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
        with av.open(local_name(file)) as container:
            return sum(packet.size > 0 for packet in container.demux(video=0))
    except (av.error.InvalidDataError, av.error.EOFError):
        return 0
