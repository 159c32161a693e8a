"""Clips that are given one by one: a video file or a folder of frames, over its whole length."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from demo_t2v.core.atomic_io import reason
from demo_t2v.data.video import Sampling, VideoError, sample_video

_PICTURES: Final = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp"))
_SPREAD: Final = 1e-3
"""Frames a second, so few that the frames of a clip are spread over the whole video."""


def read_whole_clip(source: Path, frames: int, resolution: int) -> NDArray[np.uint8]:
    """`frames` frames of a video file or a folder of pictures, uint8 RGB (F, side, side, 3).

    They are spread evenly over the whole length, the first and the last one included. Pictures are
    in the order of their names. The short side is scaled to `resolution`, the centre is cropped.
    Raises VideoError, which names the source, for a source that does not exist, does not decode or
    has fewer frames.
    """
    sampling = Sampling(frames, _SPREAD, resolution)
    return read_clip(source, sampling, Fraction(1))


def read_clip(source: Path, sampling: Sampling, picture_rate: Fraction) -> NDArray[np.uint8]:
    """A clip from the start of a video file or a folder of pictures, uint8 RGB (F, side, side, 3).

    A folder holds `picture_rate` pictures a second, in the order of their names. Raises VideoError
    as `read_whole_clip`.
    """
    try:
        if source.is_dir():
            return _read_folder(source, sampling, picture_rate)
        return sample_video(source, sampling, None)
    except OSError as error:
        raise VideoError(f"{source}: cannot be read ({reason(error, source)})") from None
    except VideoError as error:
        raise VideoError(f"{source}: {error}") from None


def _read_folder(folder: Path, sampling: Sampling, rate: Fraction) -> NDArray[np.uint8]:
    """A clip of the pictures in a folder. Raises VideoError, whose message does not name it."""
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in _PICTURES)
    if not files:
        raise VideoError("is a folder without pictures (png, jpg, webp, bmp)")
    indices = sampling.indices(len(files), rate, None)
    side = sampling.resolution, sampling.resolution
    pictures = (read_picture(files[index]) for index in indices)  # one full size at a time
    squares = [ImageOps.fit(picture, side, Image.Resampling.BOX) for picture in pictures]
    return np.stack([np.asarray(square) for square in squares])


def read_picture(file: Path) -> Image.Image:
    """A picture file in RGB. Raises VideoError, whose message does not name the folder."""
    try:
        with Image.open(file) as picture:
            return picture.convert("RGB")
    except (UnidentifiedImageError, SyntaxError, OSError):
        raise VideoError(f"{file.name} is no complete picture") from None
