"""The sprite world: drawn clips with captions, whose motion is known exactly.

A clip shows one thing (an emoji from the sprite sheet) that makes one motion, slowly, at normal
speed or quickly, in front of one background. Lengths are fractions of the frame's side, x to the
right and y down; angles are degrees, clockwise on the screen. So clips do not depend on the
resolution.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SHEET: Final = Path(__file__).parent.parent / "assets" / "sprites" / "sheet.png"
CELL: Final = 64
COLUMNS: Final = 8

THINGS: Final = (
    "car", "rocket", "balloon", "fish", "bus", "tractor", "airplane", "sailboat",
    "banana", "carrot", "eggplant", "strawberry", "pear", "ice cream", "tree", "cactus",
    "umbrella", "key", "guitar", "hat", "shoe", "bell", "duck", "frog",
    "whale", "butterfly", "octopus", "chick", "snail", "pig", "mushroom", "ghost",
)  # fmt: skip

MOTIONS: Final[dict[str, tuple[str, ...]]] = {
    "left": ("moves to the left", "goes left", "moves left"),
    "right": ("moves to the right", "goes right", "moves right"),
    "up": ("moves up", "goes up", "rises"),
    "down": ("moves down", "goes down", "sinks"),
    "up-left": ("moves up and to the left", "goes diagonally up left", "moves up left"),
    "up-right": ("moves up and to the right", "goes diagonally up right", "moves up right"),
    "down-left": ("moves down and to the left", "goes diagonally down left", "moves down left"),
    "down-right": ("moves down and to the right", "goes diagonally down right", "moves down right"),
    "falls": ("falls", "falls to the ground", "drops to the ground"),
    "bounces": ("bounces", "bounces up and down", "is bouncing"),
    "spins clockwise": ("spins clockwise", "rotates clockwise", "turns clockwise"),
    "spins counter-clockwise": (
        "spins counter-clockwise",
        "rotates counter-clockwise",
        "turns counter-clockwise",
    ),
    "grows": ("grows", "gets bigger", "becomes larger"),
    "shrinks": ("shrinks", "gets smaller", "becomes smaller"),
    "swings": ("swings", "swings back and forth", "is swinging"),
    "circles": ("circles", "moves in a circle", "goes round in a circle"),
    "shakes": ("shakes", "trembles", "is shaking"),
    "still": ("stands still", "stays still", "does not move"),
}

SPEEDS: Final = ("slowly", "", "quickly")

# Colours at the top and at the bottom of the frame.
BACKGROUNDS: Final[dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]]] = {
    "in the sky": ((112, 178, 230), (205, 230, 246)),
    "at night": ((16, 18, 52), (48, 44, 96)),
    "on the grass": ((150, 206, 120), (84, 150, 66)),
    "on the sand": ((238, 214, 164), (212, 178, 118)),
    "in the snow": ((246, 248, 252), (214, 222, 234)),
}

_DIRECTIONS: Final = {
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
    "up-left": (-0.8, -0.8),
    "up-right": (0.8, -0.8),
    "down-left": (-0.8, 0.8),
    "down-right": (0.8, 0.8),
}


@dataclass(frozen=True)
class Trajectory:
    """Position, size and angle of the thing in each frame: arrays (F,), in the module's units."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    size: NDArray[np.float64]
    angle: NDArray[np.float64]

    def frame(self, index: int) -> Trajectory:
        """The trajectory of one frame."""
        one = slice(index, index + 1)
        return Trajectory(self.x[one], self.y[one], self.size[one], self.angle[one])


@dataclass(frozen=True)
class Clip:
    """One captioned clip; `frames` is uint8 RGB of shape (F, H, W, 3)."""

    frames: NDArray[np.uint8]
    caption: str
    thing: str
    motion: str
    speed: str
    background: str
    truth: Trajectory


def held_out(thing: str, motion: str) -> bool:
    """Whether the pair is one of the fifth of all pairs that training never draws."""
    return (THINGS.index(thing) + 2 * list(MOTIONS).index(motion)) % 5 == 0


