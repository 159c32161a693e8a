"""Right motions and things over the guidance scales of content, motion and bypass.

    python benchmarks/guidance.py
    python benchmarks/guidance.py --prompts 216 --out guidance.json

The prompts are the first of the sprite score's trained pairs, with the same seeds for all scales.
`predictions` counts the passes of the network in a video, with those without its motion branch.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from demo_t2v.checkpoints.resolve import resolve
from demo_t2v.config import InferenceConfig
from demo_t2v.core.atomic_io import atomic_write
from demo_t2v.evaluation.report import Proportion
from demo_t2v.evaluation.sprites.classification import classify_video
from demo_t2v.evaluation.sprites.prompts import SpritePrompt, list_prompts
from demo_t2v.inference.jobs import make_jobs
from demo_t2v.inference.runner import Runner

SCALES = (1.0, 1.5, 2.5, 4.0)
AT_HIGH_NOISE = (0.3, 1.0)


def settings(plain: float, steps: int) -> Iterator[dict[str, Any]]:
    """The settings to compare; `plain` and `steps` are the model's own guidance scale and steps."""
    for scale in SCALES:
        yield {"guidance_scale": scale}
    for scale in SCALES:
        yield {"content_guidance_scale": plain, "motion_guidance_scale": scale}
    for scale in SCALES:
        yield {"content_guidance_scale": scale, "motion_guidance_scale": plain}
    yield {"guidance_scale": plain, "motion_guidance_scale": 4.0, "guidance_order": "motion"}
    for scale in (0.25, 0.5, 1.0, 2.0):
        yield {"guidance_scale": plain, "bypass_guidance_scale": scale}
    # As many predictions as with three scales.
    yield {"guidance_scale": plain, "num_inference_steps": steps * 3 // 2}
    yield {"guidance_scale": plain, "guidance_interval": AT_HIGH_NOISE}


def count_predictions(runner: Runner) -> list[int]:
    """A list to which each pass of the network adds its number of samples."""
    counts: list[int] = []
    network = runner.pipeline.unet
    network.register_forward_pre_hook(lambda _, inputs: counts.append(len(inputs[0])))
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="sprites")
    parser.add_argument("--prompts", type=int, default=90)
    parser.add_argument("--out", type=Path, help="JSON of all rows")
    options = parser.parse_args()
    runner = Runner.load(resolve(options.model), InferenceConfig(device="cpu", batch_size=8))
    prompts: list[SpritePrompt] = list_prompts(options.prompts, 0)
    jobs = make_jobs([(each.id, each.prompt) for each in prompts], 1, 0)
    counts = count_predictions(runner)
    rows = []
    own = runner.config
    for setting in settings(own.guidance_scale or 1.0, own.num_inference_steps or 1):
        counts.clear()
        # The values of `setting` are not checked by `model_copy`, and are right.
        changed = replace(runner, config=runner.config.model_copy(update=setting))
        found = [classify_video(video.frames) for video in changed.videos(jobs)]
        pairs = list(zip(prompts, found, strict=True))
        motions = sum(one.motion == prompt.motion for prompt, one in pairs)
        things = sum(one.thing == prompt.thing for prompt, one in pairs)
        row = {
            **setting,
            "motion": str(Proportion(motions, len(prompts))),
            "content": str(Proportion(things, len(prompts))),
            "predictions": round(sum(counts) / len(prompts), 1),
        }
        rows.append(row)
        print(json.dumps(row), flush=True)
    if options.out:
        with atomic_write(options.out) as partial:
            partial.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
