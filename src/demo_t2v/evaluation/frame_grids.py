"""Grids of video frames as pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from demo_t2v.data.video import VideoError, read_video
from demo_t2v.data.whole_clips import read_picture

COLUMNS: Final = 6
"""Frames in a row of a grid."""
SIDE: Final = 96
"""Height of a contact sheet's frames in pixels."""
CAPTION: Final = 300
"""Width of a contact sheet's captions in pixels."""


def spread_indices(frames: int, count: int = COLUMNS) -> list[int]:
    """`count` indices of `frames` frames, evenly spread from the first to the last.

    Indices repeat where `count` is more than `frames`.
    """
    return [round(index) for index in np.linspace(0, frames - 1, count)]


def image_grid(
    rows: Sequence[Sequence[Image.Image]], gap: int = 0, mode: str = "RGB", fill: str = "white"
) -> Image.Image:
    """Rows of images of one height on one picture, `gap` pixels apart; there must be a row.

    `mode` and `fill` are the picture's mode and background as Pillow names them.
    """
    height = rows[0][0].height
    widths = [sum(image.width + gap for image in row) - gap for row in rows]
    grid = Image.new(mode, (max(widths), len(rows) * (height + gap) - gap), fill)
    for number, row in enumerate(rows):
        left = 0
        for image in row:
            grid.paste(image, (left, number * (height + gap)))
            left += image.width + gap
    return grid


def frame_strip(file: Path) -> Image.Image:
    """`COLUMNS` frames of a video or of a folder of PNG frames in a row, spread evenly.

    The picture is RGBA, and clear between the frames. Raises data.video.VideoError, OSError.
    """
    return image_grid([_cells(read_frames(file))], gap=2, mode="RGBA", fill="#00000000")


def contact_sheet(videos: Iterable[tuple[Path, str]]) -> Image.Image:
    """A row for each (file, prompt): the prompt, then frames spread evenly over the video.

    A file is a video or a folder of PNG frames; there must be one. Raises data.video.VideoError,
    OSError.
    """
    return image_grid(
        [
            [_caption(" ".join(prompt.split())), *_cells(read_frames(file))]
            for file, prompt in videos
        ]
    )


def _caption(prompt: str) -> Image.Image:
    picture = Image.new("RGB", (CAPTION, SIDE), "white")
    font = ImageFont.load_default(14)
    ImageDraw.Draw(picture).text((8, SIDE // 2), prompt, fill="black", font=font, anchor="lm")
    return picture


def _cells(frames: NDArray[np.uint8]) -> list[Image.Image]:
    """`COLUMNS` of the frames (F, H, W, 3), each `SIDE` pixels high."""
    size = (max(1, round(SIDE * frames.shape[2] / frames.shape[1])), SIDE)
    return [
        Image.fromarray(frames[index]).resize(size, Image.Resampling.LANCZOS)
        for index in spread_indices(len(frames))
    ]


def read_frames(file: Path) -> NDArray[np.uint8]:
    """The frames (F, H, W, 3) of a video file or of a folder of PNG frames.

    Raises data.video.VideoError, OSError.
    """
    if not file.is_dir():
        return read_video(file)[0]
    try:
        frames = [np.asarray(read_picture(frame)) for frame in sorted(file.glob("*.png"))]
    except VideoError as error:
        raise VideoError(f"{file}: {error}") from None
    if len({frame.shape for frame in frames}) > 1:
        raise VideoError(f"{file}: has frames of different sizes")
    return np.stack(frames)
