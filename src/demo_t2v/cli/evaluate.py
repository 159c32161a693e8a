"""The commands `demo-t2v evaluate ...`: scores of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from demo_t2v.cli.terminal import one_line_errors, progress
from demo_t2v.core.imports import uncollected

evaluate = typer.Typer(no_args_is_help=True, help="Score a model.")


@evaluate.command()
def sprites(
    model: Annotated[
        str, typer.Option(metavar="NAME|FOLDER|HUB_ID", help="The model to score.")
    ] = "sprites",
    out: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Report to write.")] = None,
    base: Annotated[
        str, typer.Option(metavar="NAME|FOLDER", help="Model to compare with; '' for none.")
    ] = "sprites-base",
    trained: Annotated[int, typer.Option(min=0, help="Prompts of trained pairs.")] = 216,
    held_out: Annotated[int, typer.Option(min=0, help="Prompts of held-out pairs.")] = 108,
) -> None:
    """Count the videos that show the requested thing and motion."""
    with one_line_errors():
        from rich.console import Console

        with uncollected():
            from demo_t2v.evaluation.report import check_writable, save_report, tables
            from demo_t2v.evaluation.sprites.benchmark import evaluate as run

        if out is not None:
            check_writable(out)
        videos = (trained + held_out) * (3 if base else 2)
        with progress("videos", videos) as bar:
            report = run(
                model,
                base=base or None,
                num_trained=trained,
                num_held_out=held_out,
                on_video=bar.advance,
            )
        if out is not None:
            save_report(report, out)
        console = Console()
        for table in tables(report):
            console.print(table)
