"""Charts of figures with intervals, as pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import count, takewhile
from typing import Final

from PIL import Image, ImageDraw, ImageFont

from demo_t2v.evaluation.metrics.metric import Figure

COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Colours that colour-blind readers tell apart (Okabe and Ito, 2008), in turn."""
GROUP: Final = 160
"""Width of the bars of a group, and of the space between groups, in pixels."""
_PLOT: Final = 320  # height in pixels
_LEFT, _RIGHT, _LINE, _TICK = 80, 20, 24, 6  # pixels


def bar_chart(
    groups: Sequence[str], series: Mapping[str, Sequence[Figure | None]], title: str
) -> Image.Image:
    """A group of bars for each name in `groups`, with a bar of each series and its 95 % interval.

    None is no bar. A name may have two lines. The axis begins at 0, so figures must not be
    negative.
    """
    bars = [figure for figures in series.values() for figure in figures if figure is not None]
    top = max(max((figure.value, *(figure.interval or ()))) for figure in bars) or 1.0
    step = tick_step(top)
    head = (1 + len(series)) * _LINE + _LINE // 2
    size = (_LEFT + GROUP * len(groups) + _RIGHT, head + _PLOT + 7 * _LINE // 2)
    picture = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(16)
    base, right = head + _PLOT, size[0] - _RIGHT

    def height(value: float) -> float:
        return base - value / top * _PLOT

    draw.text((_LEFT, _LINE / 2), title, "black", font, anchor="lm")
    for value in takewhile(lambda value: value <= top, (step * number for number in count())):
        line = height(value)
        draw.line([(_LEFT, line), (right, line)], "#dddddd")
        draw.text((_LEFT - _TICK, line), f"{value:g}"[:7], "black", font, anchor="rm")
    width = GROUP * 0.8 / len(series)
    for number, (name, figures) in enumerate(series.items()):
        colour, row = COLOURS[number % len(COLOURS)], (1.5 + number) * _LINE
        draw.rectangle([_LEFT, row - 7, _LEFT + 14, row + 7], colour)
        draw.text((_LEFT + 22, row), name, "black", font, anchor="lm")
        for index, figure in enumerate(figures):
            if figure is None:
                continue
            left = _LEFT + GROUP * (index + 0.1) + number * width
            draw.rectangle([left, height(figure.value), left + width - 3, base], colour)
            if figure.interval is not None:
                low, high = map(height, figure.interval)
                middle = left + width / 2 - 1.5
                draw.line([(middle, low), (middle, high)], "black", 2)
                for end in (low, high):
                    draw.line([(middle - 4, end), (middle + 4, end)], "black", 2)
    for index, name in enumerate(groups):
        middle = _LEFT + GROUP * (index + 0.5)
        for number, text in enumerate(name.split("\n")):
            draw.text((middle, base + (number + 0.8) * _LINE), text, "black", font, anchor="mm")
    draw.line([(_LEFT, base), (right, base)], "black", 2)
    return picture


def tick_step(top: float) -> float:
    """1, 2 or 5 times a power of ten, so that there are 3 to 7 ticks above 0."""
    power = 10.0 ** math.floor(math.log10(top / 3))
    return max(step for step in (power, 2 * power, 5 * power) if step <= top / 3)
