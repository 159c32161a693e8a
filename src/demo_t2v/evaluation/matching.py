"""Finding the thing in a video by matching against the sprite sheet, with no learned network.

A frame I that shows a sprite with premultiplied colours P and opacity a before a background B is
I = B + S with S = P - a B. With D = I - B, a pose explains the share (2<D, S> - <S, S>) / <D, D> of
the picture: 1 where it is the very picture, 0 where it is no better than the bare background, and
what it leaves unexplained anywhere in the frame (a second thing, noise) lowers it. The sum over
pixels is linear in features of the frame and of the sprite, so that thousands of poses are tried in
one matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from demo_t2v.data.sprites import BACKGROUNDS, THINGS, Trajectory, render_background, render_sprite

Floats = NDArray[np.float32]

COARSE: Final = 16
FINE: Final = 32
SIZES: Final = tuple(0.21 * 1.15**step for step in range(9))  # 0.21 ... 0.64
ANGLES: Final = {COARSE: tuple(range(0, 360, 24)), FINE: tuple(range(0, 360, 15))}
SHIFTS: Final = {COARSE: 1, FINE: 2}  # pixels to each side of the first guess
CANDIDATES: Final = 4
BACKGROUND_TOLERANCE: Final = 40 / 255
ANGLE_STEP_COST: Final = 0.05  # of a turn by 45 degrees from one frame to the next, in shares
SIZE_STEP_COST: Final = 0.02  # of a change of size by one grid step


@dataclass(frozen=True)
class Match:
    """The thing that fits a video of F frames best, and how well in every pose."""

    thing: str
    background: str
    guess: NDArray[np.float64]
    """(F, 2) the y and x, in frame sides, that the shifts of `shares` are counted from."""
    shares: Floats
    """(F, V, V, A, S) the explained share for V shifts of y and x, A angles and S sizes."""
    rival: NDArray[np.float64]
    """(F,) the best share of any other thing, each frame on its own."""

    @cached_property
    def free(self) -> tuple[Trajectory, NDArray[np.float64]]:
        """The likeliest path of the thing, and the share (F,) that it explains; at most about 1."""
        return self._refine(_likeliest_path(self.shares.max((1, 2)).astype(np.float64)))

    def along(self, angles: NDArray[np.float64]) -> tuple[Trajectory, NDArray[np.float64]]:
        """The same where the thing must keep to (F,) given angles, to a step of the grid (15)."""
        count, _, _, steps, sizes = self.shares.shape
        near = np.rint(angles / (360 / steps)).astype(np.int64)[:, None] + (-1, 0, 1)  # (F, 3)
        near %= steps
        here = np.take_along_axis(self.shares.max((1, 2)), near[..., None], 1)  # (F, 3, S)
        step, size = np.divmod(here.reshape(count, -1).argmax(1), sizes)
        return self._refine(np.stack([near[np.arange(count), step], size], 1))

    def _refine(self, poses: NDArray[np.int64]) -> tuple[Trajectory, NDArray[np.float64]]:
        """Best place for each frame's angle and size (F, 2 indices), between the grid's points."""
        count, wide, _, angles, sizes = self.shares.shape
        frame = np.arange(count)
        spots = self.shares[frame, :, :, poses[:, 0], poses[:, 1]].reshape(count, -1).argmax(1)
        at = np.stack([*np.divmod(spots, wide), poses[:, 0], poses[:, 1]], 1)  # y, x, angle, size
        share = self.shares[(frame, *at.T)].astype(np.float64)
        offset, peak = np.zeros((count, 4)), share.copy()
        for axis, (length, wraps) in enumerate(
            ((wide, False), (wide, False), (angles, True), (sizes, False))
        ):
            low, high = at.copy(), at.copy()
            low[:, axis] -= 1
            high[:, axis] += 1
            inside = wraps | ((low[:, axis] >= 0) & (high[:, axis] < length))
            low[:, axis] %= length
            high[:, axis] %= length
            before, after = self.shares[(frame, *low.T)], self.shares[(frame, *high.T)]
            bend = np.maximum(2 * share - before - after, 1e-6)  # of a parabola through the three
            offset[:, axis] = np.where(inside, np.clip((after - before) / (2 * bend), -0.5, 0.5), 0)
            peak += 0.5 * bend * offset[:, axis] ** 2
        y, x = ((_pixel(self.guess, FINE) + at[:, :2] - SHIFTS[FINE] + offset[:, :2]) / FINE).T
        turn = np.unwrap((at[:, 2] + offset[:, 2]) * (360 / angles), period=360)
        turn -= 360 * np.rint(turn[0] / 360)
        size = SIZES[0] * (SIZES[1] / SIZES[0]) ** (at[:, 3] + offset[:, 3])
        return Trajectory(x, y, size, turn), np.minimum(peak, 1.0)


def find_thing(frames: NDArray[np.uint8]) -> Match:
    """Match a video, uint8 RGB (F, H, W, 3) with H = W a multiple of 32, with every thing.

    The thing is decided by the evidence of all frames together. Raises ValueError for other shapes.
    """
    count, height, width, channels = frames.shape
    if channels != 3 or height != width or height % FINE or frames.dtype != np.uint8:
        raise ValueError(
            f"a video of shape {frames.shape} and type {frames.dtype} cannot be matched: "
            f"it should be uint8 RGB (F, H, W, 3) with H = W a multiple of {FINE}"
        )
    pixels = _shrink(frames.astype(np.float32) / 255, FINE)
    name, rows = fit_background(pixels)
    behind = (rows + render_background(name, FINE)[:, 0] / 255) / 2  # see `_features`
    centres = _centres(pixels - rows[:, None])  # (F, 2) y and x in frame sides
    small = _shrink(pixels, COARSE), *(r.reshape(COARSE, -1, 3).mean(1) for r in (rows, behind))
    coarse = _shares(_features(*small), centres, THINGS, COARSE)
    evidence = coarse.reshape(*coarse.shape[:2], -1).max(-1)  # (T, F)
    order = np.argsort(-np.clip(evidence, 0, None).sum(1))[:CANDIDATES]
    features = _features(pixels, rows, behind)
    fine = {}
    for index in order:
        guess = _coarse_centres(coarse[index], centres)
        fine[THINGS[index]] = (guess, _shares(features, guess, (THINGS[index],), FINE)[0])
    best = {thing: table.reshape(count, -1).max(1) for thing, (_, table) in fine.items()}
    thing = max(best, key=lambda t: float(np.clip(best[t], 0, None).sum()))
    rival = np.max([best[t] for t in best if t != thing], axis=0)
    return Match(thing, name, *fine[thing], rival.astype(np.float64))


def fit_background(pixels: Floats) -> tuple[str, Floats]:
    """The known background nearest to (F, N, N, 3) in [0, 1], and its colour in each row, (N, 3).

    The rows are a straight line per channel through all pixels that look like the background, so a
    slight shift of its colours does no harm.
    """
    side = pixels.shape[1]
    known = {name: render_background(name, side)[:, 0] / 255 for name in BACKGROUNDS}

    def near(rows: Floats, tolerance: float) -> NDArray[np.bool_]:
        return np.asarray(np.abs(pixels - rows[:, None]).max(-1) < tolerance)

    name = max(known, key=lambda n: int(near(known[n], BACKGROUND_TOLERANCE).sum()))
    rows, height = known[name], np.linspace(-1, 1, side)
    apart = (pixels - rows[:, None])[near(rows, BACKGROUND_TOLERANCE)]  # (P, 3)
    if len(apart):  # most of these pixels are background: their median is its shift
        rows = rows + np.median(apart, axis=0)
    for _ in range(2):
        here = near(rows, BACKGROUND_TOLERANCE / 2)  # (F, N, N)
        weight = here.sum((0, 2)).astype(np.float64)  # (N,)
        if np.count_nonzero(weight) < 2:
            break
        total = np.einsum("fyxc,fyx->yc", pixels, here)
        basis = np.stack([np.ones(side), height], 1)  # (N, 2)
        line = np.linalg.lstsq((basis.T * weight) @ basis, basis.T @ total, rcond=None)[0]
        rows = (basis @ line).astype(np.float32)
    return name, rows


def _shrink(pixels: Floats, side: int) -> Floats:
    count, height, width, channels = pixels.shape
    blocks = pixels.reshape(count, side, height // side, side, width // side, channels)
    return np.asarray(blocks.mean((2, 4)))


def _centres(difference: Floats) -> NDArray[np.float64]:
    """The middle of what is no background, (F, 2) as y and x in frame sides."""
    mass = np.minimum(np.abs(difference).max(-1), 0.3)  # (F, N, N) about the sprite's opacity
    mass = np.clip(mass - 0.06, 1e-6, None)
    at = (np.arange(mass.shape[1]) + 0.5) / mass.shape[1]
    total = mass.sum((1, 2))
    return np.stack([mass.sum(2) @ at / total, mass.sum(1) @ at / total], 1)


def _features(pixels: Floats, rows: Floats, behind: Floats) -> Floats:
    """What a sprite's features (see `_bank`) are multiplied with: (F, N, N, 9), shares of <D, D>.

    D is measured from the fitted background `rows` (N, 3), and S from `behind`, halfway to the known
    one: where the fit differs, the picture's tint or its background alone may be off.
    """
    difference = pixels - rows[:, None]
    background = np.broadcast_to(behind[:, None], pixels.shape)
    energy = (difference**2).sum((1, 2, 3), keepdims=True) + 1e-3
    parts = [
        2 * difference,
        -2 * (difference * background).sum(-1, keepdims=True),
        -np.ones_like(pixels[..., :1]),
        2 * background,
        -(background**2).sum(-1, keepdims=True),
    ]
    return np.asarray(np.concatenate(parts, -1) / energy, dtype=np.float32)


@cache
def _bank(thing: str, side: int) -> Floats:
    """Every pose of the thing in the middle of a frame of `side` pixels: (A * S, side * side * 9)."""
    poses = np.stack(
        [
            render_sprite(thing, 0.5, 0.5, size, angle, 2 * FINE)
            for angle in ANGLES[side]
            for size in SIZES
        ]
    )  # (A * S, 64, 64, 4)
    sprite = _shrink(poses.astype(np.float32) / 255, side)
    colour, opacity = sprite[..., :3], sprite[..., 3:]
    square = (colour**2).sum(-1, keepdims=True)
    parts = [colour, opacity, square, opacity * colour, opacity**2]
    return np.concatenate(parts, -1).reshape(len(poses), -1)


def _shares(
    features: Floats, centres: NDArray[np.float64], things: tuple[str, ...], side: int
) -> Floats:
    """The explained share for every pose near `centres`: (T, F, V, V, A, S), V shifts of y and x."""
    count, reach = len(features), SHIFTS[side]
    padded = np.pad(features, ((0, 0), (side, side), (side, side), (0, 0)))
    windows = sliding_window_view(padded, (side, side), (1, 2))  # (F, Y, X, 9, side, side)
    corners = _pixel(centres, side) + side - side // 2  # (F, 2)
    around = np.arange(-reach, reach + 1)
    y = corners[:, 0, None, None] + around[:, None]
    x = corners[:, 1, None, None] + around
    patches = windows[np.arange(count)[:, None, None], y, x]  # (F, V, V, 9, side, side)
    flat = patches.transpose(0, 1, 2, 4, 5, 3).reshape(-1, side * side * 9)
    shape = (count, len(around), len(around), len(ANGLES[side]), len(SIZES))
    return np.stack([(flat @ _bank(thing, side).T).reshape(shape) for thing in things])


def _pixel(centres: NDArray[np.float64], side: int) -> NDArray[np.int64]:
    return np.asarray(np.clip(np.rint(centres * side), 0, side), dtype=np.int64)


def _coarse_centres(table: Floats, centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where one thing's coarse match (F, V, V, A, S) is best in each frame: (F, 2)."""
    width = table.shape[1]
    best = table.max((3, 4)).reshape(len(table), -1).argmax(1)
    shift = np.stack(np.divmod(best, width), 1) - SHIFTS[COARSE]
    return (_pixel(centres, COARSE) + shift) / COARSE


def _likeliest_path(table: NDArray[np.float64]) -> NDArray[np.int64]:
    """Viterbi through (F, A, S): the best sum of shares less the cost of abrupt change; (F, 2)."""
    count, angles, sizes = table.shape
    a, s = (grid.ravel() for grid in np.indices((angles, sizes)))
    turn = np.abs(a[:, None] - a)
    turn = np.minimum(turn, angles - turn) * (360 / angles)
    cost = ANGLE_STEP_COST * (turn / 45) ** 2 + SIZE_STEP_COST * (s[:, None] - s) ** 2
    flat = np.clip(table.reshape(count, -1), -1, None)
    total, back = flat[0], []
    for here in flat[1:]:
        ways = total[:, None] - cost  # (from, to)
        back.append(ways.argmax(0))
        total = ways.max(0) + here
    path = [int(total.argmax())]
    for step in reversed(back):
        path.append(int(step[path[-1]]))
    return np.stack(np.divmod(np.array(path[::-1]), sizes), 1)
