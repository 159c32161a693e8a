"""The command line.

Bad input ends with exit code 2, a failure with 1, Ctrl-C with 130, a training that was asked to
stop (SIGTERM) with 143: each with one line on stderr.
"""

from __future__ import annotations

import json
import re
import sys
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from demo_t2v.cli.data import data
from demo_t2v.cli.info import info
from demo_t2v.cli.terminal import (
    leave,
    one_line_errors,
    only_reports_on_stdout,
    progress,
)
from demo_t2v.cli.web import web
from demo_t2v.cli.weights import weights
from demo_t2v.config import InferenceConfig, load
from demo_t2v.generation import Job, PromptError, load_for, make_jobs, read_prompts
from demo_t2v.generation import generate as generate_frames
from demo_t2v.outputs import OutputFolder
from demo_t2v.training.config import AnyTraining
from demo_t2v.weights.hub import quieten_libraries, read_defaults, resolve
from demo_t2v.weights.memory import pick

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Text to video with decomposed content and motion.",
)
evaluate = typer.Typer(no_args_is_help=True, help="Score a model.")
app.add_typer(evaluate, name="evaluate")
app.add_typer(data, name="data")
app.add_typer(weights)
app.command()(info)
app.command()(web)

_OVERRIDE: Final = re.compile(r"[A-Za-z_]\w*(\.\w+)*=.*", re.ASCII | re.DOTALL)
# What shapes the videos: a second run with other values would make other ones.
_SETTINGS: Final = {
    *("inference_seed", "ddim_timesteps", "guide_scale", "negative_prompt", "max_frames"),
    *("motion_prompt", "motion_strength"),
    *("resolution", "fps", "format", "dtype", "lora"),
}


def main() -> None:
    """Run the program; what `demo-t2v` and `python -m demo_t2v` call."""
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
def generate(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PROMPT] [KEY=VALUE]...",
            help="What the video shows, in quotes; and any key of the configuration.",
            show_default=False,
        ),
    ] = None,
    prompts: Annotated[Path | None, typer.Option(metavar="FILE", help="CSV: id,prompt.")] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="YAML file.")] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME|FOLDER|HUB_ID", help="Default: the built-in model, sprites."),
    ] = None,
    lora: Annotated[
        str | None, typer.Option(metavar="FILE|FOLDER|HUB_ID", help="An adapter for the model.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Default: outputs.")] = None,
    repeat: Annotated[int | None, typer.Option(help="Videos for each prompt.")] = None,
    seed: Annotated[int | None, typer.Option(help="Each video's own comes from it.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale.")] = None,
    negative: Annotated[str | None, typer.Option(help="What it should not show.")] = None,
    motion_prompt: Annotated[
        str | None, typer.Option(help="What the motion encoder hears in the prompt's stead.")
    ] = None,
    motion_strength: Annotated[
        float | None, typer.Option(help="0: the base network; 1: as trained.")
    ] = None,
    frames: Annotated[int | None, typer.Option(help="Frames in a video.")] = None,
    height: Annotated[int | None, typer.Option(help="In pixels.")] = None,
    width: Annotated[int | None, typer.Option(help="In pixels.")] = None,
    fps: Annotated[int | None, typer.Option(help="Frames a second.")] = None,
    format: Annotated[  # noqa: A002
        str | None, typer.Option(metavar="mp4|webm|gif|png", help="png: a folder of frames.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Videos at a time.")] = None,
    decode_batch: Annotated[int | None, typer.Option(help="Frames decoded at a time.")] = None,
    device: Annotated[str | None, typer.Option(metavar="auto|cpu|cuda")] = None,
    dtype: Annotated[str | None, typer.Option(metavar="auto|float32|bfloat16|float16")] = None,
    offload: Annotated[
        str | None, typer.Option(metavar="none|model|sequential", help="What a GPU need not hold.")
    ] = None,
    max_memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Such as 8GB: pick how to stay below it.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Make all of them anew.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Make a video from a prompt, or one from each prompt of a file.

    What is in the output folder already is not made again.
    """
    options = {
        "infer_dataset.csv_path": prompts,
        "infer_dataset.repeat_times": repeat,
        "pretrained": model,
        "lora": lora,
        "out": out,
        "inference_seed": seed,
        "ddim_timesteps": steps,
        "guide_scale": guidance,
        "negative_prompt": negative,
        "motion_prompt": motion_prompt,
        "motion_strength": motion_strength,
        "max_frames": frames,
        "fps": fps,
        "format": format,
        "batch_size": batch_size,
        "decoder_bs": decode_batch,
        "device": device,
        "dtype": dtype,
        "offload": offload,
        "max_memory": max_memory,
    }
    with one_line_errors():
        text, overrides = _split(words or [])
        if text is not None and prompts:
            raise PromptError(f"a prompt and --prompts {prompts} are both given: give one of them")
        given = {key: value for key, value in options.items() if value is not None}
        asked = load(InferenceConfig, config, overrides, given)
        _generate(_jobs(text, asked), _complete(asked, height, width), overwrite, as_json)


@app.command()
def train(
    config: Annotated[Path, typer.Option(metavar="FILE", help="One stage, as YAML.")],
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
        settings = load(AnyTraining, config, overrides or [])
        source: Any = resume if resume in ("auto", "none") else Path(resume)
        from demo_t2v.training.loop import TrainingStopped
        from demo_t2v.training.loop import train as run
        from demo_t2v.training.tasks import make_task
        from demo_t2v.training.watch import Watch

        quieten_libraries()
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
) -> None:
    """How often a video shows the thing and the motion that were asked for."""
    with one_line_errors():
        from demo_t2v.evaluation.sprites import main as run

        run(model, out=out, base=base or None)


@dataclass
class _Report:
    """What a run did, as `--json` prints it."""

    model: str
    videos: list[dict[str, Any]] = field(default_factory=list)
    skipped: int = 0
    failed: int = 0

    def show(self, as_json: bool) -> None:
        if as_json:
            typer.echo(json.dumps(asdict(self)))
            return
        for video in self.videos:
            typer.echo(video["file"])
        if not self.failed:
            there = f", {self.skipped} were there already" if self.skipped else ""
            typer.echo(f"{len(self.videos)} made{there}", err=True)


def _split(words: list[str]) -> tuple[str | None, list[str]]:
    """The prompt, if there is one, and the overrides: `key=value` with a name on the left."""
    overrides = [word for word in words if _OVERRIDE.fullmatch(word)]
    prompts = [word for word in words if word not in overrides]
    if len(prompts) > 1:
        raise PromptError(f"{prompts[0]!r} and {prompts[1]!r}: put the prompt in quotes, as one")
    return (prompts[0] if prompts else None), overrides


def _jobs(text: str | None, config: InferenceConfig) -> list[Job]:
    source = config.infer_dataset
    if text is not None:
        if not text.strip():
            raise PromptError("the prompt is empty: write what the video should show")
        prompts = [("1", text.strip())]
    elif source.csv_path is not None:
        prompts = read_prompts(source.csv_path)
    else:
        raise PromptError("no prompt: give one in quotes, or --prompts FILE.csv, or --config FILE")
    return make_jobs(prompts, source.repeat_times, config.inference_seed)


def _complete(config: InferenceConfig, height: int | None, width: int | None) -> InferenceConfig:
    """The configuration with the model's own values where nothing was asked for."""
    defaults = read_defaults(resolve(config.pretrained))
    before = config.resolution or (defaults.side, defaults.side)
    known = {
        "resolution": tuple(
            old if new is None else new for old, new in zip(before, (height, width), strict=True)
        ),
        "max_frames": config.max_frames or defaults.frames,
        "ddim_timesteps": config.ddim_timesteps or defaults.steps,
        "guide_scale": defaults.guidance if config.guide_scale is None else config.guide_scale,
    }
    complete: InferenceConfig = load(InferenceConfig, None, (), config.model_dump() | known)
    return complete


