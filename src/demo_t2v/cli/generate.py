"""`demo-t2v generate`: prompts to videos, in one process or in one of several."""

from __future__ import annotations

import json
import re
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from demo_t2v.cli.options import AsJson, ConfigFile, Overwrite, takes_options
from demo_t2v.cli.terminal import Bar, exit_with, one_line_errors, progress
from demo_t2v.config import InferenceConfig, load
from demo_t2v.inference.backends.processes import Counts
from demo_t2v.inference.jobs import (
    Job,
    PromptError,
    check_prompt,
    describe,
    make_jobs,
    read_prompts,
)
from demo_t2v.inference.workload import Summary, Workload

_OVERRIDE: Final = re.compile(r"[A-Za-z_]\w*(\.\w+)*=.*", re.ASCII | re.DOTALL)
_FILE_OPTIONS: Final = dict.fromkeys(
    (".csv", ".jsonl", ".parquet", ".tsv", ".txt"), "--prompts"
) | dict.fromkeys((".yaml", ".yml"), "--config")


@takes_options()
def generate(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PROMPT] [KEY=VALUE]...",
            help="What the video shows, in quotes; and any key of the configuration.",
            show_default=False,
        ),
    ] = None,
    config: ConfigFile = None,
    *,
    options: Mapping[str, Any],
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Make a video from a prompt, or one from each prompt of a file.

    What is in the output folder already is not made again.
    """
    with one_line_errors():
        text, overrides = _split(words or [])
        if text is not None:
            _check_no_file(text)
        prompts = options.get("infer_dataset.csv_path")
        if text is not None and prompts is not None:
            raise PromptError(f"a prompt and --prompts {prompts} are both given: give one of them")
        settings = load(InferenceConfig, config, overrides, options)
        make_videos(Workload.prepare(settings, _jobs(text, settings), overwrite), as_json)


def make_videos(
    work: Workload, as_json: bool, finish: Callable[[], Mapping[str, str]] = dict
) -> None:
    """Make the videos of a command and print a report.

    `finish` is called in the first process when all videos are there. It makes further files and
    returns their paths by their key in the report.
    """
    try:
        run_workload(work, as_json)
    finally:
        if work.coordinator.is_main:
            summary = work.summary()
            files = {} if summary.failed else finish()
            _report(work.config.model, summary, files, as_json)
    if work.coordinator.is_main and summary.problem:
        exit_with(summary.problem, 1)


def run_workload(work: Workload, as_json: bool = False) -> None:
    """Make the missing videos; a bar or events on stderr show the progress."""
    videos, steps = len(work.missing), work.config.num_inference_steps or 1
    title = f"{videos} video{'s' * (videos != 1)}"
    # Libraries print to stdout, which is for the report.
    with redirect_stdout(sys.stderr), progress(title, videos * steps) as bar:
        work.run(_Display(bar, as_json, videos, steps))


@dataclass
class _Display:
    """Shows the work on stderr: by a bar, or with `--json` by events."""

    bar: Bar
    as_json: bool
    videos: int
    steps: int
    """Of each video."""
    began: float = field(default_factory=time.monotonic)
    last_event: float = 0.0

    def message(self, line: str) -> None:
        self.bar.print_line(line)

    def progress(self, counts: Counts) -> None:
        now = time.monotonic()
        rate = 60 * counts.steps / self.steps / (now - self.began)
        note = f"{counts.made} of {self.videos}, {rate:.1f} a minute"
        self.bar.update(counts.steps, note + f", {counts.failed} failed" * bool(counts.failed))
        if self.as_json and now - self.last_event > 1:
            self.last_event = now
            left = (self.videos - counts.steps / self.steps) / rate * 60 if rate else None
            known = {"made": counts.made, "failed": counts.failed, "videos": self.videos}
            rounded = None if left is None else round(max(left, 0), 1)
            _event("progress", known | {"per_minute": round(rate, 2), "seconds_left": rounded})

    def made(self, entry: Mapping[str, Any]) -> None:
        if self.as_json:
            _event("made", entry)

    def failed(self, failure: Mapping[str, Any]) -> None:
        if self.as_json:
            _event("failed", failure)
        else:
            self.bar.print_line(f"{describe(failure)}: {failure['reason']}")


def _event(name: str, figures: Mapping[str, Any]) -> None:
    # One write: two threads report, and `print` writes the end of the line by itself.
    sys.stderr.write(json.dumps({"event": name, **figures}) + "\n")
    sys.stderr.flush()


def _split(words: list[str]) -> tuple[str | None, list[str]]:
    """The prompt, if there is one, and the overrides: `key=value` with a name on the left."""
    overrides = [word for word in words if _OVERRIDE.fullmatch(word)]
    prompts = [word for word in words if word not in overrides]
    if len(prompts) > 1:
        raise PromptError(f"{prompts[0]!r} and {prompts[1]!r}: put the prompt in quotes, as one")
    return (prompts[0] if prompts else None), overrides


def _check_no_file(text: str) -> None:
    """Raise PromptError for a prompt that is the name of a file."""
    option = _FILE_OPTIONS.get(Path(text).suffix.lower())
    is_file = len(text) < 256 and Path(text).is_file()  # no name is longer
    if option and is_file:
        command = f"demo-t2v generate {option} {shlex.quote(text)}"
        raise PromptError(f"{text}: is a file, not a prompt; write `{command}`")
    if option and not re.search(r"\s", text):
        raise PromptError(f"{text}: is no prompt, and there is no such file; see {option} FILE")


def _jobs(text: str | None, config: InferenceConfig) -> list[Job]:
    source = config.infer_dataset
    if text is not None:
        prompts: list[tuple[str, ...]] = [("1", check_prompt(text))]
    elif source.csv_path is not None:
        prompts = read_prompts(source.csv_path)
    else:
        raise PromptError("no prompt: give one in quotes, or --prompts FILE.csv, or --config FILE")
    return make_jobs(prompts, source.repeat_times, config.seed)


def _report(model: str, summary: Summary, files: Mapping[str, str], as_json: bool) -> None:
    """Print what a run did."""
    if as_json:
        report = asdict(summary)
        del report["problem"]
        typer.echo(json.dumps({"model": model, **report, **files}))
        return
    for file in (*(video["file"] for video in summary.videos), *files.values()):
        typer.echo(file)
    if not summary.failed:
        skipped = f", {summary.skipped} were there already" if summary.skipped else ""
        typer.echo(f"{len(summary.videos)} made{skipped}", err=True)
