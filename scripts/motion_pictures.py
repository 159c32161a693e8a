"""Draw the README's animations: pairs of videos side by side, prompt by prompt.

python scripts/motion_pictures.py docs/motion.webp                 without and with motion branch
python scripts/motion_pictures.py --timelines docs/timeline.webp   one prompt, a motion timeline
python scripts/motion_pictures.py --handles docs/handles.webp      swap, timeline and speed
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from demo_t2v.checkpoints.resolve import load_pipeline
from demo_t2v.inference.runner import to_bytes
from demo_t2v.pipeline import DemoPipeline

PROMPTS: Final = (
    "a rocket moves up quickly at night",
    "a car moves to the left quickly on the sand",
    "a frog bounces on the sand",
    "a balloon grows in the sky",
    "a cactus circles in the sky",
    "a bell swings in the snow",
    "a mushroom falls at night",
    "a butterfly shakes quickly on the grass",
)
TIMELINES: Final = (
    ("a frog", "in the sky", ("moves to the left", "moves up")),
    ("a rocket", "at night", ("moves up", "moves to the right")),
    ("a car", "on the sand", ("moves to the right", "moves to the left")),
    ("a fish", "in the sky", ("moves down", "moves to the left")),
)
"""Thing, background, and the motions of the first and the second half."""
SWAPPED: Final = (
    ("a frog", "in the sky"),
    ("a rocket", "at night"),
    ("a mushroom", "on the sand"),
)
"""Things and their backgrounds, each with all of SWAPPED_MOTIONS."""
SWAPPED_MOTIONS: Final = ("a pear moves left", "a pear grows")
SPEEDS: Final = (("a car moves to the left on the sand", "px"), ("a bell bounces at night", "x"))
COLUMNS: Final = 4
GAP: Final = 6  # pixels, as the heights of caption and title
CAPTION_HEIGHT: Final = 34
TITLE_HEIGHT: Final = 22
FPS: Final = 8


@dataclass(frozen=True)
class Pairs:
    """Two videos of each prompt, (B, F, H, W, 3) on the left and on the right."""

    left: NDArray[np.uint8]
    right: NDArray[np.uint8]
    titles: tuple[str, str]
    captions: Sequence[Sequence[str]]
    """Captions of each prompt: each is shown for an equal part of the frames."""


def videos(pipeline: DemoPipeline, prompts: Sequence[str], **options: Any) -> NDArray[np.uint8]:
    """One video for each prompt, with the same noise in every call: (B, F, H, W, 3)."""
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    return to_bytes(pipeline(list(prompts), generator=generators, **options).frames)


def motion_branch(pipeline: DemoPipeline) -> Pairs:
    """Without the motion branch, and with it."""
    left, right = (videos(pipeline, PROMPTS, motion_strength=strength) for strength in (0.0, 1.0))
    titles = ("without motion branch", "with motion branch")
    return Pairs(left, right, titles, [[prompt] for prompt in PROMPTS])


def timelines(pipeline: DemoPipeline) -> Pairs:
    """Both motions in one prompt, and on a motion timeline."""
    half = pipeline.unet.config.sample_frames // 2
    together = [f"{thing} {a}, then {b}, {where}" for thing, where, (a, b) in TIMELINES]
    content = [f"{thing} {where}" for thing, where, _ in TIMELINES]
    entries = [
        [(0, f"{thing} {first} {where}"), (half, f"{thing} {second} {where}")]
        for thing, where, (first, second) in TIMELINES
    ]
    captions = [[f"{thing} {motion}" for motion in both] for thing, _, both in TIMELINES]
    left = videos(pipeline, together)
    right = videos(pipeline, content, motion_prompt=entries)
    return Pairs(left, right, ("one prompt", "motion timeline"), captions)


@dataclass(frozen=True)
class Panel:
    """Videos (B, F, H, W, 3) in columns below a title; each has captions as in Pairs."""

    title: str
    columns: int
    videos: NDArray[np.uint8]
    captions: Sequence[Sequence[str]]


def swap(pipeline: DemoPipeline) -> Panel:
    """The content of each thing with each motion of another thing."""
    cells = [(thing, motion) for motion in SWAPPED_MOTIONS for thing in SWAPPED]
    frames = videos(
        pipeline,
        [" ".join(thing) for thing, _ in cells],
        motion_prompt=[f"{motion} in the snow" for _, motion in cells],
    )
    captions = [[f"{thing}\nas {motion}"] for (thing, _), motion in cells]
    return Panel("content of one prompt, motion of another", len(SWAPPED), frames, captions)


def timeline(pipeline: DemoPipeline) -> Panel:
    """The timelines of TIMELINES."""
    pairs = timelines(pipeline)
    return Panel("motion timeline", 2, pairs.right, pairs.captions)


def speed(pipeline: DemoPipeline) -> Panel:
    """Each prompt of SPEEDS at the lowest and the highest speed of the calibration."""
    calibration = pipeline.speed_calibration
    assert calibration is not None
    side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    scales = {"px": calibration.sides_per_frame, "x": calibration.factors}
    prompts, motions, captions = [], [], []
    for prompt, unit in SPEEDS:
        for end, inwards in ((0, math.ceil), (-1, math.floor)):  # speeds outside are refused
            number = scales[unit][end] * (side if unit == "px" else 1)
            value = f"{inwards(10 * number) / 10}{unit}"
            knob = calibration.knob(value, side=side, fps=FPS)
            prompts.append(prompt)
            motions.append(calibration.words.steer(prompt, knob))
            captions.append([f"{' '.join(prompt.split()[:2])}\n--speed {value}"])
    return Panel("speed", 2, videos(pipeline, prompts, motion_prompt=motions), captions)


def draw_panels(panels: Sequence[Panel], frame: int) -> Image.Image:
    """One frame of the panels, side by side."""
    frames, side = panels[0].videos.shape[1:3]
    width, height = side + GAP, side + CAPTION_HEIGHT + GAP
    rows = max(-(-len(panel.videos) // panel.columns) for panel in panels)
    columns = sum(panel.columns for panel in panels)
    size = (columns * width + 3 * GAP * len(panels), TITLE_HEIGHT + rows * height)
    picture = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
    left = GAP
    for panel in panels:
        middle = left + panel.columns * width / 2
        pen.text((middle, 4), panel.title, "black", ImageFont.load_default(14), anchor="ma")
        for number, captions in enumerate(panel.captions):
            row, column = divmod(number, panel.columns)
            x, y = left + column * width, TITLE_HEIGHT + row * height
            picture.paste(Image.fromarray(panel.videos[number, frame]), (x, y))
            caption = captions[frame * len(captions) // frames]
            position = (x + side / 2, y + side + 4)
            pen.text(position, caption, "black", font, anchor="ma", align="center")
        left += panel.columns * width + 3 * GAP
    return picture


def draw(pairs: Pairs, frame: int) -> Image.Image:
    """One frame of the animation."""
    frames, side = pairs.left.shape[1:3]
    width, height = 2 * side + GAP, side + CAPTION_HEIGHT
    rows = -(-len(pairs.captions) // COLUMNS)
    size = (COLUMNS * (width + 3 * GAP), TITLE_HEIGHT + rows * (height + GAP))
    picture = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
    for number, captions in enumerate(pairs.captions):
        row, column = divmod(number, COLUMNS)
        x, y = column * (width + 3 * GAP) + GAP, TITLE_HEIGHT + row * (height + GAP)
        for half, both in enumerate((pairs.left, pairs.right)):
            left = x + half * (side + GAP)
            picture.paste(Image.fromarray(both[number, frame]), (left, y))
            if row == 0:
                pen.text((left + side / 2, 4), pairs.titles[half], "black", font, anchor="ma")
        caption = captions[frame * len(captions) // frames]
        pen.text((x + width / 2, y + side + 6), caption, "black", font, anchor="ma")
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--model", default="sprites")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--timelines", action="store_true")
    kinds.add_argument("--handles", action="store_true")
    args = parser.parse_args()
    pipeline = load_pipeline(args.model, "cpu")
    numbers = range(pipeline.unet.config.sample_frames)
    if args.handles:
        panels = [panel(pipeline) for panel in (swap, timeline, speed)]
        first, *others = [draw_panels(panels, number) for number in numbers]
    else:
        pairs = (timelines if args.timelines else motion_branch)(pipeline)
        first, *others = [draw(pairs, number) for number in numbers]
    options = {"duration": 1000 // FPS, "loop": 0, "quality": 80, "method": 6}
    first.save(args.file, save_all=True, append_images=others, **options)
    print(f"wrote {args.file}: {args.file.stat().st_size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
