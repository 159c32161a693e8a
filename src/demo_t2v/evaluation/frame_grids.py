"""Videos as still pictures: a few frames of each side by side, its prompt before them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from demo_t2v.data.video import read_video

FRAMES: Final = 6
SIDE: Final = 96
CAPTION: Final = 300


def strip(file: Path, prompt: str) -> Image.Image:
    """The prompt, and `FRAMES` frames spread evenly over the video, each `SIDE` pixels high.

    `file` is a video or a folder of PNG frames. Raises data.video.VideoError, OSError.
    """
    frames = _read(file)
    width = max(1, round(SIDE * frames.shape[2] / frames.shape[1]))
    picture = Image.new("RGB", (CAPTION + FRAMES * width, SIDE), "white")
    font = ImageFont.load_default(14)
    ImageDraw.Draw(picture).text((8, SIDE // 2), prompt, fill="black", font=font, anchor="lm")
    for place, index in enumerate(np.linspace(0, len(frames) - 1, FRAMES).round().astype(int)):
        frame = Image.fromarray(frames[index]).resize((width, SIDE), Image.Resampling.LANCZOS)
        picture.paste(frame, (CAPTION + place * width, 0))
    return picture


def contact_sheet(videos: Iterable[tuple[Path, str]]) -> Image.Image:
    """The strips of (file, prompt) pairs, of which there must be one, below each other."""
    rows = [strip(file, " ".join(prompt.split())) for file, prompt in videos]
    sheet = Image.new("RGB", (max(row.width for row in rows), SIDE * len(rows)), "white")
    for place, row in enumerate(rows):
        sheet.paste(row, (0, place * SIDE))
    return sheet


def _read(file: Path) -> NDArray[np.uint8]:
    """The frames (F, H, W, 3)."""
    if not file.is_dir():
        return read_video(file)[0]
    return np.stack([np.asarray(Image.open(frame)) for frame in sorted(file.glob("*.png"))])
