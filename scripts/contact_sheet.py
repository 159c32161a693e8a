"""Lay out the videos of an output folder as one picture: a row a video, six frames each.

demo-t2v generate --prompts prompts/examples.csv --out outputs/examples
python scripts/contact_sheet.py outputs/examples docs/examples.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from demo_t2v.data.video import read_video
from demo_t2v.outputs import read_manifest

FRAMES = 6
SIDE = 96
CAPTION = 300


def row(file: Path, prompt: str) -> Image.Image:
    """The prompt, and six frames spread evenly over the video."""
    frames, _ = read_video(file)
    picture = Image.new("RGB", (CAPTION + FRAMES * SIDE, SIDE), "white")
    font = ImageFont.load_default(14)
    ImageDraw.Draw(picture).text((8, SIDE // 2), prompt, fill="black", font=font, anchor="lm")
    for place, index in enumerate(np.linspace(0, len(frames) - 1, FRAMES).round().astype(int)):
        frame = Image.fromarray(frames[index]).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        picture.paste(frame, (CAPTION + place * SIDE, 0))
    return picture


def main() -> None:
    folder, target = Path(sys.argv[1]), Path(sys.argv[2])
    rows = [row(folder / file, entry["prompt"]) for file, entry in read_manifest(folder).items()]
    sheet = Image.new("RGB", (rows[0].width, SIDE * len(rows)))
    for place, picture in enumerate(rows):
        sheet.paste(picture, (0, place * SIDE))
    sheet.save(target, optimize=True)
    print(f"wrote {target}: {len(rows)} videos")


if __name__ == "__main__":
    main()
