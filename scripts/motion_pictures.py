"""Draw the README's animation: each prompt without the motion branch and with it.

python scripts/motion_pictures.py docs/motion.webp
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

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
COLUMNS: Final = 4
GAP: Final = 6  # pixels, as the heights of caption and title
CAPTION_HEIGHT: Final = 34
TITLE_HEIGHT: Final = 22
FPS: Final = 8


def videos(pipeline: DemoPipeline, strength: float) -> NDArray[np.uint8]:
    """One video for each prompt, with the same noise for each strength: (B, F, H, W, 3)."""
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(PROMPTS))]
    frames = pipeline(list(PROMPTS), motion_strength=strength, generator=generators).frames
    return to_bytes(frames)


def draw(pairs: list[NDArray[np.uint8]], frame: int) -> Image.Image:
    """One frame of the animation: two videos side by side for each prompt."""
    side = pairs[0].shape[2]
    width, height = 2 * side + GAP, side + CAPTION_HEIGHT
    rows = -(-len(PROMPTS) // COLUMNS)
    size = (COLUMNS * (width + 3 * GAP), TITLE_HEIGHT + rows * (height + GAP))
    picture = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
    for number, prompt in enumerate(PROMPTS):
        row, column = divmod(number, COLUMNS)
        x, y = column * (width + 3 * GAP) + GAP, TITLE_HEIGHT + row * (height + GAP)
        for half, frames in enumerate(pairs):
            left = x + half * (side + GAP)
            picture.paste(Image.fromarray(frames[number, frame]), (left, y))
            if row == 0:
                title = ("without motion branch", "with motion branch")[half]
                pen.text((left + side / 2, 4), title, "black", font, anchor="ma")
        pen.text((x + width / 2, y + side + 6), prompt, "black", font, anchor="ma")
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--model", default="sprites")
    args = parser.parse_args()
    pipeline = load_pipeline(args.model, "cpu")
    pairs = [videos(pipeline, strength) for strength in (0.0, 1.0)]
    first, *others = [draw(pairs, frame) for frame in range(pairs[0].shape[1])]
    options = {"duration": 1000 // FPS, "loop": 0, "quality": 80, "method": 6}
    first.save(args.file, save_all=True, append_images=others, **options)
    print(f"wrote {args.file}: {args.file.stat().st_size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
