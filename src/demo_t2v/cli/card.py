"""The command `demo-t2v card`: writes a model's card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from demo_t2v.cli.terminal import one_line_errors


def card(
    folder: Annotated[Path, typer.Argument(help="Model folder with model_index.json.")],
    repo: Annotated[
        str | None, typer.Option(metavar="ORG/NAME", help="Repository on the hub.")
    ] = None,
    license: Annotated[  # noqa: A002
        str | None, typer.Option(metavar="NAME", help="License name of the hub, such as mit.")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(metavar="ORG/NAME", help="Model that the training started from.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Training data, as Markdown.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Training configuration, YAML.")
    ] = None,
    scores: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Report of `evaluate sprites --out`.")
    ] = None,
    samples: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Output folder of `generate`.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a card.")] = False,
) -> None:
    """Write a model's card, FOLDER/README.md, and print the files.

    Contents come from the model's files and these options; sections without contents are left out.
    """
    with one_line_errors():
        from demo_t2v.evaluation.model_card import CardInfo, write_card

        info = CardInfo(repo, license, base_model, data, config, scores, samples)
        for file in write_card(folder, info, overwrite):
            typer.echo(file)
