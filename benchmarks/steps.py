"""Score and flow against the number of steps, the sampler and the guidance interval.

    python benchmarks/steps.py --json steps.json
    python benchmarks/steps.py --json steps.json --schedulers dpm++ --steps 8 --intervals 0-1 0.3-1

A row is a combination of scheduler, number of steps, and the noise levels at which guidance acts
(arXiv 2404.07724). Rows that the JSON file has are not made again. `_karras` behind a scheduler's
name is `use_karras_sigmas` (arXiv 2206.00364, eq. 5). The prompts are the first of the sprite
score's trained pairs, with the same seeds in all rows. Intervals of the score are 95 %.

`passes` counts the samples through the network in a video. `time` is that of denoising a batch,
divided by that of 50 guided steps, which follows from single steps before and after the batch.
`flow` is the mean optical flow over pixels and frames (Lucas-Kanade), divided by that of the
rendered clips of the same prompts; 1 is as much motion as in the training data.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from guidance import count_predictions
from numpy.typing import NDArray
from tables import markdown
from timing import environment, synchronize
from torch.nn import functional as F

from demo_t2v.checkpoints.resolve import resolve
from demo_t2v.config import ConfigError, InferenceConfig, load
from demo_t2v.core.atomic_io import atomic_write
from demo_t2v.data.sprites import render, trajectory
from demo_t2v.diffusion.schedulers import make_scheduler
from demo_t2v.evaluation.report import Proportion
from demo_t2v.evaluation.sprites.classification import classify_video
from demo_t2v.evaluation.sprites.prompts import SpritePrompt, list_prompts
from demo_t2v.inference.jobs import Job, make_jobs, split_batches
from demo_t2v.inference.runner import Runner
from demo_t2v.losses.optical_flow import lucas_kanade, video_flow

SCHEDULERS = ("ddim", "dpm++", "dpm++_karras", "unipc", "euler")
STEPS = (4, 8, 16, 50)
INTERVALS = ("0-1", "0.5-1")
KARRAS = "_karras"
RECIPE_STEPS = 50
TIMED_BATCHES = 2
REAL_CLIPS = "real clips"


@dataclass(frozen=True)
class Row:
    """The figures of one combination, or of the rendered clips."""

    videos: int
    motion: int
    """Videos with the right motion."""
    content: int
    """Videos with the right thing."""
    flow: float
    """Mean length of the optical flow, by `mean_flow`."""
    passes: float = 0.0
    time: float = 0.0


def mean_flow(frames: NDArray[np.uint8]) -> float:
    """Mean length of the flow of a video (F, H, W, 3) at half its size, in pixels a frame."""
    video = rearrange(torch.from_numpy(frames).float() / 127.5 - 1, "f h w c -> f c h w")
    small = rearrange(F.avg_pool2d(video, 2), "f c h w -> 1 c f h w")
    return float(video_flow(lucas_kanade, small).norm(dim=2).mean())


def measure(
    prompts: Sequence[SpritePrompt],
    videos: Iterator[NDArray[np.uint8]],
    passes: Sequence[int] = (),
    times: Sequence[float] = (),
) -> Row:
    """Score videos; `passes` and `times` are filled while they are made."""
    motion = content = 0
    flows = []
    for prompt, frames in zip(prompts, videos, strict=True):
        found = classify_video(frames)
        motion += found.motion == prompt.motion
        content += found.thing == prompt.thing
        flows.append(mean_flow(frames))
    return Row(
        videos=len(prompts),
        motion=motion,
        content=content,
        flow=statistics.mean(flows),
        passes=sum(passes) / len(prompts),
        time=statistics.median(times) if times else 0.0,
    )


def rendered(prompts: Sequence[SpritePrompt], frames: int, side: int) -> Iterator[Any]:
    """The sprite world's clip of each prompt, (F, H, W, 3)."""
    for prompt in prompts:
        rng = np.random.default_rng(prompt.seed)
        path = trajectory(prompt.motion, prompt.speed, rng, frames)
        yield render(prompt.thing, prompt.background, path, side)


def generated(
    runner: Runner, jobs: Sequence[Job], passes: list[int], times: list[float]
) -> Iterator[NDArray[np.uint8]]:
    """The videos of the jobs. Passes of the timed guided steps do not count."""
    for number, batch in enumerate(split_batches(jobs, runner.config.batch_size)):
        timed = number < TIMED_BATCHES
        before = seconds_a_step(runner, batch, passes) if timed else 0.0
        started = time.perf_counter()
        done = runner.denoise(batch)
        synchronize()
        seconds = time.perf_counter() - started
        if done.latents is None:
            raise RuntimeError("a batch could not be denoised") from done.error
        if timed:
            step = (before + seconds_a_step(runner, batch, passes)) / 2
            times.append(seconds / (RECIPE_STEPS * step))
        for frames in runner.decode(done.latents):
            if isinstance(frames, ArithmeticError):
                raise frames
            yield frames


