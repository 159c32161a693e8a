"""An explanation of a video's motion as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

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


def draw_explanation(explanation: Explanation, prompt: str, against: str) -> Image.Image:
    """Rows of frames: the video, its optical flow, the motion attention as a heat map over it, the
    video with the motion prompt `against`, and the difference of the two.
    """
    frames = [enlarged(frame) for frame in explanation.frames]
    flow = optical_flow(explanation.frames)
    chosen = spread_indices(len(flow), min(COLUMNS, len(flow)))
    other = (
        f"the motion prompt \N{LEFT DOUBLE QUOTATION MARK}{against}\N{RIGHT DOUBLE QUOTATION MARK}"
    )
    if not against:
        other = "an empty motion prompt"
    attention, difference = normalized(explanation.attention), normalized(explanation.difference)
    rows: dict[str, Sequence[Image.Image]] = {
        "frames": frames,
        "optical flow: an arrow is three times the way to the next frame": [
            with_arrows(frames[number].copy(), flow[number]) for number in range(len(flow))
        ],
        "motion attention to [eot]: bright is high": [
            with_heat(*pair) for pair in zip(frames, attention, strict=True)
        ],
    }
    if explanation.other_frames is not None:
        rows[f"frames with {other}"] = [enlarged(frame) for frame in explanation.other_frames]
    what = "difference of the frames" if explanation.other_frames is not None else "difference"
    rows[f"{what} with {other}: bright is large"] = [
        with_heat(*pair) for pair in zip(frames, difference, strict=True)
    ]
    width = frames[0].width
    table = image_grid(
        [
            [row_label(text, _LABEL, HEIGHT), *(pictures[number] for number in chosen)]
            for text, pictures in rows.items()
        ],
        _GAP,
    )
    return _with_heads(table, prompt, [f"frame {number}" for number in chosen], width)


def _with_heads(table: Image.Image, prompt: str, heads: Sequence[str], width: int) -> Image.Image:
    """The table below the prompt and a head for each column of frames."""
    title = column_label(prompt, table.width, 2)
    columns = [Image.new("RGB", (_LABEL, 1), "white"), *(column_label(h, width, 1) for h in heads)]
    top = title.height + columns[-1].height
    picture = Image.new("RGB", (table.width, top + table.height), "white")
    picture.paste(title, (0, 0))
    for number, head in enumerate(columns[1:]):
        picture.paste(head, (_LABEL + _GAP + number * (width + _GAP), title.height))
    picture.paste(table, (0, top))
    return picture
