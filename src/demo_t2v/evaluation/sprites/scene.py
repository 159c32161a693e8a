"""Separates the background of a sprite video from the foreground, without the sprite sheet."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from demo_t2v.data.sprites import BACKGROUNDS, render_background
from demo_t2v.evaluation.errors import EvaluationError

Floats = NDArray[np.float32]

SIDE: Final = 32
"""Side in pixels to which videos are reduced."""
_TOLERANCE: Final = 40 / 255


@dataclass(frozen=True)
class Scene:
    """A video of F frames of N by N pixels and its background; colours in [0, 1]."""

    pixels: Floats
    """(F, N, N, 3)"""
    rows: Floats
    """(N, 3) measured background colour of each row."""
    background: str
    """Name of the nearest known background."""

    @cached_property
    def difference(self) -> Floats:
        """D = I - B, (F, N, N, 3)."""
        return self.pixels - self.rows[:, None]

    @cached_property
    def backdrop(self) -> Floats:
        """(N, 3) background colour of each row behind a sprite that is matched.

        It is the mean of the measured and the known one: where they differ, either the whole
        picture is tinted or only its background.
        """
        known = render_background(self.background, len(self.rows))[:, 0] / 255
        return ((self.rows + known) / 2).astype(np.float32)

    @cached_property
    def energy(self) -> NDArray[np.float64]:
        """<D, D> of each frame, (F,), less the noise of the whole frame."""
        squares = (self.difference.astype(np.float64) ** 2).sum(-1).reshape(len(self.pixels), -1)
        noise = 1.27 * np.median(squares, axis=1) * squares.shape[1]  # mean of chi2(3) / its median
        total = squares.sum(1)
        return np.asarray(np.maximum(total - noise, total / 2) + 1e-3)

    @cached_property
    def opacity(self) -> Floats:
        """Estimated opacity of the foreground, (F, N, N), unscaled and above zero."""
        distance = np.abs(self.difference).max(-1)
        return np.asarray(np.clip(np.minimum(distance, 0.3) - 0.06, 1e-6, None), dtype=np.float32)

    @cached_property
    def centres(self) -> NDArray[np.float64]:
        """Centre of the foreground, (F, 2) as y and x in frame sides."""
        mass, at = self.opacity, _pixel_centres(self.opacity.shape[1])
        total = mass.sum((1, 2))
        return np.stack([mass.sum(2) @ at / total, mass.sum(1) @ at / total], 1)

    @cached_property
    def ellipse_share(self) -> NDArray[np.float64]:
        """Share of <D, D> that the foreground's ellipse in one colour explains, (F,), at most 1."""
        mass, at = self.opacity, _pixel_centres(self.opacity.shape[1])
        y, x = (at - self.centres[:, axis, None] for axis in (0, 1))  # (F, N) each
        total = mass.sum((1, 2))
        xx, yy = (
            np.einsum("fyx,fx->f", mass, x**2) / total,
            np.einsum("fyx,fy->f", mass, y**2) / total,
        )
        xy = np.einsum("fyx,fy,fx->f", mass, y, x) / total
        xx, yy, xy = (moment[:, None, None] for moment in (xx, yy, xy))
        y, x = y[:, :, None], x[:, None, :]
        distance = (yy * x**2 - 2 * xy * x * y + xx * y**2) / (xx * yy - xy**2)  # 4 at its edge
        shares = []
        for edge in (2.5, 3.2, 4.0, 5.0):
            mask = np.clip(3 - 3 * distance / edge + 0.5, 0, 1)  # (F, N, N)
            colour = np.einsum("fyx,fyxc->fc", mask, self.difference)
            shares.append((colour**2).sum(1) / ((mask**2).sum((1, 2)) + 1e-6) / self.energy)
        return np.asarray(np.max(shares, axis=0))


