"""Template matching: finds the thing of a video on the sprite sheet.

A frame I of a sprite with premultiplied colours P and opacity a on a background B is I = B + S with
S = P - a B. With D = I - B, a pose explains the share (2<D, S> - <S, S>) / <D, D> of the frame: 1
for an exact match, 0 for a match no better than the background. Anything else in the frame (a
second thing, noise) lowers it. The sum over pixels is linear in features of the frame and of the
sprite, so one matrix product tries thousands of poses.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from demo_t2v.data.sprites import THINGS, Trajectory, render_sprite
from demo_t2v.evaluation.sprites.scene import SIDE, Floats, Scene, shrink

COARSE: Final = 16
"""Side in pixels of the first search, over all things."""
FINE: Final = SIDE
"""Side in pixels of the second search, over the best things."""
SIZES: Final = tuple(0.21 * 1.15**step for step in range(9))  # 0.21 ... 0.64
ANGLES: Final = {COARSE: tuple(range(0, 360, 24)), FINE: tuple(range(0, 360, 15))}
SHIFTS: Final = {COARSE: 1, FINE: 2}  # pixels to each side of the estimated centre
CANDIDATES: Final = 4
ANGLE_STEP_COST: Final = 0.05  # share; for a turn by 45 degrees between two frames
SIZE_STEP_COST: Final = 0.02  # share; for a change of size by one grid step
_DELTAS: Final = np.diag([0.01, 0.01, 0.01, 4.0])  # of x, y, size, angle; for the derivatives


MatchedPath = tuple[Trajectory, NDArray[np.float64]]
"""A path, and the share (F,), at most 1, that the thing explains of each frame."""


@dataclass(frozen=True)
class Match:
    """The match of one thing with a video of F frames in all poses."""

    scene: Scene
    thing: str
    centres: NDArray[np.float64]
    """(F, 2) y and x in frame sides, the origin of the shifts in `shares`."""
    shares: Floats
    """(F, V, V, A, S) explained share for V shifts of y and x, A angles and S sizes."""

    @cached_property
    def best_path(self) -> MatchedPath:
        """The most likely path, to a fraction of a grid step."""
        return self._refine(_likeliest_path(self.shares.max((1, 2)).astype(np.float64)))

    @cached_property
    def fitted_path(self) -> MatchedPath:
        """The most likely path, fitted to the pixels."""
        return self.fit(self.best_path[0])

    def fit(self, track: Trajectory) -> MatchedPath:
        """Fit a path's poses to the pixels by two Gauss-Newton steps a frame."""
        poses = np.stack([track.x, track.y, track.size, track.angle], 1)  # (F, 4)
        difference = self.scene.difference.astype(np.float64)
        residual = difference - self._sprites(poses)  # (F, N, N, 3)
        moving = np.arange(len(poses))  # the frames whose last step was an improvement
        for _ in range(2):
            if not len(moving):
                break
            near = (poses[moving, None] + _DELTAS).reshape(-1, 4)  # (M * 4, 4)
            sprites = self._sprites(near).reshape(-1, 4, *residual.shape[1:])  # (M, 4, N, N, 3)
            slopes = sprites - difference[moving, None] + residual[moving, None]
            steps = map(_gauss_newton_step, slopes, residual[moving])
            trial = poses[moving] + np.stack(list(steps)) @ _DELTAS
            trial_residual = difference[moving] - self._sprites(trial)
            better = _energy(trial_residual) < _energy(residual[moving])
            moving = moving[better]
            poses[moving], residual[moving] = trial[better], trial_residual[better]
        shares = (_energy(difference) - _energy(residual)) / self.scene.energy
        return Trajectory(*poses.T), shares

    def _sprites(self, poses: NDArray[np.float64]) -> NDArray[np.float64]:
        """S of poses (P, 4) of x, y, size and angle: (P, N, N, 3)."""
        drawn = _draw(self.thing, [(x, y, max(size, 0.05), turn) for x, y, size, turn in poses])
        sprites = _shrink_sprites(drawn, SIDE) / 255
        return np.asarray(sprites[..., :3] - sprites[..., 3:] * self.scene.backdrop[:, None])

    def path_with_angles(self, angles: NDArray[np.float64]) -> MatchedPath:
        """The best path with given angles (F,) in degrees, to one grid step (15 degrees)."""
        count, _, _, steps, sizes = self.shares.shape
        near = np.rint(angles / (360 / steps)).astype(np.int64)[:, None] + (-1, 0, 1)  # (F, 3)
        near %= steps
        shares = np.take_along_axis(self.shares.max((1, 2)), near[..., None], 1)  # (F, 3, S)
        step, size = np.divmod(shares.reshape(count, -1).argmax(1), sizes)
        return self._refine(np.stack([near[np.arange(count), step], size], 1))

    def _refine(self, poses: NDArray[np.int64]) -> MatchedPath:
        """The path with the best shifts for (F, 2) indices of angles and sizes.

        A parabola through neighbouring grid points interpolates each axis.
        """
        count, wide, _, angles, sizes = self.shares.shape
        frame = np.arange(count)
        shifts = self.shares[frame, :, :, poses[:, 0], poses[:, 1]].reshape(count, -1).argmax(1)
        at = np.stack([*np.divmod(shifts, wide), poses[:, 0], poses[:, 1]], 1)  # y, x, angle, size
        share = self.shares[(frame, *at.T)].astype(np.float64)
        offset, peak = np.zeros((count, 4)), share.copy()
        for axis, (length, wraps) in enumerate(
            ((wide, False), (wide, False), (angles, True), (sizes, False))
        ):
            low, high = at.copy(), at.copy()
            low[:, axis] -= 1
            high[:, axis] += 1
            interior = wraps | ((low[:, axis] >= 0) & (high[:, axis] < length))
            low[:, axis] %= length
            high[:, axis] %= length
            before, after = self.shares[(frame, *low.T)], self.shares[(frame, *high.T)]
            bend = np.maximum(2 * share - before - after, 1e-6)
            offset[:, axis] = np.where(
                interior, np.clip((after - before) / (2 * bend), -0.5, 0.5), 0
            )
            peak += 0.5 * bend * offset[:, axis] ** 2
        y, x = ((_pixel(self.centres, FINE) + at[:, :2] - SHIFTS[FINE] + offset[:, :2]) / FINE).T
        turn = np.unwrap((at[:, 2] + offset[:, 2]) * (360 / angles), period=360)
        turn -= 360 * np.rint(turn[0] / 360)
        size = SIZES[0] * (SIZES[1] / SIZES[0]) ** (at[:, 3] + offset[:, 3])
        return Trajectory(x, y, size, turn), np.minimum(peak, 1.0)


