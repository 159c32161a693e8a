"""Draw the README's animations: pairs of videos side by side, prompt by prompt.

python scripts/motion_pictures.py docs/motion.webp                 without and with motion branch
python scripts/motion_pictures.py --timelines docs/timeline.webp   one prompt, a motion timeline
"""

from __future__ import annotations

import argparse
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
    parser.add_argument("--timelines", action="store_true")
    args = parser.parse_args()
    pipeline = load_pipeline(args.model, "cpu")
    pairs = (timelines if args.timelines else motion_branch)(pipeline)
    first, *others = [draw(pairs, frame) for frame in range(pairs.left.shape[1])]
    options = {"duration": 1000 // FPS, "loop": 0, "quality": 80, "method": 6}
    first.save(args.file, save_all=True, append_images=others, **options)
    print(f"wrote {args.file}: {args.file.stat().st_size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
