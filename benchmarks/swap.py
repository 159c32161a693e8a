"""How often a video has the thing of its content prompt and the motion of another prompt.

    python benchmarks/swap.py                        200 crossed pairs
    python benchmarks/swap.py --pairs 16

A pair is a prompt of the sprite benchmark, and the caption of another thing with the same motion
before another background. Each video is made three times from one seed: with the ordinary prompt,
with the content prompt (thing and background alone) and the other caption as motion prompt, and
with bare motion words, as "falls", in its place. Thing and motion are recognized as in the sprite
score.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from demo_t2v.checkpoints.resolve import resolve
from demo_t2v.config import InferenceConfig
from demo_t2v.core.atomic_io import atomic_write
from demo_t2v.data.sprites import BACKGROUNDS, MOTIONS, THINGS, caption
from demo_t2v.evaluation.report import Proportion
from demo_t2v.evaluation.sprites.classification import classify_video
from demo_t2v.evaluation.sprites.prompts import SpritePrompt, list_prompts
from demo_t2v.inference.jobs import Job
from demo_t2v.inference.runner import Runner


@dataclass(frozen=True)
class Pair:
    """A prompt, and the thing and background of the caption that gives the motion."""

    prompt: SpritePrompt
    thing: str
    background: str

    def jobs(self) -> dict[str, Job]:
        """One video of each kind, all from the prompt's seed."""
        requested = self.prompt
        article = "an" if requested.thing[0] in "aeiou" else "a"
        content = f"{article} {requested.thing} {requested.background}"
        speed = "" if requested.motion == "still" else requested.speed
        motions = {
            "another thing": caption(self.thing, requested.motion, speed, self.background),
            "bare words": f"{MOTIONS[requested.motion][0]} {speed}".strip(),
        }
        swapped = {
            kind: Job(f"{requested.id} {kind}", content, 0, requested.seed, motion)
            for kind, motion in motions.items()
        }
        return {"one prompt": Job(requested.id, requested.prompt, 0, requested.seed), **swapped}


def draw_pairs(count: int) -> list[Pair]:
    """The first `count` prompts of the benchmark, each with another thing and background.

    Two thirds of the prompts are of trained pairs of thing and motion, one third are held out.
    """
    rng = np.random.default_rng(0)
    held_out = count // 3
    pairs = []
    for prompt in list_prompts(count - held_out, held_out):
        thing = rng.choice([thing for thing in THINGS if thing != prompt.thing])
        background = rng.choice([one for one in BACKGROUNDS if one != prompt.background])
        pairs.append(Pair(prompt, str(thing), str(background)))
    return pairs


def measure(runner: Runner, pairs: Sequence[Pair], kind: str) -> dict[str, str]:
    """Right videos of one kind, with 95 % intervals."""
    videos = runner.videos([pair.jobs()[kind] for pair in pairs])
    motion, thing, other = [], [], []
    for pair, video in zip(pairs, videos, strict=True):
        found = classify_video(video.frames)
        motion.append(found.motion == pair.prompt.motion)
        thing.append(found.thing == pair.prompt.thing)
        other.append(found.thing == pair.thing)
    counts = {
        "motion": motion,
        "thing": thing,
        "motion and thing": [all(both) for both in zip(motion, thing, strict=True)],
        "thing of the other caption": other,
    }
    return {name: str(Proportion(sum(right), len(right))) for name, right in counts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="sprites")
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--out", type=Path, help="JSON of all figures")
    options = parser.parse_args()
    runner = Runner.load(resolve(options.model), InferenceConfig(device="cpu", batch_size=8))
    pairs = draw_pairs(options.pairs)
    figures = {}
    for kind in ("one prompt", "another thing", "bare words"):
        figures[kind] = measure(runner, pairs, kind)
        print(kind, json.dumps(figures[kind], indent=1), flush=True)
    if options.out:
        with atomic_write(options.out) as partial:
            partial.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
