"""The command `demo-t2v card`: a model's card, as the hub shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from demo_t2v.cli.terminal import one_line_errors


def card(
    folder: Annotated[Path, typer.Argument(help="A model's folder, with model_index.json.")],
    repo: Annotated[
        str | None, typer.Option(metavar="ORG/NAME", help="Where it will be on the hub.")
    ] = None,
    license: Annotated[  # noqa: A002
        str | None, typer.Option(metavar="NAME", help="The hub's name of it, such as mit.")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(metavar="ORG/NAME", help="What the training began with.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="TEXT", help="On what it was trained, as Markdown.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The training's YAML.")
    ] = None,
    scores: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="From `evaluate sprites --out`.")
    ] = None,
    samples: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Videos that `generate` made with it.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write it anew.")] = False,
) -> None:
    """Write a model's card, FOLDER/README.md, and print the files.

    The card says what the folder's files and these options say; the rest is left out.
    """
    with one_line_errors():
        from demo_t2v.evaluation.model_card import Facts, write_card

        facts = Facts(repo, license, base_model, data, config, scores, samples)
        for file in write_card(folder, facts, overwrite):
            typer.echo(file)