def find_things(scene: Scene) -> tuple[Match, Match]:
    """The two things that match a video best, by the sum of their shares over the frames."""
    coarse = _coarse_shares(_frame_factors(scene, COARSE), scene.centres)
    features = _frame_factors(scene, FINE)
    matches = []
    for index in np.argsort(-_evidence(coarse.max((2, 3))))[:CANDIDATES]:
        centres = _best_centres(coarse[index], scene.centres)
        shares = _fine_shares(features, centres, THINGS[index])
        matches.append(Match(scene, THINGS[index], centres, shares))
    matches.sort(key=lambda match: -_evidence(match.best_path[1]))
    first, second = sorted(matches[:2], key=lambda match: -_evidence(match.fitted_path[1]))
    return first, second


def _evidence(shares: NDArray[Any]) -> NDArray[np.float64]:
    """Sum of the positive shares (..., F)."""
    return np.asarray(np.clip(shares, 0, None).sum(-1), dtype=np.float64)


def _frame_factors(scene: Scene, side: int) -> Floats:
    """A frame's factors of the `_sprite_features`, over <D, D>: (F, N, N, 9)."""
    scale = scene.energy[:, None, None, None] * (side / SIDE) ** 2
    difference = shrink(scene.difference, side)
    background = scene.backdrop.reshape(side, -1, 3).mean(1)[:, None]  # (N, 1, 3)
    background = np.broadcast_to(background, difference.shape)
    factors = [
        2 * difference,
        -2 * (difference * background).sum(-1, keepdims=True),
        -np.ones_like(difference[..., :1]),
        2 * background,
        -(background**2).sum(-1, keepdims=True),
    ]
    return np.asarray(np.concatenate(factors, -1) / scale, dtype=np.float32)


def _sprite_features(thing: str, side: int) -> Floats:
    """Sprite features of all poses, centred in a frame of N = `side`: (A * S, N * N * 9)."""
    poses = _draw(thing, [(0.5, 0.5, size, angle) for angle in ANGLES[side] for size in SIZES])
    sprite = _shrink_sprites(poses, side).astype(np.float32) / 255  # (A * S, N, N, 4)
    colour, opacity = sprite[..., :3], sprite[..., 3:]
    square = (colour**2).sum(-1, keepdims=True)
    features = [colour, opacity, square, opacity * colour, opacity**2]
    return np.concatenate(features, -1).reshape(len(poses), -1)


def _draw(thing: str, poses: Iterable[tuple[float, float, float, float]]) -> NDArray[np.uint8]:
    """Premultiplied RGBA of a thing in poses of x, y, size and angle: (P, H, W, 4)."""
    return np.stack([render_sprite(thing, *pose, 2 * SIDE) for pose in poses])


def _shrink_sprites(drawn: NDArray[np.uint8], side: int) -> NDArray[np.float64]:
    """The exact means of blocks of RGBA pixels (P, H, W, 4): (P, side, side, 4)."""
    step = drawn.shape[1] // side
    words = drawn.view(np.uint32)[..., 0]  # a pixel as one number: copies are faster
    total = np.zeros((len(drawn), side, side * 4), np.uint16)
    for row in range(step):
        for column in range(step):
            total += np.ascontiguousarray(words[:, row::step, column::step]).view(np.uint8)
    return np.asarray((total / step**2).reshape(len(drawn), side, side, 4))


