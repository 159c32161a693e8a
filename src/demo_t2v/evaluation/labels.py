"""Labels of rows and columns in pictures of videos."""

from __future__ import annotations

import textwrap
from typing import Final

from PIL import Image, ImageDraw, ImageFont

LINE: Final = 20
"""Height of a line in pixels."""
MARGIN: Final = 8
"""Space between a label and its row, in pixels."""
_FONT: Final = 16
_LETTER: Final = 8  # mean width of a letter


def wrap(text: str, width: int, most: int) -> list[str]:
    """The text in at most `most` lines of about `width` pixels; it may end in an ellipsis."""
    letters = width // _LETTER
    return textwrap.wrap(text, letters, max_lines=most, placeholder=" \N{HORIZONTAL ELLIPSIS}")


def row_label(text: str, width: int, height: int) -> Image.Image:
    """The text on white, at the right edge and centred vertically: a label left of a row."""
    picture = Image.new("RGB", (width, height), "white")
    lines = wrap(text, width - MARGIN, height // LINE)
    first = (height - (len(lines) - 1) * LINE) / 2
    for number, line in enumerate(lines):
        _draw(picture, (width - MARGIN, first + number * LINE), line, "rm")
    return picture


def column_label(text: str, width: int, lines: int) -> Image.Image:
    """The text on white, at the bottom and centred: a label above a column, `lines` lines high."""
    picture = Image.new("RGB", (width, lines * LINE + MARGIN), "white")
    for number, line in enumerate(reversed(wrap(text, width, lines))):
        _draw(picture, (width / 2, picture.height - (number + 0.5) * LINE), line, "mm")
    return picture


def _draw(picture: Image.Image, position: tuple[float, float], line: str, anchor: str) -> None:
    font = ImageFont.load_default(_FONT)
    ImageDraw.Draw(picture).text(position, line, fill="black", font=font, anchor=anchor)