def read_scene(frames: NDArray[np.uint8]) -> Scene:
    """The scene of a video, uint8 RGB (F, H, W, 3): its centre square on `SIDE` by `SIDE` pixels.

    Raises EvaluationError for sides below `SIDE`, and for other shapes and types.
    """
    count, height, width, channels = frames.shape if frames.ndim == 4 else (0, 0, 0, 0)
    if not count or min(height, width) < SIDE or channels != 3 or frames.dtype != np.uint8:
        raise EvaluationError(
            f"a video of shape {frames.shape} and type {frames.dtype} cannot be matched: "
            f"it should be uint8 RGB (F, H, W, 3) with H and W at least {SIDE}"
        )
    pixels = np.stack([_square(frame) for frame in frames])
    name, rows = fit_background(pixels)
    return Scene(pixels, rows, name)


def _square(frame: NDArray[np.uint8]) -> Floats:
    """The centre square of (H, W, 3) as area averages in [0, 1], (SIDE, SIDE, 3)."""
    side = min(frame.shape[:2])
    top, left = ((length - side) // 2 for length in frame.shape[:2])
    centre = frame[top : top + side, left : left + side].astype(np.float64)
    weights = area_weights(side, SIDE)
    rows = np.tensordot(weights, centre, 1)  # (SIDE, W, 3)
    columns = np.tensordot(weights, rows, (1, 1))  # (SIDE of x, SIDE of y, 3)
    return (columns.swapaxes(0, 1) / 255).astype(np.float32)


@cache
def area_weights(length: int, cells: int) -> NDArray[np.float64]:
    """Weights (cells, length) of `length` pixels in the averages over `cells` equal intervals."""
    edges = np.arange(cells + 1) * (length / cells)
    pixels = np.arange(length)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return np.asarray(np.clip(overlap, 0, None) * (cells / length))


def shrink(pixels: NDArray[np.float32], side: int) -> Floats:
    """Reduce (F, H, W, C) to (F, side, side, C) by block means; `side` divides H and W.

    The means of integers do not depend on the order of the sum.
    """
    high, wide = (length // side for length in pixels.shape[1:3])
    blocks = [pixels[:, row::high, column::wide] for row in range(high) for column in range(wide)]
    total = blocks[0].copy()
    for block in blocks[1:]:
        total += block
    return np.asarray(total / len(blocks), dtype=np.float32)


def _pixel_centres(side: int) -> NDArray[np.float64]:
    return (np.arange(side) + 0.5) / side


def fit_background(pixels: Floats) -> tuple[str, Floats]:
    """The known background nearest to pixels (F, N, N, 3) in [0, 1], and its row colours (N, 3).

    The colours are a straight line per channel through all background pixels, so that a slight
    shift of colours is tolerated.
    """
    side = pixels.shape[1]
    known = {
        name: (render_background(name, side)[:, 0] / 255).astype(np.float32) for name in BACKGROUNDS
    }

    def near(rows: Floats, tolerance: float) -> NDArray[np.bool_]:
        return np.asarray(np.abs(pixels - rows[:, None]).max(-1) < tolerance)

    name = max(known, key=lambda n: int(near(known[n], _TOLERANCE).sum()))
    rows, height = known[name], np.linspace(-1, 1, side)
    shifts = (pixels - rows[:, None])[near(rows, _TOLERANCE)]  # (P, 3)
    if len(shifts):  # most of these pixels are background, so the median is its shift
        rows = (rows + np.median(shifts, axis=0)).astype(np.float32)
    for _ in range(2):
        background = near(rows, _TOLERANCE / 2)  # (F, N, N)
        weight = background.sum((0, 2)).astype(np.float64)  # (N,)
        if np.count_nonzero(weight) < 2:
            break
        total = np.einsum("fyxc,fyx->yc", pixels, background)
        basis = np.stack([np.ones(side), height], 1)  # (N, 2)
        line = np.linalg.lstsq((basis.T * weight) @ basis, basis.T @ total, rcond=None)[0]
        rows = (basis @ line).astype(np.float32)
    return name, rows
