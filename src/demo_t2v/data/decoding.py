"""Timestamps of a video's frames, and decoding of the frames at given times.

The duration stated by a container is not used, because edit lists, longer audio, late starts,
interrupted recordings and live streams make it wrong. It is read from the first and last packets.
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
"""Frames between which decoding order may differ from presentation order; H.264 has 16."""
_LONGEST: Final = 10**6
"""Seconds; a seek to this time after the first frame finds the last keyframe."""


class VideoError(UserError):
    """Frames that cannot be written, or a file that is no video."""


@contextmanager
def ffmpeg_errors(label: str = "") -> Iterator[None]:
    """Raise FFmpeg's errors as VideoError, except those that are OSErrors too."""
    try:
        yield
    except av.error.FFmpegError as error:
        if isinstance(error, OSError):
            raise
        raise VideoError(f"{label}is no video that FFmpeg can read ({error.strerror})") from None


def local_name(file: Path) -> str:
    """The file's name for FFmpeg, which reads text before a first colon as a protocol."""
    return str(file) if file.is_absolute() else f"./{file}"


def open_video(source: Path | BinaryIO, label: str = "") -> tuple[InputContainer, av.VideoStream]:
    """The container and its main video stream, not a cover picture. Raises VideoError for none."""
    container = av.open(local_name(source) if isinstance(source, Path) else source, "r")
    for stream in (container.streams.best("video"), *container.streams.video):
        if isinstance(stream, av.VideoStream) and not stream.disposition & Disposition.attached_pic:
            return container, stream
    container.close()
    raise VideoError(f"{label}holds no video")


class Footage:
    """An open video: the times of its frames, and the frames at given times.

    `first` and `last` are the times of the first and the last frame, `time_base` is their unit in
    seconds. `rate` is the frame rate in Hz that the file states, perhaps a guess, or None. Raises
    VideoError for a file that is no video, OSError for one that cannot be read.
    """

    def __init__(self, source: Path | BinaryIO) -> None:
        self._source = source
        self._open()
        self.rate = self.stream.average_rate or self.stream.guessed_rate
        self.time_base = self.stream.time_base or Fraction(1, av.time_base)
        # AVI has no presentation times, and FFmpeg does not compute them for these codecs: their
        # frames are numbered in decoding order.
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
        """The number of frames that are shown; reads the complete file without decoding it."""
        return sum(map(_is_shown, self._packets()))

    def frames_at(self, ticks: list[int]) -> Iterator[av.VideoFrame]:
        """The frames shown at `ticks`, increasing times not before `first`."""
        frames = self._decode_before(ticks)
        (_, shown), count = next(frames), 0
        for time, frame in frames:
            while count < len(ticks) and time > ticks[count]:
                yield shown
                count += 1
            if count == len(ticks):
                return
            shown = frame
        # The last frame is shown from its time on.
        if any(tick < self.last for tick in ticks[count:]):
            raise VideoError("is damaged: its end cannot be decoded")
        yield from [shown] * (len(ticks) - count)

    def _open(self) -> None:
        if not isinstance(self._source, Path):
            self._source.seek(0)
        self._container, self.stream = open_video(self._source)
        self.stream.codec_context.thread_count = 1  # many processes read clips in parallel
        self._untouched = True

    def _packets(self, tick: int | None = None) -> Iterator[Packet[av.VideoStream]]:
        """Packets from a keyframe near `tick`; from the first one for None or without seeking.

        Containers seek in decoding order, so the keyframe may be shown after `tick`.
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
        """Time of the first frame that can be decoded."""
        packets = dropwhile(lambda packet: not packet.is_keyframe, self._packets())
        keyframe = next(packets, None)
        if keyframe is None:
            raise VideoError("holds no frames that can be decoded")
        start = self._time(keyframe)
        if start is None:  # a raw stream has no timestamps
            self._numbered, self.rate = True, self.rate or Fraction(25)
            self.time_base = 1 / self.rate
            return 0
        shown = map(self._time, filter(_is_shown, chain([keyframe], packets)))
        times = [time for time in islice(shown, _REORDERED) if time is not None]
        return max(start, min(times, default=start))

    def _find_last(self) -> int:
        """Time of the last frame: from packets after the last keyframe, or from all packets."""
        after_all = self.first + int(_LONGEST / self.time_base)
        for tick in (after_all, None):
            shown = [(p.is_keyframe, self._time(p)) for p in self._packets(tick) if _is_shown(p)]
            times = [time for _, time in shown if time is not None]
            if times:
                break
        else:  # a raw stream
            return len(shown) - 1
        begins_with_keyframe, _ = shown[0]
        if begins_with_keyframe:
            return max(times)
        # The seek by byte position ended between reordered frames.
        before = filter(_is_shown, self._packets(max(times) - int(1 / self.time_base)))
        return max(time for time in map(self._time, before) if time is not None)

    def _decode_before(self, ticks: list[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """Decoded frames with their times; the first is not later than the first tick."""
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
        """Frames from a keyframe on, without those that no tick and no other frame needs."""
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
                raise VideoError("is damaged: a packet is incomplete")
            if shown is None:
                shown = (self._time(packet) or 0) - interval
            context.skip_frame = "DEFAULT"
            if packet.pts is not None and not packet.is_discard and not self._numbered:
                # A frame is shown until the next one at the latest; stated durations may be wrong.
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
        """Time from frame to frame, for frames without timestamps."""
        return max(1, round(1 / (self.rate or Fraction(25)) / self.time_base))


def _is_shown(packet: Packet[av.VideoStream]) -> bool:
    """Whether a packet holds a frame that is shown; edit lists hide frames."""
    return packet.size > 0 and not packet.is_discard and not packet.is_corrupt