def trajectory(motion: str, speed: str, rng: np.random.Generator, frames: int = 16) -> Trajectory:
    """Draw a random trajectory of `motion` at `speed`, one of SPEEDS.

    Raises KeyError for a motion that is not in MOTIONS, ValueError for an unknown speed.
    """
    pace = SPEEDS.index(speed)
    u = np.linspace(0.0, 1.0, frames)  # (F,) time from the first to the last frame
    x = np.full(frames, 0.5 + rng.uniform(-0.06, 0.06))
    y = np.full(frames, 0.5 + rng.uniform(-0.06, 0.06))
    size = np.full(frames, rng.uniform(0.40, 0.46))
    angle = np.zeros(frames)
    if motion in _DIRECTIONS:
        step_x, step_y = _DIRECTIONS[motion]
        travel = (0.25, 0.4, 0.55)[pace] * (u - 0.5)
        x, y = x + step_x * travel, y + step_y * travel
    elif motion == "falls":
        landing = (1.0, 0.75, 0.5)[pace]  # the time at which it reaches the ground
        y = 0.22 + (y[0] - 0.5) / 2 + 0.58 * np.minimum(1.0, u / landing) ** 2
    elif motion == "bounces":
        y = y + 0.25 - 0.45 * np.abs(np.sin(np.pi * (1.5, 2.0, 3.0)[pace] * u))
    elif motion in ("spins clockwise", "spins counter-clockwise"):
        sign = 1.0 if motion == "spins clockwise" else -1.0
        angle = sign * (140.0, 230.0, 340.0)[pace] * u
    elif motion in ("grows", "shrinks"):
        change = (0.14, 0.24, 0.34)[pace] * (u - 0.5)
        size = size + (change if motion == "grows" else -change)
    elif motion == "swings":
        swing = np.radians(45.0) * np.sin(2 * np.pi * (0.75, 1.25, 2.0)[pace] * u)
        x, y = x - 0.32 * np.sin(swing), y - 0.15 + 0.32 * np.cos(swing)
        angle = np.degrees(swing)
    elif motion == "circles":
        turn = 2 * np.pi * (0.65, 1.0, 1.5)[pace] * u
        x, y = x + 0.2 * np.sin(turn), y - 0.2 * np.cos(turn)
    elif motion == "shakes":
        x = x + 0.07 * np.sin(2 * np.pi * np.arange(frames) / (6.0, 4.0, 3.0)[pace])
    elif motion != "still":
        raise KeyError(motion)
    return Trajectory(x, y, size, angle)


def caption(
    thing: str, motion: str, speed: str, background: str, rng: np.random.Generator | None = None
) -> str:
    """A random wording of the clip's caption; without `rng` the first, plainest one."""
    wordings = MOTIONS[motion]
    wording = wordings[rng.integers(len(wordings))] if rng else wordings[0]
    article = _article(thing)
    if rng and rng.random() < 0.3:
        article = "the"
    noun = f"{article} {thing}"
    if motion == "still":
        speed = ""
    if rng and speed and rng.random() < 0.3 and not wording.startswith("is "):
        wording, speed = f"{speed} {wording}", ""
    action = " ".join(part for part in (noun, wording, speed) if part)
    if rng and rng.random() < 0.2:
        return f"{background}, {action}"
    return f"{action} {background}"


def _article(thing: str) -> str:
    return "an" if thing[0] in "aeiou" else "a"


def motion_phrase(words: str) -> str:
    """A caption without its thing and background: "slowly goes left" for "in the sky, a car slowly
    goes left". Empty for a caption without a motion.

    Raises ValueError for words that do not name a thing of the sprite world.
    """
    for background in BACKGROUNDS:
        words = words.removeprefix(f"{background}, ").removesuffix(f" {background}")
    for thing in THINGS:
        for article in ("a", "an", "the"):
            if f"{words} ".startswith(f"{article} {thing} "):
                return words.removeprefix(f"{article} {thing}").strip()
    raise ValueError(f"{words!r}: is no caption of the sprite world")


@cache
def sprite_pyramid(thing: str) -> tuple[Image.Image, ...]:
    """The thing with premultiplied alpha, in sizes that decrease by the square root of two."""
    row, column = divmod(THINGS.index(thing), COLUMNS)
    box = (column * CELL, row * CELL, (column + 1) * CELL, (row + 1) * CELL)
    with Image.open(SHEET) as sheet:
        cell = sheet.convert("RGBA").crop(box).convert("RGBa")
    return tuple(cell.resize((side, side), Image.Resampling.BOX) for side in (64, 45, 32, 23, 16))


