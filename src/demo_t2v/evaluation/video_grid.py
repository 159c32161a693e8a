"""Contact-sheet videos: several videos of one size in one frame, with labelled rows and columns."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from demo_t2v.core.atomic_io import sync_all, temporary_path
from demo_t2v.data.video import write_video
from demo_t2v.evaluation.frame_grids import read_frames
from demo_t2v.evaluation.labels import column_label, row_label, wrap
from demo_t2v.inference.jobs import split_batches

if TYPE_CHECKING:
    from demo_t2v.inference.grid import Grid
    from demo_t2v.inference.jobs import Job
    from demo_t2v.inference.outputs import OutputFolder

MAX_SIDE: Final = 4096
"""About the longest side of a sheet in pixels, which players of H.264 can show."""
_CELL: Final = 160  # Smaller videos are enlarged by a whole factor to at least this height.
_LABEL: Final = 200  # width of the rows' labels
_LINES: Final = 6  # of a column's label
_GAP: Final = 4

Frames = NDArray[np.uint8]
"""(F, H, W, 3) RGB."""


def write_sheet(grid: Grid, folder: OutputFolder, jobs: Sequence[Job]) -> Path:
    """Write `grid` with the folder's format and frame rate, from the jobs' videos in the folder.

    Returns its path: `grid.mp4`, or with another ending. Raises data.video.VideoError, OSError.
    """
    videos = [read_frames(folder.file(job)) for job in jobs]
    sheet = video_grid(
        split_batches(videos, len(grid.columns)),
        [motion for _, motion in grid.rows],
        [content for _, content in grid.columns],
    )
    kind = folder.settings["format"]
    file = folder.path / ("grid" if kind == "png" else f"grid.{kind}")
    with temporary_path(file) as partial:
        write_video(sheet, partial, folder.settings["fps"], kind)
        sync_all(partial)
        if file.is_dir():
            shutil.rmtree(file)  # a folder of frames cannot be replaced by rename
        partial.replace(file)
    return file


def video_grid(
    videos: Sequence[Sequence[Frames]], rows: Sequence[str], columns: Sequence[str]
) -> Frames:
    """One video of all `videos`, which are listed row by row and have one shape (F, H, W, 3).

    `rows` and `columns` are their labels. A label that is too long for its place ends in an
    ellipsis. Sides of the result are even, as H.264 needs them.
    """
    frames, height, width, _ = videos[0][0].shape
    cell = cell_height(height, max(len(rows), len(columns)))
    size = (max(1, round(width * cell / height)), cell)
    lines = max(len(wrap(text, size[0], _LINES)) for text in columns)
    heads = [column_label(text, size[0], lines) for text in columns]
    lefts = [_LABEL + number * (size[0] + _GAP) for number in range(len(columns))]
    tops = [heads[0].height + number * (cell + _GAP) for number in range(len(rows))]
    sides = lefts[-1] + size[0], tops[-1] + cell
    picture = Image.new("RGB", (sides[0] + sides[0] % 2, sides[1] + sides[1] % 2), "white")
    for left, head in zip(lefts, heads, strict=True):
        picture.paste(head, (left, 0))
    for top, text in zip(tops, rows, strict=True):
        picture.paste(row_label(text, _LABEL, cell), (0, top))
    sheet = np.repeat(np.asarray(picture)[None], frames, axis=0)
    for top, row in zip(tops, videos, strict=True):
        for left, video in zip(lefts, row, strict=True):
            sheet[:, top : top + cell, left : left + size[0]] = _resized(video, size)
    return sheet


def cell_height(height: int, count: int) -> int:
    """Height in pixels of the cells of a sheet with `count` rows or columns, whichever are more.

    It is a whole multiple of the videos' `height`, unless that exceeds MAX_SIDE.
    """
    return min(height * -(-_CELL // height), MAX_SIDE // count)


def _resized(video: Frames, size: tuple[int, int]) -> Frames:
    pictures = (Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS) for frame in video)
    return np.stack([np.asarray(picture) for picture in pictures])
