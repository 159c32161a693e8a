"""When a video's frames are shown, and the frames of given times, decoded from nearby.

What a container states of its length is not relied on: edit lists, longer audio, late starts,
interrupted recordings and live streams make it wrong. The first and the last packets tell it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain, dropwhile, islice
from pathlib import Path
from typing import BinaryIO, Final

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition

from demo_t2v.core.errors import UserError

_REORDERED: Final = 32
"""Pictures between which the order of decoding may differ from that of showing: H.264 has 16."""
_LONGEST: Final = 10**6
"""Seconds; a seek that far behind the first frame leads to the last keyframe."""


class VideoError(UserError):
    """Frames that cannot be written, or a file that is no video; one line for a person."""


@contextmanager
def faults(label: str = "") -> Iterator[None]:
    """What FFmpeg finds wrong becomes a VideoError; errors of the system stay OSErrors."""
    try:
        yield
    except av.error.FFmpegError as error:
        if isinstance(error, OSError):
            raise
        raise VideoError(f"{label}is no video that FFmpeg can read ({error.strerror})") from None


def local_name(file: Path) -> str:
    """The file's name for FFmpeg, which takes what precedes a first colon for a protocol."""
    return str(file) if file.is_absolute() else f"./{file}"


def open_video(source: Path | BinaryIO, label: str = "") -> tuple[InputContainer, av.VideoStream]:
    """The container and its main video stream; a cover picture is none. Raises VideoError."""
    container = av.open(local_name(source) if isinstance(source, Path) else source, "r")
    for stream in (container.streams.best("video"), *container.streams.video):
        if isinstance(stream, av.VideoStream) and not stream.disposition & Disposition.attached_pic:
            return container, stream
    container.close()
    raise VideoError(f"{label}holds no video")


