"""Grids of contents and motions as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from PIL import Image, ImageOps

from demo_t2v.data.sprites import MOTIONS
from demo_t2v.evaluation.frame_grids import image_grid, spread_indices
from demo_t2v.evaluation.labels import column_label, row_label
from demo_t2v.evaluation.sprites.disentanglement import Cell, ContentMotionGrid, Variant

FRAMES: Final = 4
"""Frames of each video, evenly spread."""
_SIDE, _BORDER, _LABEL, _GAP = 64, 4, 140, 6  # pixels
_COLOURS: Final = {2: "#009E73", 1: "#E69F00", 0: "#D55E00"}  # by how much is right


def draw_grids(variants: Sequence[Variant]) -> Image.Image:
    """All grids one below the other, a row for each motion and a column for each content.

    A cell has frames from the first to the last. Its border is green where content and motion are
    right, yellow where one of them is, and red where none is.
    """
    grids = [(variant.name, grid) for variant in variants for grid in variant.grids]
    return _stack([_draw(f"{grid.handle}: {name}", grid) for name, grid in grids])


def _stack(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of any size, one below the other on white."""
    size = max(each.width for each in pictures), sum(each.height + _GAP for each in pictures) - _GAP
    whole, top = Image.new("RGB", size, "white"), 0
    for each in pictures:
        whole.paste(each, (0, top))
        top += each.height + _GAP
    return whole


def _draw(name: str, grid: ContentMotionGrid) -> Image.Image:
    rows = [
        [
            row_label(MOTIONS[row[0].motion][0], _LABEL, _SIDE + 2 * _BORDER),
            *(_strip(cell) for cell in row),
        ]
        for row in grid.rows
    ]
    width = rows[0][1].width
    heads = [column_label(f"{cell.thing} {cell.background}", width, 2) for cell in grid.rows[0]]
    title = column_label(name, sum(each.width + _GAP for each in rows[0]), 1)
    head = image_grid([[column_label("", _LABEL, 2), *heads]], _GAP)
    return _stack([title, head, image_grid(rows, _GAP)])


def _strip(cell: Cell) -> Image.Image:
    frames = [cell.frames[index] for index in spread_indices(len(cell.frames), FRAMES)]
    pictures = [Image.fromarray(frame).resize((_SIDE, _SIDE)) for frame in frames]
    colour = _COLOURS[cell.content_right + cell.motion_right]
    return ImageOps.expand(image_grid([pictures]), _BORDER, colour)
