"""Results as tables for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from demo_t2v.evaluation.results import Results


def results_table(results: Results) -> Table:
    """A row for each metric: its value with the 95 % interval, the number of videos, and notes."""
    table = Table("metric", "value", "95 %", "videos", "notes", title=results.subject)
    for result in results.metrics:
        figure = result.figure
        if figure is None:
            table.add_row(result.name, "-", "", "", f"not computed: {result.not_computed}")
            continue
        interval = "" if figure.interval is None else "{:.4g} to {:.4g}".format(*figure.interval)
        notes = [f"{name} {value:.4g}" for name, value in figure.extra.items()] + [*figure.notes]
        table.add_row(
            result.name, f"{figure.value:.4g}", interval, str(figure.count), "; ".join(notes)
        )
    return table
