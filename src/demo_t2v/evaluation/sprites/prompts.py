"""The fixed list of prompts of the sprite benchmark."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from demo_t2v.core.atomic_io import atomic_write
from demo_t2v.data.sprites import BACKGROUNDS, MOTIONS, SPEEDS, THINGS, caption, held_out
from demo_t2v.evaluation.errors import EvaluationError
from demo_t2v.inference.jobs import make_jobs

TRAINED: Final = 216
"""Prompts of trained pairs in the full benchmark."""
HELD_OUT: Final = 108
"""Prompts of held-out pairs in the full benchmark."""
_SPEED_PROBABILITIES: Final = (0.25, 0.5, 0.25)  # of SPEEDS


@dataclass(frozen=True)
class SpritePrompt:
    """One prompt and what it requests; `seed` is the seed of its video."""

    id: str
    prompt: str
    thing: str
    motion: str
    speed: str
    background: str
    held_out: bool
    seed: int


def list_prompts(
    num_trained: int = TRAINED, num_held_out: int = HELD_OUT, seed: int = 0
) -> list[SpritePrompt]:
    """The list: `num_trained` prompts of different trained pairs, then `num_held_out` others.

    A pair is a thing and a motion. Motions are balanced exactly, things as nearly as the pairs
    allow. Smaller numbers give the first prompts of the full list. Raises EvaluationError for more
    prompts than there are pairs.
    """
    prompts: list[SpritePrompt] = []
    for label, count, full, is_held_out in (
        ("trained", num_trained, TRAINED, False),
        ("held-out", num_held_out, HELD_OUT, True),
    ):
        rng = np.random.default_rng((seed, is_held_out))
        pairs = _choose_pairs(max(count, full), is_held_out, rng)
        drawn: list[SpritePrompt] = []
        for number, (thing, motion) in enumerate(pairs):
            speed = str(rng.choice(SPEEDS, p=_SPEED_PROBABILITIES))
            background = str(rng.choice(list(BACKGROUNDS)))
            text = caption(thing, motion, speed, background)
            key = f"{label}-{number:03d}"
            job = make_jobs([(key, text)], 1, seed)[0]
            drawn.append(
                SpritePrompt(key, text, thing, motion, speed, background, is_held_out, job.seed)
            )
        prompts += drawn[:count]
    return prompts


def write_prompts(prompts: Iterable[SpritePrompt], file: Path) -> None:
    """Write ids and prompts as CSV, which `demo-t2v generate` reads. Raises OSError."""
    with atomic_write(file) as partial, partial.open("w", encoding="utf-8", newline="") as stream:
        rows = csv.writer(stream, lineterminator="\n")
        rows.writerow(("id", "prompt"))
        rows.writerows((prompt.id, prompt.prompt) for prompt in prompts)


def _choose_pairs(count: int, is_held_out: bool, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Different pairs (thing, motion): the motions in turn, each with the least used thing."""
    left = {m: [t for t in THINGS if held_out(t, m) == is_held_out] for m in MOTIONS}
    available = sum(map(len, left.values()))
    if not 0 <= count <= available:
        kind = "held-out" if is_held_out else "trained"
        raise EvaluationError(f"{count} {kind} pairs: there are {available} of them")
    uses = dict.fromkeys(THINGS, 0)
    pairs: list[tuple[str, str]] = []
    while len(pairs) < count:
        for motion in [m for m in MOTIONS if left[m]][: count - len(pairs)]:
            rng.shuffle(left[motion])
            thing = min(left[motion], key=uses.__getitem__)
            left[motion].remove(thing)
            uses[thing] += 1
            pairs.append((thing, motion))
    return pairs