def seconds_a_step(runner: Runner, jobs: Sequence[Job], passes: list[int]) -> float:
    """The time of one guided step of a batch."""
    ends: list[float] = []

    def end(_: int) -> None:
        synchronize()
        ends.append(time.perf_counter())

    counted = len(passes)
    guided = {"num_inference_steps": 3, "guidance_interval": (0.0, 1.0)}
    replace(runner, config=runner.config.model_copy(update=guided)).denoise(jobs, end)
    del passes[counted:]
    return min(after - before for before, after in pairwise(ends))


def with_sampler(runner: Runner, own: Any, scheduler: str, changes: dict[str, Any]) -> Runner:
    """The runner with a scheduler for the noise process of `own`, and changed settings."""
    made = make_scheduler(scheduler.removesuffix(KARRAS), own.config)
    if scheduler.endswith(KARRAS):
        made = type(made).from_config(made.config, use_karras_sigmas=True)
    runner.pipeline.scheduler = made
    return replace(runner, config=runner.config.model_copy(update=changes))


def table(rows: Mapping[str, Row]) -> str:
    """The rows as Markdown, those with the fewest passes first."""
    cells = []
    for name, row in sorted(rows.items(), key=lambda item: item[1].passes):
        scheduler, steps, levels = [name, "", ""] if name == REAL_CLIPS else name.split("/")
        cells.append(
            {
                "scheduler": scheduler,
                "steps": steps,
                "guided levels": levels,
                "passes": f"{row.passes:.1f}",
                "time": f"{row.time:.3f}",
                "motion right": Proportion(row.motion, row.videos),
                "thing right": Proportion(row.content, row.videos),
                "flow": f"{row.flow / rows[REAL_CLIPS].flow:.2f}",
            }
        )
    return markdown(cells)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="sprites")
    parser.add_argument("--prompts", type=int, default=54)
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--schedulers", nargs="+", default=SCHEDULERS, metavar="NAME")
    parser.add_argument("--intervals", nargs="+", default=INTERVALS, metavar="LOW-HIGH")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="rows; those that it has are not made again")
    options = parser.parse_args()
    try:
        intervals = {
            text: load(InferenceConfig, None, (), {"guidance_interval": text}).guidance_interval
            for text in options.intervals
        }
    except ConfigError as error:
        parser.error(str(error))
    model = resolve(options.model)
    run = {"model_hash": model.fingerprint, "prompts": options.prompts}
    rows: dict[str, Row] = {}
    if options.json and options.json.exists():
        stored = json.loads(options.json.read_text(encoding="utf-8"))
        if stored["run"] != run:
            parser.error(f"{options.json}: has rows of {stored['run']}, not of {run}")
        rows = {name: Row(**row) for name, row in stored["rows"].items()}

    def keep(name: str, row: Row) -> None:
        rows[name] = row
        print(f"{name}: {json.dumps(asdict(row))}", flush=True)
        if options.json:
            figures = {name: asdict(row) for name, row in rows.items()}
            text = json.dumps({"run": run, "environment": environment(), "rows": figures}, indent=1)
            with atomic_write(options.json) as partial:
                partial.write_text(f"{text}\n", encoding="utf-8")

    prompts = list_prompts(options.prompts, 0)
    if REAL_CLIPS not in rows:
        clips = rendered(prompts, model.defaults.frames, model.defaults.side)
        keep(REAL_CLIPS, measure(prompts, clips))
    config = InferenceConfig(device=options.device, batch_size=options.batch)
    runner = Runner.load(model, config)
    own, counts = runner.pipeline.scheduler, count_predictions(runner)
    jobs = make_jobs([(each.id, each.prompt) for each in prompts], 1, 0)
    for steps, scheduler, interval in product(options.steps, options.schedulers, intervals):
        name = f"{scheduler}/{steps}/{interval}"
        if name in rows:
            continue
        changes = {"num_inference_steps": steps, "guidance_interval": intervals[interval]}
        changed, times = with_sampler(runner, own, scheduler, changes), []
        counts.clear()
        keep(name, measure(prompts, generated(changed, jobs, counts, times), counts, times))
    print(table(rows))


if __name__ == "__main__":
    main()
