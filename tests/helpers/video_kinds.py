"""Small videos of many kinds of container and codec; every frame shows its own number."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import av
import numpy as np
from av.stream import Disposition
from PIL import Image

from helpers.numbered_videos import picture

RATE: Final = 25
TOTAL: Final = 160
HERTZ: Final = 48000
STEADY: Final = tuple(1000 * number // RATE for number in range(TOTAL))
# Half of the frames in a third of the time.
VARIABLE: Final = tuple(round(1000 * n / 37.5) for n in range(80)) + tuple(
    round(2133 + 1000 * n / 18.75) for n in range(80)
)


@dataclass(frozen=True)
class Kind:
    """How a video is written; times are in milliseconds."""

    container: str
    codec: str
    pixels: str = "yuv420p"
    size: tuple[int, int] = (64, 64)
    times: tuple[int, ...] = STEADY
    start: int = 0
    """Added to all times."""
    hidden: int = 0
    """So many first frames lie before 0, where an edit list hides them."""
    audio: tuple[str, int] | None = None
    """Its codec, and how long it is."""
    encoder: dict[str, str] = field(default_factory=dict)
    muxer: dict[str, str] = field(default_factory=dict)
    rotation: int = 0
    pipe: bool = False
    """The muxer cannot go back to state a length."""
    change: Callable[[Path], None] | None = None
    """What is done to the file at last."""

    @property
    def timed(self) -> bool:
        """Whether the file says when each frame is shown."""
        return (self.container, self.codec) not in (
            ("h264", "libx264"),
            ("hevc", "libx265"),
            ("avi", "libx264"),
        )


GOP: Final = {"g": "40"}
H264: Final = {"g": "40", "x264-params": "scenecut=0"}
X265: Final = {"x265-params": "keyint=40:log-level=none:pools=none:frame-threads=1"}
VP9: Final = {"g": "40", "cpu-used": "8", "deadline": "realtime"}


def _end_early(file: Path) -> None:
    """Have the mp4's edit list end after 150 of the 160 frames."""
    content = bytearray(file.read_bytes())
    at = content.index(b"elst") + 4
    (count,) = struct.unpack_from(">I", content, at + 4)
    assert count == 1
    (timescale,) = struct.unpack_from(">I", content, content.index(b"mvhd") + 4 + 12)
    struct.pack_into(">I", content, at + 8, 150 * timescale // RATE)
    file.write_bytes(content)


def _cut_off(file: Path) -> None:
    """Leave the last bytes out, as an interrupted download does."""
    content = file.read_bytes()
    file.write_bytes(content[: len(content) * 31 // 32])


def _without_beginning(file: Path) -> None:
    """Begin amid the first pictures, as a recording of a broadcast does."""
    content = file.read_bytes()
    file.write_bytes(content[188 * (len(content) // 188 // 16) :])


KINDS: Final[dict[str, Kind]] = {
    "mp4 h264": Kind("mp4", "libx264", encoder=H264),
    "mp4 h264, no B-frames": Kind("mp4", "libx264", encoder=H264 | {"bf": "0"}),
    "mp4 h264, open GOP": Kind(
        "mp4", "libx264", encoder={"g": "40", "x264-params": "open-gop=1:bframes=8:b-adapt=0"}
    ),
    "mp4 h264, one keyframe": Kind("mp4", "libx264", encoder={"g": "400"}),
    "mp4 h264, intra refresh": Kind(
        "mp4", "libx264", encoder={"g": "40", "x264-params": "intra-refresh=1:bframes=0"}
    ),
    "mp4 h264, 4:4:4": Kind("mp4", "libx264", "yuv444p", encoder=H264),
    "mp4 h264, 10 bits": Kind("mp4", "libx264", "yuv420p10le", encoder=H264),
    "mp4 h264, rotated": Kind("mp4", "libx264", encoder=H264, rotation=90),
    "mp4 h264, variable rate": Kind("mp4", "libx264", times=VARIABLE, encoder=H264),
    "mp4 h264, longer audio": Kind("mp4", "libx264", encoder=H264, audio=("aac", 12000)),
    "mp4 h264, shorter audio": Kind("mp4", "libx264", encoder=H264, audio=("aac", 3000)),
    "mp4 h264, late video": Kind("mp4", "libx264", start=3000, encoder=H264, audio=("aac", 9400)),
    "mp4 h264, edit list": Kind("mp4", "libx264", hidden=30, encoder=H264),
    "mp4 h264, edit list and audio": Kind(
        "mp4", "libx264", hidden=20, encoder=H264, audio=("aac", 8000)
    ),
    "mp4 h264, edit list ends early": Kind("mp4", "libx264", encoder=H264, change=_end_early),
    "mp4 h264, fragments": Kind(
        "mp4", "libx264", encoder=H264, muxer={"movflags": "frag_keyframe+empty_moov"}
    ),
    "mp4 h264, one fragment": Kind(
        "mp4", "libx264", encoder={"g": "400"}, muxer={"movflags": "frag_keyframe+empty_moov"}
    ),
    "mp4 h264, fragments and audio": Kind(
        "mp4",
        "libx264",
        start=1000,
        encoder=H264,
        audio=("aac", 9000),
        muxer={"movflags": "frag_keyframe+delay_moov"},
    ),
    "mp4 hevc": Kind("mp4", "libx265", encoder=X265),
    "mp4 av1": Kind("mp4", "libsvtav1", encoder={"g": "40", "preset": "12"}),
    "mp4 mpeg4": Kind("mp4", "mpeg4", encoder=GOP | {"bf": "2"}),
    "mov h264": Kind("mov", "libx264", encoder=H264, audio=("pcm_s16le", 6400)),
    "mov prores": Kind("mov", "prores_ks", "yuv422p10le"),
    "mov mjpeg": Kind("mov", "mjpeg", "yuvj420p"),
    "3gp h263": Kind("3gp", "h263", size=(96, 128), encoder=GOP),
    "mkv h264": Kind("matroska", "libx264", encoder=H264),
    "mkv h264, variable rate": Kind("matroska", "libx264", times=VARIABLE, encoder=H264),
    "mkv h264, longer audio": Kind("matroska", "libx264", encoder=H264, audio=("aac", 12000)),
    "mkv h264, offset start": Kind("matroska", "libx264", start=100000, encoder=H264),
    "mkv h264, late video": Kind(
        "matroska", "libx264", start=3000, encoder=H264, audio=("aac", 9400)
    ),
    "mkv h264, live": Kind("matroska", "libx264", encoder=H264, muxer={"live": "1"}),
    "mkv h264, live and audio": Kind(
        "matroska", "libx264", start=2000, encoder=H264, audio=("aac", 9000), muxer={"live": "1"}
    ),
    "mkv h264, piped": Kind("matroska", "libx264", encoder=H264, pipe=True),
    "mkv h264, cut off": Kind("matroska", "libx264", encoder=H264, change=_cut_off),
    "mp4 h264, cut off": Kind(
        "mp4",
        "libx264",
        encoder=H264,
        muxer={"movflags": "faststart"},
        change=_cut_off,
    ),
    "avi mpeg4, cut off": Kind("avi", "mpeg4", encoder=GOP, change=_cut_off),
    "ts h264, cut off": Kind("mpegts", "libx264", encoder=H264, change=_cut_off),
    "ts h264, without its beginning": Kind(
        "mpegts", "libx264", encoder=H264 | {"g": "15"}, change=_without_beginning
    ),
    "flv h264, cut off": Kind("flv", "libx264", encoder=H264, change=_cut_off),
    "mkv hevc": Kind("matroska", "libx265", encoder=X265),
    "mkv mpeg2, B-frames": Kind("matroska", "mpeg2video", encoder=GOP | {"bf": "2"}),
    "mkv ffv1": Kind("matroska", "ffv1"),
    "mkv av1": Kind("matroska", "libsvtav1", encoder={"g": "40", "preset": "12"}),
    "webm vp8": Kind("webm", "libvpx", encoder=VP9),
    "webm vp8, hidden frames": Kind(
        "webm",
        "libvpx",
        encoder={"g": "40", "auto-alt-ref": "1", "lag-in-frames": "16", "arnr-maxframes": "5"},
    ),
    "webm vp9": Kind("webm", "libvpx-vp9", encoder=VP9, audio=("libopus", 6400)),
    "webm vp9, live": Kind("webm", "libvpx-vp9", encoder=VP9, muxer={"live": "1"}),
    "webm vp9, browser recording": Kind(
        "webm",
        "libvpx-vp9",
        times=VARIABLE,
        start=700,
        encoder=VP9 | {"g": "400"},
        audio=("libopus", 8000),
        pipe=True,
    ),
    "webm vp9, hidden frames": Kind(
        "webm", "libvpx-vp9", encoder={"g": "40", "auto-alt-ref": "1", "lag-in-frames": "16"}
    ),
    "webm av1": Kind("webm", "libsvtav1", encoder={"g": "40", "preset": "12"}),
    "avi mpeg4": Kind("avi", "mpeg4", encoder=GOP, audio=("libmp3lame", 6400)),
    "avi mpeg4, B-frames": Kind("avi", "mpeg4", encoder=GOP | {"bf": "2"}),
    "avi mjpeg, piped": Kind("avi", "mjpeg", "yuvj420p", pipe=True),
    "avi h264": Kind("avi", "libx264", encoder=H264),
    "avi ffv1": Kind("avi", "ffv1"),
    "avi raw": Kind("avi", "rawvideo"),
    "ts h264": Kind("mpegts", "libx264", encoder=H264),
    "ts h264, longer audio": Kind("mpegts", "libx264", encoder=H264, audio=("aac", 12000)),
    "ts h264, late video": Kind("mpegts", "libx264", start=3000, encoder=H264, audio=("aac", 9400)),
    "ts mpeg2, B-frames": Kind("mpegts", "mpeg2video", encoder=GOP | {"bf": "2"}),
    "ts hevc": Kind("mpegts", "libx265", encoder=X265),
    "mpg mpeg1": Kind("mpeg", "mpeg1video", encoder=GOP | {"bf": "2"}, audio=("mp2", 6400)),
    "vob mpeg2": Kind("vob", "mpeg2video", encoder=GOP | {"bf": "2"}),
    "flv h264": Kind("flv", "libx264", encoder=H264, audio=("aac", 6400)),
    "flv flv1, no duration": Kind(
        "flv", "flv", encoder=GOP, muxer={"flvflags": "no_duration_filesize"}
    ),
    "flv h264, longer audio, piped": Kind(
        "flv", "libx264", encoder=H264, audio=("aac", 9000), pipe=True
    ),
    "wmv wmv2": Kind("asf", "wmv2", encoder=GOP, audio=("libmp3lame", 6400)),
    "wmv msmpeg4": Kind("asf", "msmpeg4", encoder=GOP),
    "mxf mpeg2": Kind("mxf", "mpeg2video", encoder=GOP | {"bf": "2"}),
    "nut mpeg4": Kind("nut", "mpeg4", encoder=GOP | {"bf": "2"}),
    "rm rv20": Kind("rm", "rv20", size=(96, 128), encoder=GOP),
    "ogg vp8": Kind("ogg", "libvpx", encoder=VP9, audio=("libopus", 6400)),
    "ogg vp8, longer audio": Kind("ogg", "libvpx", encoder=VP9, audio=("libopus", 9400)),
    "ivf vp8": Kind("ivf", "libvpx", encoder=VP9),
    "gif": Kind("gif", "gif", "rgb8"),
    "apng": Kind("apng", "apng", "rgb24"),
    "y4m": Kind("yuv4mpegpipe", "wrapped_avframe"),
    "raw h264": Kind("h264", "libx264", encoder=H264),
    "raw h264, no B-frames": Kind("h264", "libx264", encoder=H264 | {"bf": "0"}),
    "raw hevc": Kind("hevc", "libx265", encoder=X265),
    "raw mpeg2": Kind("mpeg2video", "mpeg2video", encoder=GOP | {"bf": "2"}),
    "raw mpeg4": Kind("m4v", "mpeg4", encoder=GOP | {"bf": "2"}),
    "raw mjpeg": Kind("mjpeg", "mjpeg", "yuvj420p"),
    "raw av1": Kind("obu", "libsvtav1", encoder={"g": "40", "preset": "12"}),
}


def write_kind(file: Path, kind: Kind) -> Path:
    """Write a video of a kind; returns `file`."""
    pipe = io.BytesIO()
    target: Any = _OnlyWrites(pipe.write) if kind.pipe else str(file)
    with av.open(target, "w", format=kind.container, options=kind.muxer) as container:
        stream = container.add_stream(kind.codec, rate=RATE, options=kind.encoder)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = kind.size
        stream.pix_fmt = kind.pixels
        stream.codec_context.thread_count = 1
        if kind.times is VARIABLE:
            stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        if kind.rotation:
            stream.set_display_rotation(kind.rotation)
        sound = kind.audio and container.add_stream(kind.audio[0], rate=HERTZ, layout="stereo")
        packets = _pictures(stream, kind)
        if sound and kind.audio:
            packets += silence(sound, kind.audio[1])
        for packet in sorted(packets, key=_decoding_time):
            container.mux(packet)
    if kind.pipe:
        file.write_bytes(pipe.getvalue())
    if kind.change:
        kind.change(file)
    return file


@dataclass
class _OnlyWrites:
    """What a muxer takes for a file that cannot be sought in."""

    write: Callable[[bytes], int]


def _decoding_time(packet: av.Packet) -> Fraction:
    return Fraction(packet.pts if packet.dts is None else packet.dts or 0) * packet.time_base


def _pictures(stream: av.VideoStream, kind: Kind) -> list[av.Packet]:
    base = Fraction(1, 1000) if kind.times is VARIABLE else Fraction(1, RATE)
    packets = []
    for number, time in enumerate(kind.times):
        frame = av.VideoFrame.from_ndarray(picture(number, *kind.size)).reformat(format=kind.pixels)
        frame.pts, frame.time_base = round(Fraction(time + kind.start, 1000) / base), base
        packets += stream.encode(frame)
    packets += stream.encode()
    for packet in packets if kind.hidden else []:
        back = int(Fraction(kind.hidden, RATE) / packet.time_base)
        packet.pts, packet.dts = packet.pts - back, packet.dts - back
    return packets


def silence(stream: av.AudioStream, milliseconds: int) -> list[av.Packet]:
    """The packets of so much silence."""
    context = stream.codec_context
    context.open()
    size, form = context.frame_size or 1024, context.format
    shape = (2, size) if form.is_planar else (1, 2 * size)
    samples = np.zeros(shape, dtype="f4" if form.name.startswith("flt") else f"i{form.bytes}")
    packets = []
    for at in range(0, HERTZ * milliseconds // 1000, size):
        frame = av.AudioFrame.from_ndarray(samples, form.name, "stereo")
        frame.sample_rate, frame.pts, frame.time_base = HERTZ, at, Fraction(1, HERTZ)
        packets += stream.encode(frame)
    return packets + stream.encode()


def write_song(file: Path, container: str, codec: str, video: Path | None = None) -> Path:
    """Write silence with a cover picture, and the frames of `video` behind it if there is one."""
    cover = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(cover, "JPEG")
    with ExitStack() as stack:
        song = stack.enter_context(av.open(str(file), "w", format=container))
        packets = silence(song.add_stream(codec, rate=HERTZ, layout="stereo"), 400)
        if container == "matroska":
            song.add_attachment("cover.jpg", "image/jpeg", cover.getvalue())
        else:
            picture = song.add_stream("mjpeg", rate=RATE)
            picture.width, picture.height, picture.pix_fmt = 64, 64, "yuvj420p"
            picture.disposition = Disposition.attached_pic
            packet = av.Packet(cover.getvalue())
            packet.stream, packet.pts, packet.dts, packet.is_keyframe = picture, 0, 0, True
            packet.time_base = Fraction(1, RATE)
            packets.insert(0, packet)
        if video:
            frames = stack.enter_context(av.open(str(video)))
            stream = song.add_stream_from_template(frames.streams.video[0])
            for packet in filter(lambda packet: packet.size, frames.demux(video=0)):
                packet.stream = stream
                packets.append(packet)
        song.start_encoding()
        for packet in packets:
            song.mux(packet)
    return file
