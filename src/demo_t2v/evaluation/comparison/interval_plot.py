"""Plots of figures with intervals as SVG, for a page in light or dark colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from markupsafe import Markup, escape

from demo_t2v.evaluation.bar_chart import tick_step
from demo_t2v.evaluation.comparison.sections import Column
from demo_t2v.evaluation.comparison.text_tables import number

COLOURS: Final = 6
"""The style sheet has classes c0 to c5 for the columns in turn."""
_WIDTH, _LABEL, _VALUE, _ROW, _TOP, _BOTTOM = 460, 150, 78, 30, 6, 26  # pixels
_LETTERS: Final = 21  # of a label


def interval_plot(metric: str, columns: Sequence[Column]) -> Markup:
    """A row for each column that has the metric: a dot, and a line for the 95 % interval.

    Quoted figures are hollow. The axis need not begin at 0. A column must have the metric.
    """
    shown = [(place, c, c.figures[metric]) for place, c in enumerate(columns)
             if metric in c.figures]  # fmt: skip
    ends = [end for *_, figure in shown for end in (figure.value, *(figure.interval or ()))]
    low, high = _padded(min(ends), max(ends))
    right, bottom = _WIDTH - _VALUE, _TOP + _ROW * len(shown)

    def x(value: float) -> str:
        return f"{_LABEL + (value - low) / (high - low) * (right - _LABEL):.1f}"

    parts = []
    step = tick_step(high - low)
    if high - low > 5 * step:  # too many for their labels
        step = tick_step(2 * (high - low))
    for count in range(math.ceil(low / step), math.floor(high / step) + 1):
        tick = count * step
        parts.append(
            f'<line class="grid" x1="{x(tick)}" x2="{x(tick)}" y1="{_TOP}" y2="{bottom}"/>'
            f'<text class="tick" x="{x(tick)}" y="{bottom + 17}">{tick:.6g}</text>'
        )
    for row, (place, column, figure) in enumerate(shown):
        y = _TOP + _ROW * (row + 0.5)
        colour = f"c{place % COLOURS}"
        name = column.name if len(column.name) <= _LETTERS else f"…{column.name[1 - _LETTERS :]}"
        parts.append(f'<text class="name" x="{_LABEL - 12}" y="{y + 4}">{escape(name)}</text>')
        if figure.interval is not None:
            one, other = map(x, figure.interval)
            parts.append(f'<line class="interval {colour}" x1="{one}" x2="{other}" '
                         f'y1="{y}" y2="{y}"/>')  # fmt: skip
        kind = "quoted" if column.quoted else "dot"
        parts.append(
            f'<circle class="{kind} {colour}" cx="{x(figure.value)}" cy="{y}" r="5"/>'
            f'<text class="value" x="{_WIDTH}" y="{y + 4}">{number(figure.value)}</text>'
        )
    said = "; ".join(f"{column.name} {number(figure.value)}" for _, column, figure in shown)
    return Markup(
        f'<svg viewBox="0 0 {_WIDTH} {bottom + _BOTTOM}" role="img" '
        f'aria-label="{escape(f"{metric}: {said}")}">{"".join(parts)}</svg>'
    )


def _padded(low: float, high: float) -> tuple[float, float]:
    """The range of an axis, wider than the values by a tenth."""
    margin = (high - low) / 20 or abs(high) / 20 or 1.0
    return low - margin, high + margin
