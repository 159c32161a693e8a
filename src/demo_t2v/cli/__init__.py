"""The command line.

Bad input ends with exit code 2, a failure with 1, Ctrl-C with 130, a training that was asked to
stop (SIGTERM) with 143: each with one line on stderr.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from importlib.metadata import version
from typing import Annotated

import typer

from demo_t2v.cli.card import card
from demo_t2v.cli.data import data
from demo_t2v.cli.evaluate import evaluate
from demo_t2v.cli.generate import generate
from demo_t2v.cli.info import info
from demo_t2v.cli.terminal import events_on_stderr
from demo_t2v.cli.train import train
from demo_t2v.cli.usage import OneLineGroup
from demo_t2v.cli.web import web
from demo_t2v.cli.weights import weights

app = typer.Typer(
    cls=OneLineGroup,
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Text to video with decomposed content and motion.",
)
app.add_typer(evaluate, name="evaluate")
app.add_typer(data, name="data")
app.add_typer(weights)
app.command()(generate)
app.command()(info)
app.command()(web)
app.command()(card)
app.command()(train)


def main() -> None:
    """Run the program; what `demo-t2v` and `python -m demo_t2v` call."""
    # As early as this, for usage errors and what imports print are lines on stderr, too.
    events = sys.argv[1:2] == ["generate"] and "--json" in sys.argv
    with events_on_stderr() if events else nullcontext():
        app(prog_name="demo-t2v")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"demo-t2v {version('demo-t2v')}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Say which.")
    ] = False,
) -> None:
    pass
