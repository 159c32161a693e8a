"""`demo-t2v evaluate`: how well a model does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from demo_t2v.cli.terminal import (
    one_line_errors,
)

evaluate = typer.Typer(no_args_is_help=True, help="Score a model.")


@evaluate.command()
def sprites(
    model: Annotated[
        str, typer.Option(metavar="NAME|FOLDER|HUB_ID", help="The model to score.")
    ] = "sprites",
    out: Annotated[Path | None, typer.Option(metavar="FILE.json", help="The figures.")] = None,
    base: Annotated[
        str, typer.Option(metavar="NAME|FOLDER", help="What to compare it with; '' for nothing.")
    ] = "sprites-base",
    trained: Annotated[int, typer.Option(min=0, help="Prompts of pairs trained on.")] = 216,
    held_out: Annotated[int, typer.Option(min=0, help="Prompts of other pairs.")] = 108,
) -> None:
    """How often a video shows the thing and the motion that were asked for."""
    with one_line_errors():
        from demo_t2v.evaluation.sprites.benchmark import main as run

        run(model, out=out, base=base or None, trained=trained, held=held_out)
