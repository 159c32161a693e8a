"""Draw the sprite sheet from the Noto Color Emoji font (Debian: fonts-noto-color-emoji).

The package contains the sheet. Run this after a change of the list of things:

    python scripts/draw_sprite_sheet.py
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from demo_t2v.data.sprites import CELL, COLUMNS, SHEET, THINGS

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
FONT_SIZE = 109  # the one size at which the font's bitmaps exist

EMOJI = {
    "car": "🚗", "rocket": "🚀", "balloon": "🎈", "fish": "🐟", "bus": "🚌", "tractor": "🚜",
    "airplane": "🛩", "sailboat": "⛵", "banana": "🍌", "carrot": "🥕", "eggplant": "🍆",
    "strawberry": "🍓", "pear": "🍐", "ice cream": "🍦", "tree": "🌲", "cactus": "🌵",
    "umbrella": "☂", "key": "🔑", "guitar": "🎸", "hat": "🎩", "shoe": "👟", "bell": "🔔",
    "duck": "🦆", "frog": "🐸", "whale": "🐳", "butterfly": "🦋", "octopus": "🐙", "chick": "🐤",
    "snail": "🐌", "pig": "🐖", "mushroom": "🍄", "ghost": "👻",
}  # fmt: skip


def draw(emoji: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """One emoji, cropped to its ink, centred in a square of CELL x CELL pixels (RGBA)."""
    canvas = Image.new("RGBA", (180, 180))
    ImageDraw.Draw(canvas).text((20, 20), emoji, font=font, embedded_color=True)
    box = canvas.getbbox()
    if box is None:
        raise SystemExit(f"{FONT} has no glyph for {emoji!r}")
    ink = canvas.crop(box)
    side = max(ink.size)
    square = Image.new("RGBA", (side, side))
    square.paste(ink, ((side - ink.width) // 2, (side - ink.height) // 2))
    return square.resize((CELL, CELL), Image.Resampling.LANCZOS)


def main() -> None:
    font = ImageFont.truetype(FONT, FONT_SIZE)
    rows = -(-len(THINGS) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * CELL, rows * CELL))
    for index, thing in enumerate(THINGS):
        row, column = divmod(index, COLUMNS)
        sheet.paste(draw(EMOJI[thing], font), (column * CELL, row * CELL))
    sheet.save(SHEET, optimize=True)
    print(f"wrote {SHEET}: {len(THINGS)} things")


if __name__ == "__main__":
    main()
