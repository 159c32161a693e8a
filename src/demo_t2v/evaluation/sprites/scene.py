"""What stands before what: the background of a video, and the blob before it, knowing no sprite."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from demo_t2v.core.errors import UserError
from demo_t2v.data.sprites import BACKGROUNDS, render_background

Floats = NDArray[np.float32]

SIDE: Final = 32
_TOLERANCE: Final = 40 / 255


class SceneError(UserError):
    """A video of a shape that cannot be read; one line for a person."""


@dataclass(frozen=True)
class Scene:
    """A video of F frames at N by N pixels before its background; colours in [0, 1]."""

    pixels: Floats
    """(F, N, N, 3)"""
    rows: Floats
    """(N, 3) the background's colour in each row, as the video shows it."""
    background: str
    """The known background that is nearest."""

    @property
    def difference(self) -> Floats:
        """D = I - B, (F, N, N, 3)."""
        return self.pixels - self.rows[:, None]

    @cached_property
    def behind(self) -> Floats:
        """(N, 3) the background that a sprite is compared with.

        Halfway to the known one: where they differ, either the whole picture is tinted, sprite and
        all, or only its background is off.
        """
        known = render_background(self.background, len(self.rows))[:, 0] / 255
        return ((self.rows + known) / 2).astype(np.float32)

    @cached_property
    def energy(self) -> NDArray[np.float64]:
        """<D, D> of each frame, (F,), less what is noise all over the frame."""
        squares = (self.difference.astype(np.float64) ** 2).sum(-1).reshape(len(self.pixels), -1)
        noise = 1.27 * np.median(squares, axis=1) * squares.shape[1]  # mean of chi2(3) / its median
        total = squares.sum(1)
        return np.asarray(np.maximum(total - noise, total / 2) + 1e-3)

    @cached_property
    def opacity(self) -> Floats:
        """About how opaque the thing is in each pixel, (F, N, N), not to scale and never zero."""
        distance = np.abs(self.difference).max(-1)
        return np.asarray(np.clip(np.minimum(distance, 0.3) - 0.06, 1e-6, None), dtype=np.float32)

    @cached_property
    def centres(self) -> NDArray[np.float64]:
        """The middle of what is no background, (F, 2) as y and x in frame sides."""
        mass, at = self.opacity, _middles(self.opacity.shape[1])
        total = mass.sum((1, 2))
        return np.stack([mass.sum(2) @ at / total, mass.sum(1) @ at / total], 1)

    @cached_property
    def blob_share(self) -> NDArray[np.float64]:
        """The share of <D, D> that an ellipse of one colour in the thing's place explains, (F,)."""
        mass, at = self.opacity, _middles(self.opacity.shape[1])
        y, x = (at - self.centres[:, axis, None] for axis in (0, 1))  # (F, N) each
        total = mass.sum((1, 2))
        xx, yy = (
            np.einsum("fyx,fx->f", mass, x**2) / total,
            np.einsum("fyx,fy->f", mass, y**2) / total,
        )
        xy = np.einsum("fyx,fy,fx->f", mass, y, x) / total
        xx, yy, xy = (moment[:, None, None] for moment in (xx, yy, xy))
        y, x = y[:, :, None], x[:, None, :]
        distance = (yy * x**2 - 2 * xy * x * y + xx * y**2) / (xx * yy - xy**2)  # an ellipse's is 4
        shares = []
        for edge in (2.5, 3.2, 4.0, 5.0):
            inside = np.clip(3 - 3 * distance / edge + 0.5, 0, 1)  # (F, N, N)
            colour = np.einsum("fyx,fyxc->fc", inside, self.difference)
            shares.append((colour**2).sum(1) / ((inside**2).sum((1, 2)) + 1e-6) / self.energy)
        return np.asarray(np.max(shares, axis=0))


def read_scene(frames: NDArray[np.uint8]) -> Scene:
    """A video, uint8 RGB (F, H, W, 3), H = W a multiple of 32, shrunk to 32 by 32.

    Raises SceneError for other shapes.
    """
    count, height, width, channels = frames.shape if frames.ndim == 4 else (0, 0, 0, 0)
    fits = count and height and height == width and height % SIDE == 0 and channels == 3
    if not fits or frames.dtype != np.uint8:
        raise SceneError(
            f"a video of shape {frames.shape} and type {frames.dtype} cannot be matched: "
            f"it should be uint8 RGB (F, H, W, 3) with H = W a multiple of {SIDE}"
        )
    pixels = shrink(frames.astype(np.float32) / 255, SIDE)
    name, rows = fit_background(pixels)
    return Scene(pixels, rows, name)


def shrink(pixels: NDArray[Any], side: int) -> Floats:
    """(F, H, W, C) to (F, side, side, C) by the mean of blocks; H and W are multiples of side."""
    count, height, width, channels = pixels.shape
    blocks = pixels.reshape(count, side, height // side, side, width // side, channels)
    return np.asarray(blocks.mean((2, 4)), dtype=np.float32)


def _middles(side: int) -> NDArray[np.float64]:
    return (np.arange(side) + 0.5) / side


def fit_background(pixels: Floats) -> tuple[str, Floats]:
    """The known background nearest to (F, N, N, 3) in [0, 1], and its colour in each row, (N, 3).

    The rows are a straight line per channel through all pixels that look like the background, so a
    slight shift of its colours does no harm.
    """
    side = pixels.shape[1]
    known = {
        name: (render_background(name, side)[:, 0] / 255).astype(np.float32) for name in BACKGROUNDS
    }

    def near(rows: Floats, tolerance: float) -> NDArray[np.bool_]:
        return np.asarray(np.abs(pixels - rows[:, None]).max(-1) < tolerance)

    name = max(known, key=lambda n: int(near(known[n], _TOLERANCE).sum()))
    rows, height = known[name], np.linspace(-1, 1, side)
    apart = (pixels - rows[:, None])[near(rows, _TOLERANCE)]  # (P, 3)
    if len(apart):  # most of these pixels are background: their median is its shift
        rows = (rows + np.median(apart, axis=0)).astype(np.float32)
    for _ in range(2):
        here = near(rows, _TOLERANCE / 2)  # (F, N, N)
        weight = here.sum((0, 2)).astype(np.float64)  # (N,)
        if np.count_nonzero(weight) < 2:
            break
        total = np.einsum("fyxc,fyx->yc", pixels, here)
        basis = np.stack([np.ones(side), height], 1)  # (N, 2)
        line = np.linalg.lstsq((basis.T * weight) @ basis, basis.T @ total, rcond=None)[0]
        rows = (basis @ line).astype(np.float32)
    return name, rows
