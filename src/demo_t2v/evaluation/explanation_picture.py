"""An explanation of a video's motion as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from demo_t2v.evaluation.explanation import Explanation
from demo_t2v.evaluation.frame_grids import image_grid, spread_indices
from demo_t2v.evaluation.frame_overlays import (
    HEIGHT,
    enlarged,
    normalized,
    optical_flow,
    with_arrows,
    with_heat,
)
from demo_t2v.evaluation.labels import column_label, row_label

COLUMNS: Final = 8
"""Frames in a row; fewer where the video has fewer."""
_LABEL: Final = 240  # width in pixels
_GAP: Final = 4


def draw_explanation(explanation: Explanation, title: str, against: str) -> Image.Image:
    """Rows of frames: the video, its optical flow, the motion attention as a heat map over it, the
    video with the motion prompt `against`, and the difference of the two. `title` stands above.
    """
    frames = [enlarged(frame) for frame in explanation.frames]
    flow = optical_flow(explanation.frames)
    chosen = spread_indices(len(flow), min(COLUMNS, len(flow)))
    quoted = f"\N{LEFT DOUBLE QUOTATION MARK}{against}\N{RIGHT DOUBLE QUOTATION MARK}"
    other = f"the motion prompt {quoted}" if against else "an empty motion prompt"
    rows: dict[str, Sequence[Image.Image]] = {
        "frames": frames,
        "optical flow to the next frame, with arrows three times as long": [
            with_arrows(frame.copy(), each) for frame, each in zip(frames, flow, strict=False)
        ],
        "motion attention to [eot]: bright is high": _heat(frames, explanation.attention),
    }
    last = f"what {other} changes"
    if explanation.other_frames is not None:
        rows[f"frames with {other}"] = [enlarged(frame) for frame in explanation.other_frames]
        last = "difference of these from the frames of the first row"
    rows[f"{last}: bright is large"] = _heat(frames, explanation.difference)
    table = image_grid(
        [
            [row_label(text, _LABEL, HEIGHT), *(pictures[number] for number in chosen)]
            for text, pictures in rows.items()
        ],
        _GAP,
    )
    return _with_heads(table, title, [f"frame {number}" for number in chosen], frames[0].width)


def _heat(frames: Sequence[Image.Image], maps: NDArray[np.float32]) -> list[Image.Image]:
    return [with_heat(*pair) for pair in zip(frames, normalized(maps), strict=True)]


def _with_heads(table: Image.Image, title: str, heads: Sequence[str], width: int) -> Image.Image:
    """The table below its title and a head for each column of frames."""
    top_line = column_label(title, table.width, 2)
    columns = [column_label(head, width, 1) for head in heads]
    top = top_line.height + columns[0].height
    picture = Image.new("RGB", (table.width, top + table.height), "white")
    picture.paste(top_line, (0, 0))
    for number, head in enumerate(columns):
        picture.paste(head, (_LABEL + _GAP + number * (width + _GAP), top_line.height))
    picture.paste(table, (0, top))
    return picture
