"""`demo-t2v generate`: prompts to videos, in one process or in one of several."""

from __future__ import annotations

import json
import re
import shlex
import sys
import time
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from demo_t2v.checkpoints.memory import pick
from demo_t2v.checkpoints.resolve import ResolvedModel, resolve
from demo_t2v.cli.options import takes_options
from demo_t2v.cli.terminal import Bar, leave, one_line_errors, progress
from demo_t2v.config import ConfigError, InferenceConfig, load
from demo_t2v.config.inference import video_settings
from demo_t2v.core.atomic_io import digest
from demo_t2v.core.devices import settle
from demo_t2v.core.launch import is_launched, world_size
from demo_t2v.inference.backends.processes import Share
from demo_t2v.inference.jobs import (
    STANDARD_INPUT,
    PromptError,
    check_prompt,
    make_jobs,
    read_prompts,
)
from demo_t2v.inference.outputs import Job, OutputFolder
from demo_t2v.inference.storage import open_folder

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
    config: Annotated[
        Path | None, typer.Option("--config", "--cfg", metavar="FILE", help="YAML file.")
    ] = None,
    *,
    options: Mapping[str, Any],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Make all of them anew.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on stdout, events on stderr.")
    ] = False,
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
        asked = load(InferenceConfig, config, overrides, options)
        jobs, found = _jobs(text, asked), resolve(asked.model)
        _generate(found, jobs, found.defaults.complete(asked), overwrite, as_json)


@dataclass
class _Watch:
    """What this process says on stderr of the work of all: a bar, or with `--json` events."""

    share: Share
    bar: Bar
    as_json: bool
    videos: int
    steps: int
    began: float = field(default_factory=time.monotonic)
    said: float = 0.0

    def refresh(self) -> None:
        if not self.share.main:
            return
        steps, made = self.share.count(), self.share.number("made")
        failed, now = self.share.number("failed"), time.monotonic()
        rate = 60 * steps / self.steps / (now - self.began)
        note = f"{made} of {self.videos}, {rate:.1f} a minute"
        self.bar.reach(steps, note + f", {failed} failed" * bool(failed))
        if self.as_json and now - self.said > 1:
            self.said = now
            left = (self.videos - steps / self.steps) / rate * 60 if rate else None
            known = {"made": made, "failed": failed, "videos": self.videos}
            rounded = None if left is None else round(max(left, 0), 1)
            _event("progress", known | {"per_minute": round(rate, 2), "seconds_left": rounded})

    def made(self, entry: Mapping[str, Any]) -> None:
        if self.as_json:
            _event("made", entry)
        self.refresh()

    def failed(self, failure: Mapping[str, Any]) -> None:
        if self.as_json:
            _event("failed", failure)
        else:
            self.bar.say(f"{_name(failure)}: {failure['reason']}")
        self.refresh()


def _event(name: str, figures: Mapping[str, Any]) -> None:
    print(json.dumps({"event": name, **figures}), file=sys.stderr, flush=True)


def _name(job: Mapping[str, Any]) -> str:
    """A job as a person finds it in the list: id, repeat, and the prompt's beginning."""
    return f"id {job['id']!r}, repeat {job['repeat']} ({job['prompt'][:60]!r})"


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
    there = len(text) < 256 and Path(text).is_file()  # no name is longer
    if option and there:
        command = f"demo-t2v generate {option} {shlex.quote(text)}"
        raise PromptError(f"{text}: is a file, not a prompt; write `{command}`")
    if option and not re.search(r"\s", text):
        raise PromptError(f"{text}: is no prompt, and there is no such file; see {option} FILE")


def _jobs(text: str | None, config: InferenceConfig) -> list[Job]:
    source = config.infer_dataset
    if text is not None:
        prompts = [("1", check_prompt(text))]
    elif source.csv_path is not None:
        if source.csv_path == STANDARD_INPUT and world_size() > 1:
            raise PromptError("--prompts -: several processes need a file, not standard input")
        prompts = read_prompts(source.csv_path)
    else:
        raise PromptError("no prompt: give one in quotes, or --prompts FILE.csv, or --config FILE")
    return make_jobs(prompts, source.repeat_times, config.seed)


