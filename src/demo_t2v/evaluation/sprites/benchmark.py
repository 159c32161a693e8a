"""The sprite score: does a model make the thing and the motion that a prompt asks for?

A fixed list of prompts names pairs (thing, motion) that were trained on and pairs that never were;
the videos are judged by `scoring`, which knows no network. The same
prompts drawn by the sprite world itself give the ceiling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from demo_t2v.checkpoints.resolve import load_pipeline, read_defaults, resolve
from demo_t2v.config import InferenceConfig
from demo_t2v.core.errors import UserError
from demo_t2v.data.sprites import (
    BACKGROUNDS,
    MOTIONS,
    SPEEDS,
    THINGS,
    caption,
    held_out,
    render,
    trajectory,
)
from demo_t2v.evaluation.report import Judged, Report, Subject, check_writable, save, tables
from demo_t2v.evaluation.sprites.scene import SIDE
from demo_t2v.evaluation.sprites.scoring import score_video
from demo_t2v.inference.batches import generate
from demo_t2v.inference.jobs import make_jobs

if TYPE_CHECKING:
    from rich.console import Console

TRAINED: Final = 216
HELD_OUT: Final = 108
CEILING: Final = "real clips"
_SPEED_SHARES: Final = (0.25, 0.5, 0.25)  # slowly, at an ordinary pace, quickly


class EvaluationError(UserError):
    """A model or a number of prompts that cannot be scored; one line for a person."""


@dataclass(frozen=True)
class Case:
    """One prompt of the list, and what it asks for. `seed` is the video's own."""

    id: str
    prompt: str
    thing: str
    motion: str
    speed: str
    background: str
    held_out: bool
    seed: int


def list_prompts(trained: int = TRAINED, held: int = HELD_OUT, seed: int = 0) -> list[Case]:
    """The fixed list: different pairs, first `trained` trained ones, then `held` held-out ones.

    Motions are balanced exactly, things as nearly as the pairs allow. Smaller counts give the first
    prompts of the usual list. Raises EvaluationError where there are not so many pairs.
    """
    cases: list[Case] = []
    parts = (("trained", trained, TRAINED, False), ("held-out", held, HELD_OUT, True))
    for name, count, usual, held_pairs in parts:
        rng = np.random.default_rng((seed, held_pairs))
        pairs = _choose_pairs(max(count, usual), held_pairs, rng)
        drawn: list[Case] = []
        for number, (thing, motion) in enumerate(pairs):
            speed = str(rng.choice(SPEEDS, p=_SPEED_SHARES))
            background = str(rng.choice(list(BACKGROUNDS)))
            words = caption(thing, motion, speed, background)
            key = f"{name}-{number:03d}"
            job = make_jobs([(key, words)], 1, seed)[0]
            drawn.append(Case(key, words, thing, motion, speed, background, held_pairs, job.seed))
        cases += drawn[:count]
    return cases


def _choose_pairs(count: int, held: bool, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Different pairs: the motions in turn, each with a thing that has come least so far."""
    left = {m: [t for t in THINGS if held_out(t, m) == held] for m in MOTIONS}
    most = sum(map(len, left.values()))
    if not 0 <= count <= most:
        kind = "held-out" if held else "trained"
        raise EvaluationError(f"{count} {kind} pairs: there are {most} of them")
    used = dict.fromkeys(THINGS, 0)
    pairs: list[tuple[str, str]] = []
    while len(pairs) < count:
        for motion in [m for m in MOTIONS if left[m]][: count - len(pairs)]:
            rng.shuffle(left[motion])
            thing = min(left[motion], key=used.__getitem__)
            left[motion].remove(thing)
            used[thing] += 1
            pairs.append((thing, motion))
    return pairs


def evaluate(
    model: str,
    *,
    base: str | None = None,
    trained: int = TRAINED,
    held: int = HELD_OUT,
    settings: InferenceConfig | None = None,
    on_video: Callable[[str], None] | None = None,
) -> Report:
    """Score a model, where named also the base denoiser `base`, and the sprite world itself.

    `settings` says how videos are made (batch, steps, device, ...; its prompts and model do not
    count). `on_video` hears the subject's name after each video. Raises EvaluationError,
    weights.hub.ModelError.
    """
    settings = settings or InferenceConfig(batch_size=16)
    cases = list_prompts(trained, held, settings.seed)
    models = {"model": model} | ({"base": base} if base else {})
    sizes = {role: _check_size(name, settings) for role, name in models.items()}
    frames, side = sizes["model"]
    subjects = []
    for role, name in models.items():
        made = _generate(cases, settings.model_copy(update={"model": name}))
        subjects.append(Subject(role, name, _judge(cases, made, role, on_video)))
    drawn = (_draw(case, frames, side) for case in cases)
    subjects.append(Subject(CEILING, "sprite world", _judge(cases, drawn, CEILING, on_video)))
    return Report(settings.seed, subjects)


def _check_size(name: str, settings: InferenceConfig) -> tuple[int, int]:
    """Frames and side of the videos that the model will make."""
    defaults = read_defaults(resolve(name))
    height, width = settings.height or defaults.side, settings.width or defaults.side
    if height != width or height % SIDE:
        raise EvaluationError(
            f"{name}: makes videos of {height}x{width} pixels; "
            f"the sprite score needs squares of a multiple of {SIDE}"
        )
    return settings.num_frames or defaults.frames, height


def _generate(cases: list[Case], settings: InferenceConfig) -> Iterator[NDArray[np.uint8]]:
    prompts = [(case.id, case.prompt) for case in cases]
    pipeline = load_pipeline(settings.model, settings.device, settings.dtype)
    jobs = make_jobs(prompts, 1, settings.seed)
    return (frames for _, frames, _ in generate(pipeline, jobs, settings))


def _draw(case: Case, frames: int, side: int) -> NDArray[np.uint8]:
    path = trajectory(case.motion, case.speed, np.random.default_rng(case.seed), frames)
    return render(case.thing, case.background, path, side)


def _judge(
    cases: list[Case],
    videos: Iterator[NDArray[np.uint8]],
    role: str,
    on_video: Callable[[str], None] | None,
) -> list[Judged]:
    judged = []
    for case, frames in zip(cases, videos, strict=True):
        finding = score_video(frames)
        judged.append(
            Judged(
                id=case.id,
                prompt=case.prompt,
                held_out=case.held_out,
                thing=case.thing,
                motion=case.motion,
                background=case.background,
                seen_thing=finding.thing,
                seen_motion=finding.motion,
                seen_background=finding.background,
                share=float(finding.share.mean()),
                deviation=finding.deviation,
            )
        )
        if on_video:
            on_video(role)
    return judged


def main(
    model: str,
    out: Path | None = None,
    base: str | None = None,
    console: Console | None = None,
    trained: int = TRAINED,
    held: int = HELD_OUT,
) -> None:
    """What the command line calls: a bar on stderr, tables on stdout, figures as JSON in `out`."""
    from rich.console import Console

    if out is not None:
        check_writable(out)
    console = console or Console()
    with _progress((trained + held) * (3 if base else 2)) as on_video:
        report = evaluate(model, base=base, trained=trained, held=held, on_video=on_video)
    if out is not None:
        save(report, out)
    for table in tables(report):
        console.print(table)


@contextmanager
def _progress(videos: int) -> Iterator[Callable[[str], None]]:
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("videos", total=videos)
        yield lambda subject: bar.update(task, advance=1, description=subject)
