"""How often a motion word, learned from clips of one thing, moves other things.

    python benchmarks/motion_words.py                             circles, up-left, falls
    python benchmarks/motion_words.py --motions falls --steps 60
    python benchmarks/motion_words.py --motions circles --words hop.safetensors

Each word is learned from four drawn clips of a frog on the grass. It is then the whole motion
prompt of ten other things, on all backgrounds. Thing and motion are recognized as in the sprite
score. For comparison, the motion prompt is the sentence of the frog, as in a swap of prompts, and
the ordinary prompt.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from demo_t2v.checkpoints.resolve import ResolvedModel, resolve
from demo_t2v.conditioning.motion_words import MotionWord
from demo_t2v.config import InferenceConfig
from demo_t2v.core.atomic_io import atomic_write
from demo_t2v.data.sprites import BACKGROUNDS, MOTIONS, THINGS, caption, render, trajectory
from demo_t2v.data.video import write_video
from demo_t2v.evaluation.report import Proportion
from demo_t2v.evaluation.sprites.classification import classify_video
from demo_t2v.inference.jobs import make_jobs
from demo_t2v.inference.runner import Runner
from demo_t2v.training.config.motion_word import MotionWordTraining
from demo_t2v.training.motion_words import learn_motion_word

THING, BACKGROUND = "frog", "on the grass"
CLIPS = 4


def draw_clips(motion: str, folder: Path, frames: int, side: int) -> list[Path]:
    """Four clips of the thing as folders of frames."""
    clips = []
    for number in range(CLIPS):
        path = trajectory(motion, "", np.random.default_rng([number, CLIPS]), frames)
        clips.append(folder / f"{motion}-{number}")
        write_video(render(THING, BACKGROUND, path, side), clips[-1], 8, "png")
    return clips


def learn(motion: str, model: ResolvedModel, file: Path, steps: int | None) -> float:
    """Learn the word of a motion; returns the minutes that this took."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        clips = draw_clips(motion, Path(folder), model.defaults.frames, model.defaults.side)
        settings = {} if steps is None else {"num_steps": steps}
        config = MotionWordTraining(
            log_dir=Path(folder), name="word", content=f"a {THING} {BACKGROUND}", **settings
        )
        for line in learn_motion_word(config, model, clips, file, overwrite=True):
            print(f"{motion}: step {line['step']:.0f}, loss {line['loss']:.4f}", flush=True)
    return (time.monotonic() - started) / 60


def cases(count: int) -> list[tuple[str, str]]:
    """Pairs of another thing and a background."""
    others = [thing for thing in THINGS if thing != THING]
    chosen = [others[round(n * (len(others) - 1) / max(1, count - 1))] for n in range(count)]
    backgrounds = list(BACKGROUNDS)
    return [(thing, backgrounds[n % len(backgrounds)]) for n, thing in enumerate(chosen)]


def measure(
    runner: Runner, motion: str, pairs: Sequence[tuple[str, str]], motion_prompts: Sequence[str]
) -> dict[str, str]:
    """Right motions and things, and videos in which the source thing appears."""
    nouns = [f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}" for thing, _ in pairs]
    rows = [
        (str(number), f"{noun} {background}", prompt)
        for number, (noun, (_, background), prompt) in enumerate(
            zip(nouns, pairs, motion_prompts, strict=True)
        )
    ]
    found = [classify_video(video.frames) for video in runner.videos(make_jobs(rows, 1, 0))]
    count = len(found)
    right_things = sum(one.thing == thing for one, (thing, _) in zip(found, pairs, strict=True))
    return {
        "motion": str(Proportion(sum(one.motion == motion for one in found), count)),
        "thing": str(Proportion(right_things, count)),
        "source thing": str(Proportion(sum(one.thing == THING for one in found), count)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="sprites")
    parser.add_argument("--motions", nargs="+", choices=MOTIONS, metavar="MOTION")
    parser.add_argument("--words", nargs="+", type=Path, help="learned already, one a motion")
    parser.add_argument("--steps", type=int, help="default: that of learn-motion")
    parser.add_argument("--things", type=int, default=10)
    parser.add_argument("--only-words", action="store_true", help="without the comparisons")
    parser.add_argument("--out", type=Path, help="JSON of all figures")
    options = parser.parse_args()
    model = resolve(options.model)
    pairs = cases(options.things)
    figures: dict[str, dict[str, object]] = {}
    motions = options.motions or ["circles", "up-left", "falls"]
    for number, motion in enumerate(motions):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "word.safetensors"
            known: dict[str, object] = {}
            if options.words:
                file = options.words[number]
            else:
                known["minutes"] = round(learn(motion, model, file, options.steps), 1)
            known["bytes"] = file.stat().st_size
            word = f"<{MotionWord.read(file).name}>"
            config = InferenceConfig(device="cpu", batch_size=5, motion_word=(str(file),))
            runner = Runner.load(model, config)
        sentence = caption(THING, motion, "", BACKGROUND)
        known["word"] = measure(runner, motion, pairs, [word] * len(pairs))
        if not options.only_words:
            known["sentence of the frog"] = measure(runner, motion, pairs, [sentence] * len(pairs))
            own = [caption(thing, motion, "", background) for thing, background in pairs]
            known["ordinary prompt"] = measure(runner, motion, pairs, own)
        figures[motion] = known
        print(motion, json.dumps(known, indent=1), flush=True)
    if options.out:
        with atomic_write(options.out) as partial:
            partial.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
