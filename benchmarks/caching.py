"""What the cache of deep features saves, and what it costs in score.

    python benchmarks/caching.py
    python benchmarks/caching.py --prompts 216 --intervals 2 3 --json caching.json

Each batch of prompts is denoised by each variant in turn (A B A B). The figures are

- time: seconds of the denoising by those of complete steps, median and range of the batches;
- FLOPs: of the network in all steps of a video, by those of complete steps;
- motion, content: the sprite score, with 95 % intervals;
- changed: the distance of the latents from those of complete steps, by the norm of these, for the
  mean over the frames (content) and for the rest (motion).

The variant with fewer steps has complete steps, and about as many FLOPs as the first cache.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from demo_t2v.checkpoints.resolve import resolve
from demo_t2v.config import InferenceConfig
from demo_t2v.core.atomic_io import atomic_write
from demo_t2v.diffusion.caching import FORECAST_STEPS, CacheConfig
from demo_t2v.evaluation.report import Proportion
from demo_t2v.evaluation.sprites.classification import classify_video
from demo_t2v.evaluation.sprites.prompts import SpritePrompt, list_prompts
from demo_t2v.inference.jobs import Job, make_jobs, split_batches
from demo_t2v.inference.runner import Runner

COMPLETE = "complete"


@dataclass(frozen=True)
class Variant:
    """A cache, or none, and the number of steps."""

    cache: CacheConfig | None
    steps: int

    def denoise(self, runner: Runner, jobs: Sequence[Job]) -> tuple[Tensor, float]:
        """Latents (B, C, F, h, w) of the jobs, and the seconds of their denoising."""
        if self.cache:
            runner.pipeline.enable_cache(self.cache)
        else:
            runner.pipeline.disable_cache()
        # The number of steps is not checked by `model_copy`, and is right.
        config = runner.config.model_copy(update={"num_inference_steps": self.steps})
        done = replace(runner, config=config).denoise(jobs)
        if done.latents is None:
            raise done.error or RuntimeError("no latents")
        return done.latents, done.seconds


@dataclass
class Result:
    """What is known of one variant."""

    flops: int = 0
    ratios: list[float] = field(default_factory=list)
    motion: list[bool] = field(default_factory=list)
    content: list[bool] = field(default_factory=list)
    changed: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def score(self, prompts: Sequence[SpritePrompt], frames: Sequence[object]) -> None:
        """Add the recognized motion and thing of each video."""
        for prompt, video in zip(prompts, frames, strict=True):
            if isinstance(video, ArithmeticError):
                raise video
            found = classify_video(video)  # type: ignore[arg-type]
            self.motion.append(found.motion == prompt.motion)
            self.content.append(found.thing == prompt.thing)

    def compare(self, latents: Tensor, complete: Tensor) -> None:
        """Add the distance of the latents (B, C, F, h, w) from those of complete steps."""
        for one, other in zip(latents, complete, strict=True):
            content, reference = (each.mean(dim=1, keepdim=True) for each in (one, other))
            pairs = {"content": (content, reference), "motion": (one - content, other - reference)}
            for name, (ours, theirs) in pairs.items():
                self.changed[name].append(float((ours - theirs).norm() / theirs.norm()))

    def figures(self, complete: Result) -> dict[str, object]:
        """The row of the table."""
        median, low, high = statistics.median(self.ratios), min(self.ratios), max(self.ratios)
        return {
            "time": f"{median:.3f} ({low:.3f} to {high:.3f})",
            "FLOPs": round(self.flops / complete.flops, 3),
            "motion": str(Proportion(sum(self.motion), len(self.motion))),
            "content": str(Proportion(sum(self.content), len(self.content))),
            **{
                f"{name} changed": round(statistics.median(distances), 3)
                for name, distances in self.changed.items()
            },
        }


def list_variants(steps: int, intervals: Sequence[int]) -> dict[str, Variant]:
    """The variants by name, of which the first has complete steps only."""
    variants = {COMPLETE: Variant(None, steps)}
    for interval in intervals:
        variants[f"deep {interval}"] = Variant(CacheConfig("deep", interval), steps)
        if steps >= FORECAST_STEPS * interval:
            variants[f"forecast {interval}"] = Variant(CacheConfig("forecast", interval), steps)
    fewer = round(steps * 0.6)
    return variants | {f"{fewer} steps": Variant(None, fewer)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="sprites")
    parser.add_argument("--prompts", type=int, default=54)
    parser.add_argument("--intervals", type=int, nargs="+", default=[2])
    parser.add_argument("--steps", type=int, help="default: the model's")
    parser.add_argument("--batch-size", type=int, default=6)
    parser.add_argument("--json", type=Path, help="file for all figures")
    options = parser.parse_args()
    config = InferenceConfig(batch_size=options.batch_size, num_inference_steps=options.steps)
    runner = Runner.load(resolve(options.model), config)
    prompts = {prompt.id: prompt for prompt in list_prompts(options.prompts, 0)}
    jobs = make_jobs([(each.id, each.prompt) for each in prompts.values()], 1, 0)
    variants = list_variants(runner.config.num_inference_steps or 1, options.intervals)
    results = {name: Result() for name in variants}
    for name, variant in variants.items():  # also a warm-up
        with FlopCounterMode(display=False) as counter:
            variant.denoise(runner, jobs[:1])
        results[name].flops = counter.get_total_flops()
    for batch in split_batches(jobs, options.batch_size):
        wanted = [prompts[job.id] for job in batch]
        reference, seconds = torch.empty(0), 0.0
        for name, variant in variants.items():
            latents, took = variant.denoise(runner, batch)
            if name == COMPLETE:
                reference, seconds = latents, took
            results[name].ratios.append(took / seconds)
            results[name].compare(latents, reference)
            results[name].score(wanted, runner.decode(latents))
    rows = {name: result.figures(results[COMPLETE]) for name, result in results.items()}
    for name, row in rows.items():
        print(name, json.dumps(row), flush=True)
    if options.json:
        figures = {"videos": len(jobs), "threads": torch.get_num_threads(), "variants": rows}
        with atomic_write(options.json) as partial:
            partial.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