def _generate(jobs: list[Job], config: InferenceConfig, overwrite: bool, as_json: bool) -> None:
    """Make what is missing of the jobs, and report on all of them."""
    shaping = _SETTINGS | ({"lora_strength"} if config.lora else set())
    settings = config.model_dump(mode="json", include=shaping)
    folder = OutputFolder(config.out, config.pretrained, settings)
    missing = folder.missing(jobs, overwrite)
    report = _Report(config.pretrained, skipped=len(jobs) - len(missing), failed=len(missing))
    try:
        if missing:
            _make(folder, missing, config, report)
    finally:
        report.show(as_json)


def _make(folder: OutputFolder, jobs: list[Job], config: InferenceConfig, report: _Report) -> None:
    """Make and save the videos one after another, and say so in the report."""
    folder.prepare()
    steps = len(jobs) * (config.ddim_timesteps or 1)
    # Whatever a library prints, stdout is for the report alone.
    name = f"{len(jobs)} video{'s' * (len(jobs) != 1)}"
    with redirect_stdout(sys.stderr), progress(name, steps) as bar:
        plan, line = pick(config, len(jobs))
        if line:
            bar.say(line)
        config = config.model_copy(update={"decoder_bs": plan.decode_chunk})
        pipeline, encoded = load_for(jobs, config, plan)
        used = str(pipeline.dtype).removeprefix("torch.")
        folder = replace(folder, settings={**folder.settings, "dtype": used})
        made = generate_frames(pipeline, jobs, config, bar.advance, encoded)
        for job, frames, seconds in made:
            file = folder.save(job, frames, seconds)
            report.videos.append({**asdict(job), "file": str(file), "seconds": round(seconds, 3)})
            report.failed -= 1
