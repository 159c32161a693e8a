"""Is the video what its prompt asked for? A thing and a motion read from the picture itself."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from demo_t2v.data.sprites import MOTIONS, SPEEDS, Trajectory, trajectory
from demo_t2v.evaluation.sprites.matching import Match, find_things
from demo_t2v.evaluation.sprites.scene import read_scene

SHARE_FOUND: Final = 0.6
"""A frame of which the thing explains less does not show it."""
RIVAL_REST: Final = 0.85
"""What it leaves unexplained must be less than this part of what any other thing leaves."""
BLOB_LEAD: Final = 0.1
"""A frame that an ellipse of one colour explains by so much better shows no thing at all."""
FOUND_FRAMES: Final = 0.8
"""The thing must be found in this part of the frames."""
TOLERANCE: Final = np.array([0.03, 0.03, 0.025])
"""What counts as one unit of deviation in x, y and size (frame sides)."""
SHARE_TOLERANCE: Final = 0.05
"""So much less explained, because of the angles that a motion wants, is one unit squared."""
LARGEST_DEVIATION: Final = 1.5
"""A track farther (root mean square) from every motion is none of them."""


@dataclass(frozen=True)
class Finding:
    """What a video shows; None where no thing, or no motion, holds over its frames."""

    thing: str | None
    motion: str | None
    track: Trajectory
    """Where the best matching thing is, whether or not it matches well."""
    share: NDArray[np.float64]
    """(F,) how much of each frame's picture it explains; at most 1, can be negative."""
    background: str
    deviation: float
    """How far the track is from the nearest motion, in units of TOLERANCE."""


def score_video(frames: NDArray[np.uint8]) -> Finding:
    """Find the thing in a video, uint8 RGB (F, H, W, 3), and name it and its motion.

    Raises scene.SceneError for a shape that cannot be matched.
    """
    scene = read_scene(frames)
    match, rival = find_things(scene)
    track, share = match.polished
    found = share >= SHARE_FOUND
    found &= 1 - share <= RIVAL_REST * (1 - rival.polished[1])
    found &= share >= scene.blob_share - BLOB_LEAD
    shown = bool(found.mean() >= FOUND_FRAMES)
    motion, deviation = classify(match, found) if shown else (None, np.inf)
    thing = match.thing if shown else None
    return Finding(thing, motion, track, share, scene.background, deviation)


def classify(match: Match, found: NDArray[np.bool_]) -> tuple[str | None, float]:
    """The motion nearest to what the thing does in the frames with `found` (F,), and how near.

    Where the thing started, and its size, are free. Its angles are not, but count only by what the
    picture says: a ball that does not turn is also a ball that spins.
    """
    weight = found / found.sum()
    _, free = match.free
    choices = []
    for angles, shapes in _templates(len(found)):
        track, share = match.along(np.array(angles))
        loss = free - share
        choices += [
            (_deviation(track, shape, loss, weight), motion, shape, track)
            for motion, shape in shapes
        ]
    _, motion, shape, track = min(choices, key=lambda choice: choice[0])
    track, share = match.polish(track)  # the grid chose; what counts is exact
    _, free = match.polished
    deviation = _deviation(track, shape, free - share, weight)
    return (motion if deviation <= LARGEST_DEVIATION else None), deviation


def _deviation(
    track: Trajectory,
    shape: NDArray[np.float64],
    loss: NDArray[np.float64],
    weight: NDArray[np.float64],
) -> float:
    """Root mean square over the frames of the distance to a motion's places (F, 3)."""
    apart = (_places(track) - shape) / TOLERANCE  # (F, 3)
    apart = apart - weight @ apart
    lost = np.clip(loss, 0, None) / SHARE_TOLERANCE
    return float(np.sqrt(weight @ ((apart**2).sum(1) + lost)))


_Shapes = list[tuple[str, NDArray[np.float64]]]


@cache
def _templates(frames: int) -> tuple[tuple[tuple[float, ...], _Shapes], ...]:
    """Every motion at every speed as the generator draws it: by angles (F,), the places (F, 3)."""
    groups: dict[tuple[float, ...], _Shapes] = {}
    for motion in MOTIONS:
        for speed in SPEEDS:
            path = trajectory(motion, speed, np.random.default_rng(0), frames)
            groups.setdefault(tuple(path.angle), []).append((motion, _places(path)))
    return tuple(groups.items())


def _places(path: Trajectory) -> NDArray[np.float64]:
    return np.stack([path.x, path.y, path.size], 1)  # (F, 3)