def _generate(
    model: ResolvedModel, jobs: list[Job], config: InferenceConfig, overwrite: bool, as_json: bool
) -> None:
    """Make what is missing of the jobs, or this process's share of it, and report on all."""
    settings = _shaping(config)
    folder = open_folder(config.out, config.model, settings, model.fingerprint)
    if world_size() > 1 and "://" in config.out:  # a manifest there has one writer
        raise ConfigError(f"out: {config.out}: several processes need a folder; or use engine=ray")
    share = Share.join() if world_size() > 1 else None
    missing = share.agree(folder, jobs, overwrite) if share else folder.missing(jobs, overwrite)
    if not missing:
        if not share or share.main:
            _report(config.model, [], len(jobs), 0, as_json)
        return
    if not share:
        folder.prepare()
        share = Share.join()
    try:
        _make(model, folder, missing, config, share, as_json)
    finally:
        if share.main:
            order = {folder.file(job).name: number for number, job in enumerate(jobs)}
            made = sorted(share.reports("made"), key=lambda entry: order[entry["file"]])
            videos = [
                {name: entry[name] for name in ("id", "prompt", "repeat", "seed")}
                | {"file": folder.shown(folder.path / entry["file"]), "seconds": entry["seconds"]}
                for entry in made
            ]
            lost = len(missing) - len(videos)
            _report(config.model, videos, len(jobs) - len(missing), lost, as_json)
    if share.main and lost:
        if failed := share.reports("failed"):
            leave(f"{len(failed)} of {len(missing)} videos failed, first {_name(failed[0])}", 1)
        leave(f"{lost} of {len(missing)} videos were not made: another process ended early", 1)


def _shaping(config: InferenceConfig) -> dict[str, Any]:
    """What shapes the videos, for the manifest. Raises lora.LoraError."""
    settings = video_settings(config)
    if config.lora is None:
        return settings
    from demo_t2v.lora import adapter_file  # diffusers loads slowly

    return settings | {"lora_hash": digest(adapter_file(config.lora))[:16]}


def _make(
    model: ResolvedModel,
    folder: OutputFolder,
    jobs: list[Job],
    config: InferenceConfig,
    share: Share,
    as_json: bool,
) -> None:
    """Make this process's share of the jobs; in the first process, wait for the others' too."""
    steps = config.num_inference_steps or 1
    name = f"{len(jobs)} video{'s' * (len(jobs) != 1)}"
    # Whatever a library prints, stdout is for the report alone.
    with redirect_stdout(sys.stderr), progress(name, len(jobs) * steps) as bar:
        watch = _Watch(share, bar, as_json, len(jobs), steps)
        try:
            if config.engine == "ray":
                from demo_t2v.inference.backends.ray_data import make_on_ray

                make_on_ray(folder, jobs, config, share, watch)
            else:
                from demo_t2v.inference.runner import Maker, make

                plan, line = pick(model, config, len(jobs))
                for told in filter(None, (line, _without_gpu(config))):
                    if share.main:
                        bar.say(told)
                make(Maker.load(model, jobs, config, plan, folder), jobs, share, watch)
        finally:
            share.leave()
        if share.main:
            share.wait(watch.refresh)


def _without_gpu(config: InferenceConfig) -> str:
    """What to say where a launcher for GPUs finds none."""
    on_cpu = config.device == "auto" and settle(config.device, config.dtype)[0] == "cpu"
    return "no GPU here: the videos are made on the CPU" if on_cpu and is_launched() else ""


def _report(
    model: str, videos: list[dict[str, Any]], skipped: int, failed: int, as_json: bool
) -> None:
    """What a run did."""
    if as_json:
        report = {"model": model, "videos": videos, "skipped": skipped, "failed": failed}
        typer.echo(json.dumps(report))
        return
    for video in videos:
        typer.echo(video["file"])
    if not failed:
        there = f", {skipped} were there already" if skipped else ""
        typer.echo(f"{len(videos)} made{there}", err=True)
