"""Frames of a few videos of each model, to be shown in a page."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Final

from demo_t2v.core.atomic_io import digest
from demo_t2v.data.video import VideoError
from demo_t2v.evaluation.comparison.sections import video_keys
from demo_t2v.evaluation.frame_grids import frame_strip, spread_indices
from demo_t2v.evaluation.results import Results

SAMPLES: Final = 4
"""Videos that are shown of each model."""
_QUALITY: Final = 80  # of WebP


@dataclass(frozen=True)
class FrameSample:
    """One prompt or name, and for each model that has the video its frames as a data URI."""

    title: str
    strips: dict[str, str]


def make_samples(results: Sequence[Results]) -> list[FrameSample]:
    """Up to `SAMPLES` videos that all results have, or else the first of each.

    There must be a video. Files that are gone or have changed since the measurement are left out.
    """
    numbers = video_keys(results)
    shared = [key for key in numbers[0] if all(key in each for each in numbers)]
    keys = shared or [key for each in numbers for key in list(each)[:1]]
    samples = []
    for key in dict.fromkeys(keys[place] for place in spread_indices(len(keys), SAMPLES)):
        strips = {
            each.subject: strip
            for each, found in zip(results, numbers, strict=True)
            if key in found
            for strip in _strip(each, found[key])
        }
        if strips:
            samples.append(FrameSample(key[0], strips))
    return samples


def _strip(results: Results, place: int) -> Iterator[str]:
    """The frames of a video as one picture; nothing where it is gone or has changed."""
    row = results.videos[place]
    file = Path(results.folder) / str(row.get("name", ""))
    try:
        if not results.folder or digest(file) != row.get("sha256"):
            return
        picture = frame_strip(file)
    except (OSError, VideoError):
        return
    stream = BytesIO()
    picture.save(stream, "WebP", quality=_QUALITY)
    yield f"data:image/webp;base64,{b64encode(stream.getvalue()).decode()}"