class Footage:
    """An open video: when its frames are shown, and the frames of given times.

    `first` and `last` are the times at which the first and the last frame appear, `time_base` is
    their unit in seconds, `rate` the frames a second that the file states: perhaps a guess, or
    none. Raises VideoError for a file that is no video, OSError for one that cannot be read.
    """

    def __init__(self, source: Path | BinaryIO) -> None:
        self._source = source
        self._open()
        self.rate = self.stream.average_rate or self.stream.guessed_rate
        self.time_base = self.stream.time_base or Fraction(1, av.time_base)
        # AVI has no times of showing, and for these codecs FFmpeg does not work them out: their
        # frames are numbered in the order in which they are decoded.
        kind = (self._container.format.name, self.stream.codec_context.name)
        self._numbered = kind in (("avi", "h264"), ("avi", "hevc"))
        try:
            self.first = self._find_first()
            self.last = self._find_last()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def count(self) -> int:
        """How many frames are shown; reads the whole file, and decodes nothing."""
        return sum(map(_is_shown, self._packets()))

    def frames_at(self, ticks: list[int]) -> Iterator[av.VideoFrame]:
        """The frames that are on the screen at `ticks`, rising times from `first` on."""
        frames = self._decode_before(ticks)
        (_, shown), given = next(frames), 0
        for time, frame in frames:
            while given < len(ticks) and time > ticks[given]:
                yield shown
                given += 1
            if given == len(ticks):
                return
            shown = frame
        # The last frame stays on the screen.
        if any(tick < self.last for tick in ticks[given:]):
            raise VideoError("is damaged: its end cannot be decoded")
        yield from [shown] * (len(ticks) - given)

    def _open(self) -> None:
        if not isinstance(self._source, Path):
            self._source.seek(0)
        self._container, self.stream = open_video(self._source)
        self.stream.codec_context.thread_count = 1  # clips are read by many processes side by side
        self._untouched = True

    def _packets(self, tick: int | None = None) -> Iterator[Packet[av.VideoStream]]:
        """Packets from a keyframe near `tick` on; the first for None or where nothing can seek.

        A container seeks by decoding order, so that keyframe may be shown after `tick`.
        """
        if tick is not None:
            try:
                self._container.seek(tick, stream=self.stream)
            except av.error.FFmpegError:
                tick = None
        if tick is None and not self._untouched:
            self._container.close()
            self._open()
        self._untouched = False
        return self._container.demux(self.stream)

    def _time(self, packet: Packet[av.VideoStream]) -> int | None:
        return packet.dts if self._numbered else packet.pts

    def _find_first(self) -> int:
        """When the first frame that can be decoded appears."""
        packets = dropwhile(lambda packet: not packet.is_keyframe, self._packets())
        keyframe = next(packets, None)
        if keyframe is None:
            raise VideoError("holds no frames that can be decoded")
        start = self._time(keyframe)
        if start is None:  # a raw stream: it has no times at all
            self._numbered, self.rate = True, self.rate or Fraction(25)
            self.time_base = 1 / self.rate
            return 0
        shown = map(self._time, filter(_is_shown, chain([keyframe], packets)))
        times = [time for time in islice(shown, _REORDERED) if time is not None]
        return max(start, min(times, default=start))

    def _find_last(self) -> int:
        """When the last frame appears: read from the last keyframe on, else from the first."""
        behind = self.first + int(_LONGEST / self.time_base)
        for tick in (behind, None):
            shown = [(p.is_keyframe, self._time(p)) for p in self._packets(tick) if _is_shown(p)]
            times = [time for _, time in shown if time is not None]
            if times:
                break
        else:  # a raw stream
            return len(shown) - 1
        begins_with_keyframe, _ = shown[0]
        if begins_with_keyframe:
            return max(times)
        # Sought among the bytes, and found amid reordered pictures.
        before = filter(_is_shown, self._packets(max(times) - int(1 / self.time_base)))
        return max(time for time in map(self._time, before) if time is not None)

    def _decode_before(self, ticks: list[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """Decoded frames with their times, the first of them not later than the first tick."""
        second = int(1 / self.time_base)
        for lead in (0, second, 10 * second, None):
            frames = self._decode(ticks, None if lead is None else ticks[0] - lead)
            first = next(frames, None)
            if first is not None and first[0] <= ticks[0]:
                yield first
                yield from frames
                return
        raise VideoError("is damaged: no frame up to the clip can be decoded")

    def _decode(self, ticks: list[int], start: int | None) -> Iterator[tuple[int, av.VideoFrame]]:
        """Sound frames from a keyframe on, without those that no tick and no other frame needs."""
        packets = dropwhile(lambda packet: not packet.is_keyframe, self._packets(start))
        context, interval = self.stream.codec_context, self._interval()
        times: deque[int] = deque(maxlen=_REORDERED)
        shown: int | None = None
        broken = False
        for packet in packets:
            if packet.is_corrupt:  # the last packet of a file that was cut off
                broken = True
                continue
            if broken and packet.size:
                raise VideoError("is damaged: a packet is not whole")
            if shown is None:
                shown = (self._time(packet) or 0) - interval
            context.skip_frame = "DEFAULT"
            if packet.pts is not None and not packet.is_discard and not self._numbered:
                # It is shown until the next one at the latest, whatever duration the file states.
                until = min((time for time in times if time > packet.pts), default=None)
                tick = bisect_left(ticks, packet.pts)
                if until is not None and (tick == len(ticks) or ticks[tick] >= until):
                    context.skip_frame = "NONREF"
                times.append(packet.pts)
            for frame in packet.decode():
                if frame.is_corrupt:
                    raise VideoError("is damaged: a frame cannot be decoded")
                known = None if self._numbered else frame.pts
                shown = shown + interval if known is None else known
                yield shown, frame

    def _interval(self) -> int:
        """From frame to frame, where they have no times of their own."""
        return max(1, round(1 / (self.rate or Fraction(25)) / self.time_base))


def _is_shown(packet: Packet[av.VideoStream]) -> bool:
    """Whether a packet holds a frame that is shown; an edit list hides frames."""
    return packet.size > 0 and not packet.is_discard and not packet.is_corrupt