def render_sprite(
    thing: str, x: float, y: float, size: float, angle: float, resolution: int
) -> NDArray[np.uint8]:
    """The thing on a transparent frame: uint8 (H, W, 4) with premultiplied alpha."""
    side = size * resolution
    # The smallest stored size that is at least the result's: no aliasing, little blur.
    source = [p for p in sprite_pyramid(thing) if p.width >= side * 0.95 or p.width == CELL][-1]
    scale = source.width / side
    cos, sin = np.cos(np.radians(angle)) * scale, np.sin(np.radians(angle)) * scale
    centre_x, centre_y, half = x * resolution, y * resolution, source.width / 2
    inverse = (
        *(cos, sin, half - cos * centre_x - sin * centre_y),
        *(-sin, cos, half + sin * centre_x - cos * centre_y),
    )
    picture = source.transform(
        (resolution, resolution), Image.Transform.AFFINE, inverse, Image.Resampling.BILINEAR
    )
    return np.asarray(picture)


def render_background(background: str, resolution: int) -> NDArray[np.float32]:
    """A vertical gradient, (H, W, 3) in [0, 255]."""
    top, bottom = (np.array(c, dtype=np.float32) for c in BACKGROUNDS[background])
    ramp = np.linspace(0.0, 1.0, resolution, dtype=np.float32)[:, None]  # (H, 1)
    column = top + ramp * (bottom - top)  # (H, 3)
    return np.broadcast_to(column[:, None], (resolution, resolution, 3))


def render(thing: str, background: str, path: Trajectory, resolution: int) -> NDArray[np.uint8]:
    """All frames of a clip: uint8 (F, H, W, 3)."""
    placed = zip(path.x, path.y, path.size, path.angle, strict=True)
    sprites = np.stack([render_sprite(thing, *pose, resolution) for pose in placed])  # (F, H, W, 4)
    alpha = sprites[..., 3:].astype(np.float32) / 255.0
    frames = render_background(background, resolution) * (1.0 - alpha) + sprites[..., :3]
    rounded: NDArray[np.uint8] = np.clip(frames + 0.5, 0, 255).astype(np.uint8)
    return rounded


def draw_pose(rng: np.random.Generator, resolution: int = 64, frames: int = 1) -> Clip:
    """Draw a clip of a thing that does not move, at a random size and position.

    Two of three things are rotated by a random angle; all angles are equally frequent, unlike in
    the motions. The caption names no motion.
    """
    thing = THINGS[rng.integers(len(THINGS))]
    background = list(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))]
    rotated = rng.random() < 2 / 3
    x, y, size = rng.uniform((0.2, 0.2, 0.26), (0.8, 0.8, 0.63))
    angle = rng.uniform(-180.0, 180.0) * rotated
    pose = Trajectory(*(np.array([value]) for value in (x, y, size, angle)))
    picture = render(thing, background, pose, resolution)
    return Clip(
        frames=np.repeat(picture, frames, axis=0),
        caption=f"{_article(thing)} {thing} {background}",
        thing=thing,
        motion="still",
        speed="",
        background=background,
        truth=Trajectory(*(np.repeat(value, frames) for value in vars(pose).values())),
    )


def draw_clip(
    rng: np.random.Generator,
    resolution: int = 64,
    frames: int = 16,
    still: bool = False,
    emphasis: Mapping[str, int] | None = None,
) -> Clip:
    """Draw one clip of a random pair of thing and motion that is not held out.

    With `still` it is one random frame of a clip of 16, with the caption of the clip.
    `emphasis` is how many times as often as the others a thing or a motion is drawn, by its name.
    """
    counts = emphasis or {}
    things, motions = (
        [name for name in names for _ in range(counts.get(name, 1))] for names in (THINGS, MOTIONS)
    )
    while True:
        thing, motion = things[rng.integers(len(things))], motions[rng.integers(len(motions))]
        if not held_out(thing, motion):
            break
    speed = SPEEDS[rng.integers(len(SPEEDS))]
    background = list(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))]
    path = trajectory(motion, speed, rng, 16 if still else frames)
    if still:
        path = path.frame(int(rng.integers(len(path.x))))
    return Clip(
        frames=render(thing, background, path, resolution),
        caption=caption(thing, motion, speed, background, rng),
        thing=thing,
        motion=motion,
        speed=speed,
        background=background,
        truth=path,
    )
