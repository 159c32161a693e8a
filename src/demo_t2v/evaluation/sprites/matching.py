"""Template matching: finds the thing of a video on the sprite sheet.

A frame I of a sprite with premultiplied colours P and opacity a on a background B is I = B + S with
S = P - a B. With D = I - B, a pose explains the share (2<D, S> - <S, S>) / <D, D> of the frame: 1
for an exact match, 0 for a match no better than the background. Anything else in the frame (a
second thing, noise) lowers it. The sum over pixels is linear in features of the frame and of the
sprite, so one matrix product tries thousands of poses.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
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
        poses = np.stack([track.x, track.y, track.size, track.angle], 1)
        difference = self.scene.difference.astype(np.float64)
        shares = np.zeros(len(poses))
        for frame, pose in enumerate(poses):
            residual = difference[frame] - self._sprite(pose)
            for _ in range(2):
                slopes = np.stack(
                    [self._sprite(pose + d) - difference[frame] + residual for d in _DELTAS], -1
                ).reshape(-1, len(_DELTAS))  # (N * N * 3, 4)
                normal = slopes.T @ slopes
                normal += np.diag(0.01 * normal.diagonal() + 1e-6)
                move = np.clip(np.linalg.solve(normal, slopes.T @ residual.ravel()), -4, 4)
                trial = pose + move @ _DELTAS
                trial_residual = difference[frame] - self._sprite(trial)
                if (trial_residual**2).sum() >= (residual**2).sum():
                    break
                pose, residual = trial, trial_residual
            poses[frame] = pose
            explained = (difference[frame] ** 2).sum() - (residual**2).sum()
            shares[frame] = explained / self.scene.energy[frame]
        return Trajectory(*poses.T), shares

    def _sprite(self, pose: NDArray[np.float64]) -> NDArray[np.float64]:
        """S of a pose (x, y, size, angle), (N, N, 3)."""
        x, y, size, angle = pose
        drawn = render_sprite(self.thing, x, y, max(size, 0.05), angle, 2 * SIDE)
        sprite = shrink(drawn[None].astype(np.float32), SIDE)[0].astype(np.float64) / 255
        return np.asarray(sprite[..., :3] - sprite[..., 3:] * self.scene.backdrop[:, None])

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
    coarse = _shares(_frame_factors(scene, COARSE), scene.centres, THINGS, COARSE)
    features = _frame_factors(scene, FINE)
    matches = []
    for index in np.argsort(-_evidence(coarse.reshape(*coarse.shape[:2], -1).max(-1)))[:CANDIDATES]:
        centres = _best_centres(coarse[index], scene.centres)
        shares = _shares(features, centres, (THINGS[index],), FINE)[0]
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


@cache
def _sprite_features(thing: str, side: int) -> Floats:
    """Sprite features of all poses, centred in a frame of N = `side`: (A * S, N * N * 9)."""
    poses = np.stack(
        [
            render_sprite(thing, 0.5, 0.5, size, angle, 2 * SIDE)
            for angle in ANGLES[side]
            for size in SIZES
        ]
    )  # (A * S, 64, 64, 4)
    sprite = shrink(poses.astype(np.float32), side) / 255
    colour, opacity = sprite[..., :3], sprite[..., 3:]
    square = (colour**2).sum(-1, keepdims=True)
    features = [colour, opacity, square, opacity * colour, opacity**2]
    return np.concatenate(features, -1).reshape(len(poses), -1)


def _shares(
    features: Floats, centres: NDArray[np.float64], things: tuple[str, ...], side: int
) -> Floats:
    """Shares of all poses near `centres` (F, 2): (T, F, V, V, A, S), V shifts of y and x."""
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
    return np.stack([(flat @ _sprite_features(thing, side).T).reshape(shape) for thing in things])


def _pixel(centres: NDArray[np.float64], side: int) -> NDArray[np.int64]:
    return np.asarray(np.clip(np.rint(centres * side), 0, side), dtype=np.int64)


def _best_centres(shares: Floats, centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centres (F, 2) of the best coarse shares (F, V, V, A, S) in each frame."""
    width = shares.shape[1]
    best = shares.max((3, 4)).reshape(len(shares), -1).argmax(1)
    shift = np.stack(np.divmod(best, width), 1) - SHIFTS[COARSE]
    return np.asarray((_pixel(centres, COARSE) + shift) / COARSE, dtype=np.float64)


def _likeliest_path(shares: NDArray[np.float64]) -> NDArray[np.int64]:
    """Viterbi path through shares (F, A, S), less the costs of steps: (F, 2) indices."""
    count, angles, sizes = shares.shape
    a, s = (grid.ravel() for grid in np.indices((angles, sizes)))
    turn = np.abs(a[:, None] - a)
    turn = np.minimum(turn, angles - turn) * (360 / angles)
    cost = ANGLE_STEP_COST * (turn / 45) ** 2 + SIZE_STEP_COST * (s[:, None] - s) ** 2
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
