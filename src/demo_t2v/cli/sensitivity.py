"""The command `demo-t2v evaluate sensitivity`: the pilot study of DEMO."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from demo_t2v.cli.terminal import one_line_errors, progress
from demo_t2v.core.imports import uncollected

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.table import Table

    from demo_t2v.evaluation.metrics.metric import Figure
    from demo_t2v.evaluation.sensitivity import SensitivityReport


def sensitivity(
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|FOLDER|HUB_ID",
            show_default="sprites",
            help="A model, whose text encoders are measured. Repeatable.",
        ),
    ] = None,
    clip: Annotated[
        list[str] | None,
        typer.Option(metavar="FOLDER|HUB_ID", help="A CLIP of transformers. Repeatable."),
    ] = None,
    words: Annotated[
        str | None,
        typer.Option(
            metavar="english|sprites|FILE.yaml",
            show_default="sprites for the built-in models, else english",
            help="Templates and words.",
        ),
    ] = None,
    groups: Annotated[int, typer.Option(min=2, help="Groups of each part of speech.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the groups' words.")] = 0,
    out: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Report to write.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Chart to write.")] = None,
) -> None:
    """Measure how much text encoders change with nouns, verbs and other parts of speech."""
    with one_line_errors():
        from rich.console import Console

        from demo_t2v.checkpoints.resolve import BUILT_IN
        from demo_t2v.core.atomic_io import atomic_write
        from demo_t2v.evaluation.report import check_picture, check_writable
        from demo_t2v.evaluation.word_lists import read_word_lists

        if plot is not None:
            check_picture("--plot", plot)
        if out is not None:
            check_writable(out)
        models = list(model or ([] if clip else ["sprites"]))
        name = words or ("sprites" if set(models) & BUILT_IN.keys() else "english")
        lists = read_word_lists(name)

        with uncollected():
            from demo_t2v.evaluation.sensitivity import Encoders, measure_sensitivity

        encoders = [Encoders.of_model(each) for each in models]
        encoders += [Encoders.of_clip(each) for each in clip or ()]
        with progress("groups", len(encoders) * len(lists.parts) * groups) as bar:
            report = measure_sensitivity(
                encoders, name, lists, groups=groups, seed=seed, on_group=bar.advance
            )
        if out is not None:
            report.save(out)
        if plot is not None:
            with atomic_write(plot) as partial:
                _chart(report).save(partial, "PNG", optimize=True)
        Console().print(_table(report))


def _table(report: SensitivityReport) -> Table:
    from rich.table import Table

    table = Table("encoder", "part of speech", "1 - cosine", "relative L2")
    table.title = f"Sensitivity, with 95 % intervals; words: {report.words}"
    for encoder in report.encoders:
        for number, each in enumerate(report.of_encoder(encoder)):
            figures = map(_shown, (each.cosine, each.relative_l2))
            name = encoder if number == 0 else ""
            table.add_row(name, f"{each.part} ({each.describes})", *figures)
    return table


def _shown(figure: Figure) -> str:
    low, high = figure.interval or (figure.value, figure.value)
    return f"{figure.value:.2g} ({low:.2g} to {high:.2g})"


def _chart(report: SensitivityReport) -> Image:
    from demo_t2v.evaluation.bar_chart import bar_chart

    series = {
        encoder: [each.cosine for each in report.of_encoder(encoder)] for encoder in report.encoders
    }
    first = report.of_encoder(report.encoders[0])
    groups = [f"{each.part}\n({each.describes})" for each in first]
    return bar_chart(groups, series, "1 - cosine between [eot] states, by the part that differs")
