"""A report as one HTML page, which needs no other file, no network and no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader

from demo_t2v.evaluation.comparison.interval_plot import COLOURS, interval_plot
from demo_t2v.evaluation.comparison.sample_strips import make_samples
from demo_t2v.evaluation.comparison.sections import Section
from demo_t2v.evaluation.comparison.text_tables import (
    ARROWS,
    QUOTED,
    figures_table,
    number,
    tests_table,
)
from demo_t2v.evaluation.results import Results

_FOLDER: Final = Path(__file__).parents[2] / "assets" / "report"


def as_page(sections: Sequence[Section], results: Sequence[Results]) -> str:
    """The page: figures, plots, tests, frames, and what the figures depend on."""
    environment = Environment(
        loader=FileSystemLoader(_FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html").render(
        sections=sections,
        figures_table=figures_table,
        tests_table=tests_table,
        interval_plot=interval_plot,
        arrows=ARROWS,
        quoted=QUOTED,
        colours=COLOURS,
        samples=make_samples(results) if results else [],
        origins=[(each.subject, _origin(each)) for each in results],
        dependencies=_dependencies(results),
    )


def _origin(results: Results) -> dict[str, str]:
    """What the videos of one of the results depend on, as texts."""
    sizes = {
        f"{row['frames']} frames of {row['width']}x{row['height']} at {row['fps']:g} a second"
        for row in results.videos
        if {"frames", "width", "height", "fps"} <= row.keys()
    }
    seeds = [row["seed"] for row in results.videos if "seed" in row]
    facts: dict[str, Any] = {
        "videos": len(results.videos),
        "size": ", ".join(sorted(sizes)[:3]) + (", ..." if len(sizes) > 3 else ""),
        "real videos": results.real,
        "sha256 of the real videos": results.real_sha256,
        "seeds": f"{len(set(seeds))} different, the first is {seeds[0]}" if seeds else "",
        **results.settings,
        **{
            f"{metric.name}, {key}": number(value)
            for metric in results.metrics
            if metric.figure is not None
            for key, value in metric.figure.extra.items()
        },
        **{f"version of {name}": version for name, version in results.versions.items()},
    }
    return {name: _text(value) for name, value in facts.items() if value not in ("", None)}


def _dependencies(results: Sequence[Results]) -> dict[str, str]:
    """What each metric depends on beside the videos."""
    found: dict[str, str] = {}
    for each in results:
        for metric in each.metrics:
            if metric.figure is not None and metric.depends_on:
                found[metric.name] = _text(metric.depends_on)
    return found


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_text(each)}" for key, each in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    return str(value)
