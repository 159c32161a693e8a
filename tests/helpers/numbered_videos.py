"""Videos whose frames show their number as black and white stripes."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

BITS = 8


def picture(number: int, height: int = 64, width: int = 64) -> NDArray[np.uint8]:
    """The number's bits as stripes in the central square, lowest first, on red."""
    frame = np.zeros((height, width, 3), dtype=np.uint8)
    frame[:] = (255, 0, 0)
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    stripes = np.repeat([255 * (number >> bit & 1) for bit in range(BITS)], side // BITS)
    frame[top : top + side, left : left + side] = stripes[None, :, None]
    return frame


def numbers(frames: NDArray[np.uint8]) -> list[int]:
    """The number that each frame of (F, side, side, 3) shows."""
    middles = [int((bit + 0.5) * frames.shape[2] / BITS) for bit in range(BITS)]
    bits = frames[:, frames.shape[1] // 2, middles].mean(-1) > 128  # (F, BITS)
    return [int(row @ (1 << np.arange(BITS))) for row in bits]


def write_numbered(
    file: Path,
    total: int,
    rate: int = 30,
    size: tuple[int, int] = (64, 64),
    format: str = "mp4",  # noqa: A002
    codec: str = "libx264",
    milliseconds: Sequence[int] | None = None,
    rotation: int | None = None,
    pixel: Fraction | None = None,
    **options: str,
) -> Path:
    """Write frames 0 to `total` - 1, `rate` a second or at the given times; returns `file`."""
    with av.open(str(file), "w", format=format) as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        if milliseconds:
            stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        if pixel:
            stream.codec_context.sample_aspect_ratio = pixel
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(total):
            frame = av.VideoFrame.from_ndarray(picture(number, *size))
            frame.pts = milliseconds[number] if milliseconds else number
            frame.time_base = Fraction(1, 1000) if milliseconds else Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file


def damage(file: Path, first: int, last: int, intact: float = 0.0, rate: int = 30) -> Path:
    """Overwrite the compressed frames `first` to `last`, except the fraction `intact` of each."""
    content = bytearray(file.read_bytes())
    with av.open(str(file)) as container:
        for packet in container.demux(video=0):
            if packet.pts is None or packet.pos is None:
                continue
            if first <= round(packet.pts * packet.time_base * rate) <= last:
                begin, end = packet.pos + int(packet.size * intact), packet.pos + packet.size
                content[begin:end] = b"\xff" * (end - begin)
    file.write_bytes(content)
    return file
