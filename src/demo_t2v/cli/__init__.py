"""The command line.

Bad input ends with exit code 2, a failure with 1, Ctrl-C with 130, a training that was asked to
stop (SIGTERM) with 143: each with one line on stderr.
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from demo_t2v.cli.card import card
from demo_t2v.cli.data import data
from demo_t2v.cli.generate import generate
from demo_t2v.cli.info import info
from demo_t2v.cli.terminal import (
    events_on_stderr,
    leave,
    one_line_errors,
    only_reports_on_stdout,
    progress,
)
from demo_t2v.cli.usage import OneLineGroup
from demo_t2v.cli.web import web
from demo_t2v.cli.weights import weights
from demo_t2v.config import load
from demo_t2v.launch import world_size
from demo_t2v.training.config import AnyTraining, find_models, fit_device
from demo_t2v.weights.hub import quieten_libraries

app = typer.Typer(
    cls=OneLineGroup,
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Text to video with decomposed content and motion.",
)
evaluate = typer.Typer(no_args_is_help=True, help="Score a model.")
app.add_typer(evaluate, name="evaluate")
app.add_typer(data, name="data")
app.add_typer(weights)
app.command()(generate)
app.command()(info)
app.command()(web)
app.command()(card)


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


@app.command()
def train(
    config: Annotated[
        Path, typer.Option("--config", "--cfg", metavar="FILE", help="One stage, as YAML.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", show_default=False)
    ] = None,
    resume: Annotated[
        str, typer.Option(metavar="auto|PATH|none", help="Where to go on: auto is the last one.")
    ] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object a log line.")] = False,
) -> None:
    """Train one stage of a model; goes on from the last checkpoint of an earlier run of it."""
    with one_line_errors(), only_reports_on_stdout() as report:
        settings = find_models(load(AnyTraining, config, overrides or []))
        source: Any = resume if resume in ("auto", "none") else Path(resume)
        from demo_t2v.training.loop import TrainingStopped
        from demo_t2v.training.loop import train as run
        from demo_t2v.training.tasks import make_task
        from demo_t2v.training.watch import Watch
        from demo_t2v.training.zero_settings import take_settings

        quieten_libraries()
        settings = fit_device(take_settings(settings, world_size()))
        task = make_task(settings)
        try:
            with progress("steps", settings.num_steps) as bar, Watch(task, settings) as watch:
                for line in run(task, settings, source):
                    watch.show(line)
                    if as_json:
                        print(json.dumps(line), file=report, flush=True)
                    else:
                        bar.say("  ".join(f"{name} {value:.5g}" for name, value in line.items()))
                    bar.reach(int(line["step"]))
        except TrainingStopped as stopped:
            leave(str(stopped), stopped.code)


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
        from demo_t2v.evaluation.sprites import main as run

        run(model, out=out, base=base or None, trained=trained, held=held_out)
