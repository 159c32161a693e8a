"""The command `demo-t2v learn-motion`: a motion word from clips."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from demo_t2v.checkpoints.fingerprint import cache
from demo_t2v.checkpoints.resolve import resolve
from demo_t2v.cli.options import takes_options
from demo_t2v.cli.terminal import exit_with, one_line_errors, only_reports_on_stdout, progress
from demo_t2v.conditioning.motion_words import check_name
from demo_t2v.config import InferenceConfig, load
from demo_t2v.core.imports import uncollected


@takes_options("model", "seed")
def learn_motion(
    clips: Annotated[
        list[Path],
        typer.Argument(
            metavar="CLIPS...", help="1 to 8 videos or folders of frames.", show_default=False
        ),
    ],
    name: Annotated[str, typer.Option(help="The word is written <NAME> in motion prompts.")],
    content: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="What the clips show, without a motion, as `a frog on the grass`."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Default: NAME.safetensors.")
    ] = None,
    *,
    options: Mapping[str, Any],
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps.")] = None,
    vectors: Annotated[int | None, typer.Option(min=1, max=16, help="Vectors of the word.")] = None,
    lr: Annotated[float | None, typer.Option(min=0, help="Learning rate.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Learn a motion from clips as a word for motion prompts.

    Only the word's vectors are trained. An interrupted run resumes with the same command.
    """
    with one_line_errors(), only_reports_on_stdout() as report:
        from demo_t2v.training.config.motion_word import MotionWordTraining

        check_name(name)
        base: InferenceConfig = load(InferenceConfig, None, (), options)
        settings: dict[str, Any] = {"name": name, "content": content, "seed": base.seed}
        given = {"num_steps": steps, "num_vectors": vectors, "lr": lr}
        settings |= {key: value for key, value in given.items() if value is not None}
        settings["log_dir"] = cache() / "motion-words"
        config: MotionWordTraining = load(MotionWordTraining, None, (), settings)
        model = resolve(base.model)
        with uncollected():
            from demo_t2v.training.motion_words import learn_motion_word
            from demo_t2v.training.trainer import TrainingStopped

        file, losses = out or Path(f"{name}.safetensors"), list[float]()
        try:
            with progress("steps", config.num_steps) as bar:
                for line in learn_motion_word(config, model, clips, file, overwrite):
                    losses.append(line["loss"])
                    bar.update(int(line["step"]), f"loss {losses[-1]:.3f}")
        except TrainingStopped as stopped:
            exit_with(str(stopped), stopped.code)
        for first in losses[:1]:
            typer.echo(f"loss {first:.3f} at first, {losses[-1]:.3f} at the end", err=True)
        print(file, file=report)