def _gauss_newton_step(
    slopes: NDArray[np.float64], residual: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The step (4,) in units of `_DELTAS`: residual (N, N, 3) and its slopes (4, N, N, 3)."""
    slopes = np.ascontiguousarray(slopes.reshape(len(slopes), -1).T)
    normal = slopes.T @ slopes
    normal += np.diag(0.01 * normal.diagonal() + 1e-6)
    return np.asarray(np.clip(np.linalg.solve(normal, slopes.T @ residual.ravel()), -4, 4))


def _energy(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sum of squares of each frame (F, N, N, 3): (F,)."""
    return np.asarray((pixels**2).sum((1, 2, 3)))


@cache
def _coarse_features() -> list[tuple[NDArray[np.bool_], Floats]]:
    """For each size the pixels (N * N,) that a sprite covers, P of them, and (T * A, P * 9)."""
    shape = (len(THINGS) * len(ANGLES[COARSE]), len(SIZES), COARSE**2, -1)
    features = np.concatenate([_sprite_features(thing, COARSE) for thing in THINGS]).reshape(shape)
    covered = np.asarray(features.any((0, 3)))  # (S, N * N)
    return [
        (pixels, np.ascontiguousarray(features[:, size, pixels].reshape(len(features), -1)))
        for size, pixels in enumerate(covered)
    ]


def _coarse_shares(factors: Floats, centres: NDArray[np.float64]) -> Floats:
    """The best shares near `centres` (F, 2) over angles and sizes: (T, F, V, V)."""
    windows = _windows(factors, centres, COARSE)
    flat = windows.reshape(-1, COARSE**2, factors.shape[-1])
    best = np.full((len(flat), len(THINGS)), -np.inf, np.float32)
    for pixels, features in _coarse_features():
        shares = flat[:, pixels].reshape(len(flat), -1) @ features.T
        np.maximum(best, shares.reshape(*best.shape, -1).max(-1), out=best)
    return np.moveaxis(best.reshape(*windows.shape[:3], -1), -1, 0)


@cache
def _fine_features(thing: str) -> Floats:
    return _sprite_features(thing, FINE)


def _fine_shares(factors: Floats, centres: NDArray[np.float64], thing: str) -> Floats:
    """Shares of all poses near `centres` (F, 2): (F, V, V, A, S), V shifts of y and x."""
    windows = _windows(factors, centres, FINE)
    features = _fine_features(thing)
    shares = windows.reshape(-1, features.shape[1]) @ features.T
    return shares.reshape(*windows.shape[:3], len(ANGLES[FINE]), len(SIZES))


def _windows(factors: Floats, centres: NDArray[np.float64], side: int) -> Floats:
    """The factors (F, N, N, 9) around each shifted centre, N = `side`: (F, V, V, N, N, 9)."""
    reach = SHIFTS[side]
    padded = np.pad(factors, ((0, 0), (side, side), (side, side), (0, 0)))
    corners = _pixel(centres, side) + side - side // 2 - reach  # (F, 2)
    shifts = range(2 * reach + 1)
    windows = np.empty((len(factors), len(shifts), len(shifts), *factors.shape[1:]), np.float32)
    for frame, (top, left) in enumerate(corners):
        for y in shifts:
            for x in shifts:
                rows = padded[frame, top + y : top + y + side]
                windows[frame, y, x] = rows[:, left + x : left + x + side]
    return windows


def _pixel(centres: NDArray[np.float64], side: int) -> NDArray[np.int64]:
    return np.asarray(np.clip(np.rint(centres * side), 0, side), dtype=np.int64)


def _best_centres(shares: Floats, centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centres (F, 2) of the best coarse shares (F, V, V) in each frame."""
    best = shares.reshape(len(shares), -1).argmax(1)
    shift = np.stack(np.divmod(best, shares.shape[1]), 1) - SHIFTS[COARSE]
    return np.asarray((_pixel(centres, COARSE) + shift) / COARSE, dtype=np.float64)


def _likeliest_path(shares: NDArray[np.float64]) -> NDArray[np.int64]:
    """Viterbi path through shares (F, A, S), less the costs of steps: (F, 2) indices."""
    count, angles, sizes = shares.shape
    cost = _step_costs(angles, sizes)
    flat = np.clip(shares.reshape(count, -1), -1, None)
    total, predecessors = flat[0], []
    for frame in flat[1:]:
        scores = total[:, None] - cost  # (from, to)
        predecessors.append(scores.argmax(0))
        total = scores.max(0) + frame
    path = [int(total.argmax())]
    for best in reversed(predecessors):
        path.append(int(best[path[-1]]))
    return np.stack(np.divmod(np.array(path[::-1]), sizes), 1)


@cache
def _step_costs(angles: int, sizes: int) -> NDArray[np.float64]:
    """Costs of the steps between the A * S poses, (A * S, A * S)."""
    a, s = (grid.ravel() for grid in np.indices((angles, sizes)))
    turn = np.abs(a[:, None] - a)
    turn = np.minimum(turn, angles - turn) * (360 / angles)
    cost = ANGLE_STEP_COST * (turn / 45) ** 2 + SIZE_STEP_COST * (s[:, None] - s) ** 2
    return np.asarray(cost)
