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
from typing import Any, Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from demo_t2v.data.sprites import THINGS, Trajectory, render_sprite
from demo_t2v.evaluation.sprites.scene import SIDE, Floats, Scene, shrink

COARSE: Final = 16
FINE: Final = SIDE
SIZES: Final = tuple(0.21 * 1.15**step for step in range(9))  # 0.21 ... 0.64
ANGLES: Final = {COARSE: tuple(range(0, 360, 24)), FINE: tuple(range(0, 360, 15))}
SHIFTS: Final = {COARSE: 1, FINE: 2}  # pixels to each side of the first guess
CANDIDATES: Final = 4
ANGLE_STEP_COST: Final = 0.05  # of a turn by 45 degrees from one frame to the next, in shares
_STEPS: Final = np.diag([0.01, 0.01, 0.01, 4.0])  # small moves of x, y, size and angle
SIZE_STEP_COST: Final = 0.02  # of a change of size by one grid step


@dataclass(frozen=True)
class Match:
    """How well one thing fits a video of F frames in every pose, and its paths through them."""

    scene: Scene
    thing: str
    guess: NDArray[np.float64]
    """(F, 2) the y and x, in frame sides, that the shifts of `shares` are counted from."""
    shares: Floats
    """(F, V, V, A, S) the explained share for V shifts of y and x, A angles and S sizes."""

    @cached_property
    def free(self) -> tuple[Trajectory, NDArray[np.float64]]:
        """The likeliest path of the thing, and the share (F,) that it explains; at most about 1."""
        return self._refine(_likeliest_path(self.shares.max((1, 2)).astype(np.float64)))

    @cached_property
    def polished(self) -> tuple[Trajectory, NDArray[np.float64]]:
        """The free path, exact."""
        return self.polish(self.free[0])

    def polish(self, track: Trajectory) -> tuple[Trajectory, NDArray[np.float64]]:
        """A path moved to where the rendered sprite fits best, and its exact shares (F,)."""
        poses = np.stack([track.x, track.y, track.size, track.angle], 1)
        difference = self.scene.difference.astype(np.float64)
        shares = np.zeros(len(poses))
        for frame, pose in enumerate(poses):
            left = difference[frame] - self._sprite(pose)
            for _ in range(2):  # Gauss-Newton
                slopes = np.stack(
                    [self._sprite(pose + step) - difference[frame] + left for step in _STEPS], -1
                ).reshape(-1, len(_STEPS))  # (N * N * 3, 4) for one step in each direction
                normal = slopes.T @ slopes
                normal += np.diag(0.01 * normal.diagonal() + 1e-6)
                move = np.clip(np.linalg.solve(normal, slopes.T @ left.ravel()), -4, 4)
                trial = pose + move @ _STEPS
                rest = difference[frame] - self._sprite(trial)
                if (rest**2).sum() >= (left**2).sum():
                    break
                pose, left = trial, rest
            poses[frame] = pose
            explained = (difference[frame] ** 2).sum() - (left**2).sum()
            shares[frame] = explained / self.scene.energy[frame]
        return Trajectory(*poses.T), shares

    def _sprite(self, pose: NDArray[np.float64]) -> NDArray[np.float64]:
        """S of a pose (x, y, size, angle), (N, N, 3)."""
        x, y, size, angle = pose
        drawn = render_sprite(self.thing, x, y, max(size, 0.05), angle, 2 * SIDE)
        sprite = shrink(drawn[None].astype(np.float32) / 255, SIDE)[0].astype(np.float64)
        return np.asarray(sprite[..., :3] - sprite[..., 3:] * self.scene.behind[:, None])

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


def find_things(scene: Scene) -> tuple[Match, Match]:
    """The two things that match a video best, by the evidence of all its frames together."""
    coarse = _shares(_features(scene, COARSE), scene.centres, THINGS, COARSE)
    features = _features(scene, FINE)
    matches = []
    for index in np.argsort(-_evidence(coarse.reshape(*coarse.shape[:2], -1).max(-1)))[:CANDIDATES]:
        guess = _coarse_centres(coarse[index], scene.centres)
        shares = _shares(features, guess, (THINGS[index],), FINE)[0]
        matches.append(Match(scene, THINGS[index], guess, shares))
    matches.sort(key=lambda match: -_evidence(match.free[1]))
    first, second = sorted(matches[:2], key=lambda match: -_evidence(match.polished[1]))
    return first, second


def _evidence(shares: NDArray[Any]) -> NDArray[np.float64]:
    """Shares (..., F) added up; a frame that speaks against a thing counts no more than none."""
    return np.asarray(np.clip(shares, 0, None).sum(-1), dtype=np.float64)


def _features(scene: Scene, side: int) -> Floats:
    """What a sprite's features (see `_bank`) are multiplied with, (F, N, N, 9), by <D, D>."""
    scale = scene.energy[:, None, None, None] * (side / SIDE) ** 2
    difference = shrink(scene.difference, side)
    background = scene.behind.reshape(side, -1, 3).mean(1)[:, None]  # (N, 1, 3)
    background = np.broadcast_to(background, difference.shape)
    parts = [
        2 * difference,
        -2 * (difference * background).sum(-1, keepdims=True),
        -np.ones_like(difference[..., :1]),
        2 * background,
        -(background**2).sum(-1, keepdims=True),
    ]
    return np.asarray(np.concatenate(parts, -1) / scale, dtype=np.float32)


@cache
def _bank(thing: str, side: int) -> Floats:
    """Every pose of the thing in the middle of a frame of N = `side`: (A * S, N * N * 9)."""
    poses = np.stack(
        [
            render_sprite(thing, 0.5, 0.5, size, angle, 2 * SIDE)
            for angle in ANGLES[side]
            for size in SIZES
        ]
    )  # (A * S, 64, 64, 4)
    sprite = shrink(poses.astype(np.float32) / 255, side)
    colour, opacity = sprite[..., :3], sprite[..., 3:]
    square = (colour**2).sum(-1, keepdims=True)
    parts = [colour, opacity, square, opacity * colour, opacity**2]
    return np.concatenate(parts, -1).reshape(len(poses), -1)


def _shares(
    features: Floats, centres: NDArray[np.float64], things: tuple[str, ...], side: int
) -> Floats:
    """The share of every pose near `centres`: (T, F, V, V, A, S), V shifts of y and x."""
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
    return np.asarray((_pixel(centres, COARSE) + shift) / COARSE, dtype=np.float64)


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
