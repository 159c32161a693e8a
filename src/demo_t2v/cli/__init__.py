"""The command line.

Exit codes are 2 for bad input, 1 for a failure, 130 for Ctrl-C, and 143 for a training that SIGTERM
stops. Each prints one line on stderr.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import Annotated

import typer

from demo_t2v.cli.card import card
from demo_t2v.cli.data import data
from demo_t2v.cli.evaluate import evaluate
from demo_t2v.cli.explain import explain
from demo_t2v.cli.generate import generate
from demo_t2v.cli.grid import grid
from demo_t2v.cli.info import info
from demo_t2v.cli.learn_motion import learn_motion
from demo_t2v.cli.terminal import events_on_stderr
from demo_t2v.cli.train import train
from demo_t2v.cli.usage import OneLineGroup
from demo_t2v.cli.web import web
from demo_t2v.cli.weights import weights
from demo_t2v.core.launch import exit_process

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
app.command()(grid)
app.command()(explain)
app.command()(info)
app.command()(web)
app.command()(card)
app.command()(train)
app.command()(learn_motion)


def main() -> None:
    """Run the program. The entry point of `demo-t2v` and `python -m demo_t2v`."""
    # Starts here because usage errors and imports print lines on stderr, too.
    events = sys.argv[1:2] in (["generate"], ["grid"]) and "--json" in sys.argv
    try:
        with events_on_stderr() if events else nullcontext():
            app(prog_name="demo-t2v")
    except SystemExit as end:
        exit_process(int(end.code or 0))


def _print_version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        typer.echo(f"demo-t2v {version('demo-t2v')}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass
