"""The command `demo-t2v train`: one stage of a training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from demo_t2v.checkpoints.resolve import quieten_libraries
from demo_t2v.cli.terminal import exit_with, one_line_errors, only_reports_on_stdout, progress
from demo_t2v.config import load
from demo_t2v.core.imports import uncollected
from demo_t2v.core.launch import world_size


def train(
    config: Annotated[
        Path, typer.Option("--config", "--cfg", metavar="FILE", help="One stage, as YAML.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", show_default=False)
    ] = None,
    resume: Annotated[
        str,
        typer.Option(metavar="auto|PATH|none", help="Checkpoint to resume. Default: the last."),
    ] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object a log line.")] = False,
) -> None:
    """Train one stage of a model; continues from the last checkpoint of an earlier run."""
    with one_line_errors(), only_reports_on_stdout() as report:
        # Schemas take time to build: other commands do without those of training.
        from demo_t2v.training.config import AnyTraining, DenoiserTraining, find_models, fit_device

        settings = find_models(load(AnyTraining, config, overrides or []))
        source: Any = resume if resume in ("auto", "none") else Path(resume)
        with uncollected():
            from demo_t2v.training.data.feature_cache import prepare
            from demo_t2v.training.distributed.deepspeed_config import apply_deepspeed_config
            from demo_t2v.training.logging import RunLogger
            from demo_t2v.training.tasks import make_task
            from demo_t2v.training.trainer import TrainingStopped
            from demo_t2v.training.trainer import train as run

        quieten_libraries()
        settings = fit_device(apply_deepspeed_config(settings, world_size()))
        if isinstance(settings, DenoiserTraining) and settings.latents is not None:
            with progress("clips", None) as bar:
                prepare(settings, lambda _: bar.advance())
        task = make_task(settings)
        try:
            with progress("steps", settings.num_steps) as bar, RunLogger(task, settings) as logger:
                for line in run(task, settings, source):
                    logger.log(line)
                    if as_json:
                        print(json.dumps(line), file=report, flush=True)
                    else:
                        bar.print_line(
                            "  ".join(f"{name} {value:.5g}" for name, value in line.items())
                        )
                    bar.update(int(line["step"]))
        except TrainingStopped as stopped:
            exit_with(str(stopped), stopped.code)
