"""Time of a video against the published recipe, in one process and in turn, with the score.

    python benchmarks/end_to_end.py
    python benchmarks/end_to_end.py --prompts 54 --variant "--steps 12 --guidance-interval 0.3-1"

The published recipe is 50 steps of DDIM with two predictions a step. The other variants are the
model's defaults, the presets, and each `--variant`: options as `demo-t2v generate` takes them. A
time is that of denoising and decoding, and a ratio that of the recipe's time to it, round by
round. Memory is the peak above that before the video. The score is that of the first `--prompts`
trained pairs with the same seeds; its intervals are 95 %.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import typer
from guidance import count_predictions
from tables import markdown
from timing import Measurement, Spread, environment, in_turn, ratio

from demo_t2v.checkpoints.resolve import resolve
from demo_t2v.cli.options import takes_options
from demo_t2v.config import InferenceConfig, load
from demo_t2v.core.atomic_io import atomic_write
from demo_t2v.core.errors import UserError
from demo_t2v.evaluation.report import Proportion
from demo_t2v.evaluation.sprites.classification import classify_video
from demo_t2v.evaluation.sprites.prompts import list_prompts
from demo_t2v.inference.jobs import Job, make_jobs
from demo_t2v.inference.runner import Runner

RECIPE = "--scheduler ddim --steps 50 --guidance-interval 0-1"
VARIANTS = ("", "--preset fast", "--preset best")
SCORED_BATCH = 8


@dataclass(frozen=True)
class Variant:
    """The options of a variant as they are written, and the runner that has them."""

    words: str
    runner: Runner
    predictions: list[int]
    """Gets the number of samples of each pass of the network."""

    @classmethod
    def load(cls, words: str, options: argparse.Namespace) -> Variant:
        """Raises UserError for options that cannot be."""
        fixed = {"batch_size": options.batch, "device": options.device}
        given = {"model": options.model} | fixed | parse_options(words)
        config: InferenceConfig = load(InferenceConfig, None, (), given)
        runner = Runner.load(resolve(config.model), config)
        return cls(words, runner, count_predictions(runner))

    def make(self, jobs: Sequence[Job]) -> None:
        """Denoise and decode one batch."""
        done = self.runner.denoise(jobs)
        if done.latents is None:
            raise RuntimeError(f"{self.words}: could not be denoised") from done.error
        self.runner.decode(done.latents)

    def count(self, jobs: Sequence[Job]) -> int:
        """Samples through the network for a batch."""
        self.predictions.clear()
        self.make(jobs)
        return sum(self.predictions)

    def score(self, number: int) -> tuple[Proportion, Proportion]:
        """Videos of so many prompts with the right motion, and with the right thing."""
        prompts = list_prompts(number, 0)
        jobs = make_jobs([(each.id, each.prompt) for each in prompts], 1, 0)
        config = self.runner.config.model_copy(update={"batch_size": SCORED_BATCH})
        videos = replace(self.runner, config=config).videos(jobs)
        found = [classify_video(video.frames) for video in videos]
        pairs = list(zip(prompts, found, strict=True))
        return (
            Proportion(sum(one.motion == prompt.motion for prompt, one in pairs), number),
            Proportion(sum(one.thing == prompt.thing for prompt, one in pairs), number),
        )


def parse_options(words: str) -> dict[str, Any]:
    """The options of `demo-t2v generate` in a text, by their keys. Raises UserError."""
    parsed: dict[str, Any] = {}
    app = typer.Typer()

    @app.command()
    @takes_options()
    def variant(*, options: Mapping[str, Any]) -> None:
        parsed.update(options)

    command: Any = typer.main.get_command(app)
    try:
        command.main(shlex.split(words), standalone_mode=False)
    except Exception as error:  # of click, which typer brings or asks for, by its version
        raise UserError(f"--variant {words!r}: {error}") from None
    return parsed


def report(
    variants: Sequence[Variant],
    results: Mapping[str, Measurement],
    jobs: Sequence[Job],
    num_prompts: int,
) -> list[dict[str, Any]]:
    """The figures of each variant; the first one is the recipe."""
    rows = []
    for variant in variants:
        measured = results[variant.words]
        row: dict[str, Any] = {
            "options": f"`{variant.words}`" if variant.words else "the defaults",
            "seconds": Spread.of([each / len(jobs) for each in measured.seconds]),
            "times as fast": ratio(results[variants[0].words], measured),
            "passes": variant.count(jobs) / len(jobs),
            "peak MiB": round(measured.peak_bytes / 2**20),
        }
        if num_prompts:
            motion, content = variant.score(num_prompts)
            row |= {"motion right": str(motion), "thing right": str(content)}
        rows.append(row)
        print(json.dumps(row, default=vars), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="sprites")
    parser.add_argument("--variant", action="append", default=[], metavar="OPTIONS")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=1, help="videos at a time")
    parser.add_argument("--prompts", type=int, default=8, help="of the score; 0: none")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    jobs = make_jobs([("1", "a balloon moves up in the sky")], options.batch, 0)
    try:
        words = dict.fromkeys((RECIPE, *VARIANTS, *options.variant))
        variants = [Variant.load(each, options) for each in words]
    except UserError as error:
        parser.error(str(error))
    runs = {each.words: (lambda one=each: one.make(jobs)) for each in variants}
    rows = report(variants, in_turn(runs, options.rounds), jobs, options.prompts)
    print(markdown(rows))
    if options.json:
        figures = {"environment": environment(), "rounds": options.rounds, "rows": rows}
        with atomic_write(options.json) as partial:
            partial.write_text(json.dumps(figures, indent=1, default=vars), encoding="utf-8")


if __name__ == "__main__":
    main()
