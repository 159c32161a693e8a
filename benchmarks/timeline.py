"""How often a motion timeline shows each of its motions, in its own frames.

    python benchmarks/timeline.py                    100 pairs of directions, 100 of all but spins
    python benchmarks/timeline.py --pairs 20 --segments 3 --frames 24

Each video has one thing before one background and a timeline of equal segments with different
motions. Thing, background and, in the frames of each segment, the motion are recognized as in the
sprite score. For comparison one prompt asks for the same motions ("..., then ..."), and real
clips of one motion are judged in the frames of one segment, which shows what the judge misses.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from demo_t2v.checkpoints.resolve import resolve
from demo_t2v.config import InferenceConfig
from demo_t2v.core.atomic_io import atomic_write
from demo_t2v.data.sprites import (
    BACKGROUNDS,
    MOTIONS,
    SPEEDS,
    THINGS,
    caption,
    render,
    trajectory,
)
from demo_t2v.evaluation.report import Proportion
from demo_t2v.evaluation.sprites.classification import (
    MIN_SHARE,
    classify_motion,
    classify_video,
)
from demo_t2v.evaluation.sprites.matching import find_things
from demo_t2v.evaluation.sprites.scene import read_scene
from demo_t2v.inference.jobs import make_jobs
from demo_t2v.inference.runner import Runner

DIRECTIONS = list(MOTIONS)[:8]  # left, right, up, down and the diagonals
ALL = [motion for motion in MOTIONS if "spins" not in motion]


@dataclass(frozen=True)
class Case:
    """One video: thing, background and the motions of its segments."""

    thing: str
    background: str
    motions: tuple[str, ...]

    @property
    def noun(self) -> str:
        """The thing with its article."""
        return f"{'an' if self.thing[0] in 'aeiou' else 'a'} {self.thing}"

    @property
    def content(self) -> str:
        """The content prompt, without a motion."""
        return f"{self.noun} {self.background}"

    def timeline(self, starts: Sequence[int]) -> str:
        """The column `motion`: each segment's prompt is a whole caption."""
        captions = [caption(self.thing, motion, "", self.background) for motion in self.motions]
        return "; ".join(f"{start}: {text}" for start, text in zip(starts, captions, strict=True))

    @property
    def in_one_prompt(self) -> str:
        """The same motions in one sentence."""
        actions = ", then ".join(MOTIONS[motion][0] for motion in self.motions)
        return f"{self.noun} {actions} {self.background}"


def draw_cases(motions: Sequence[str], count: int, segments: int) -> list[Case]:
    """Cases whose neighbouring segments have different motions."""
    rng = np.random.default_rng(segments)
    cases = []
    for number in range(count):
        chosen: list[str] = []
        while len(chosen) < segments:
            motion = str(rng.choice(motions))
            if not chosen or motion != chosen[-1]:
                chosen.append(motion)
        thing = THINGS[number % len(THINGS)]
        cases.append(Case(thing, str(rng.choice(list(BACKGROUNDS))), tuple(chosen)))
    return cases


def judge(frames: NDArray[np.uint8], starts: Sequence[int], clip: int) -> list[str | None]:
    """The motion in the frames of each segment, at the speeds of clips of `clip` frames.

    Of a longer video, each segment is judged in the `clip` frames from its start on.
    """
    motions: list[str | None] = []
    begun = -1
    for start, end in zip(starts, [*starts[1:], len(frames)], strict=True):
        first = max(0, min(start, len(frames) - clip))
        if first != begun:
            begun = first
            match, _ = find_things(read_scene(frames[first : first + clip]))
        visible = match.fitted_path[1] >= MIN_SHARE
        segment = np.zeros(len(visible), dtype=bool)
        part = slice(start - first, end - first)
        segment[part] = visible[part]
        motions.append(classify_motion(match, segment)[0] if segment.sum() > 2 else None)
    return motions


def measure(
    runner: Runner, cases: Sequence[Case], rows: Sequence[tuple[str, ...]], starts: Sequence[int]
) -> Iterator[tuple[Case, list[str | None], bool]]:
    """Each case with its segments' motions, and whether thing and background are right."""
    clip = runner.pipeline.unet.config.sample_frames
    jobs = make_jobs([(str(number), *row) for number, row in enumerate(rows)], 1, 0)
    for case, video in zip(cases, runner.videos(jobs), strict=True):
        whole = classify_video(video.frames)
        content = (whole.thing, whole.background) == (case.thing, case.background)
        yield case, judge(video.frames, starts, clip), content


def count(results: list[tuple[Case, list[str | None], bool]]) -> dict[str, str]:
    """Right videos with 95 % intervals."""
    both = [tuple(motions) == case.motions for case, motions, _ in results]
    single = [
        motion == wanted
        for case, motions, _ in results
        for motion, wanted in zip(motions, case.motions, strict=True)
    ]
    content = [right for *_, right in results]
    return {
        "all segments": str(Proportion(sum(both), len(both))),
        "single segments": str(Proportion(sum(single), len(single))),
        "thing and background": str(Proportion(sum(content), len(content))),
    }


def judge_real_clips(motions: Sequence[str], starts: Sequence[int], frames: int) -> str:
    """How often the judge finds a real clip's motion in the frames of one segment."""
    rng = np.random.default_rng(0)
    right = []
    for motion in motions:
        for speed in SPEEDS:
            path = trajectory(motion, speed, rng, frames)
            clip = render(str(rng.choice(THINGS)), str(rng.choice(list(BACKGROUNDS))), path, 128)
            right += [found == motion for found in judge(clip, starts, frames)]
    return str(Proportion(sum(right), len(right)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="sprites")
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--segments", type=int, default=2)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--out", type=Path, help="JSON of all figures")
    options = parser.parse_args()
    config = InferenceConfig(device="cpu", num_frames=options.frames, batch_size=8)
    runner = Runner.load(resolve(options.model), config)
    starts = [round(n * options.frames / options.segments) for n in range(options.segments)]
    real_frames = min(options.frames, runner.pipeline.unet.config.sample_frames)
    real_starts = [start for start in starts if start < real_frames]
    figures: dict[str, dict[str, object]] = {}
    for name, motions in (("directions", DIRECTIONS), ("all but spins", ALL)):
        cases = draw_cases(motions, options.pairs, options.segments)
        rows = [(case.content, case.timeline(starts)) for case in cases]
        plain = [(case.in_one_prompt,) for case in cases]
        figures[name] = {
            "timeline": count(list(measure(runner, cases, rows, starts))),
            "one prompt": count(list(measure(runner, cases, plain, starts))),
            "real clips, single segments": judge_real_clips(motions, real_starts, real_frames),
        }
        print(name, json.dumps(figures[name], indent=1), flush=True)
    if options.out:
        with atomic_write(options.out) as partial:
            partial.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
