"""`demo-t2v train`: one stage of a training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from demo_t2v.checkpoints.resolve import quieten_libraries
from demo_t2v.cli.terminal import (
    leave,
    one_line_errors,
    only_reports_on_stdout,
    progress,
)
from demo_t2v.config import load
from demo_t2v.core.launch import world_size
from demo_t2v.training.config import AnyTraining, find_models, fit_device


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
        from demo_t2v.training.distributed.deepspeed_config import take_settings
        from demo_t2v.training.logging import Watch
        from demo_t2v.training.tasks import make_task
        from demo_t2v.training.trainer import TrainingStopped
        from demo_t2v.training.trainer import train as run

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
