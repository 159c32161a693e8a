"""Is the video what its prompt asked for? A thing and a motion read from the picture itself."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from demo_t2v.data.sprites import MOTIONS, SPEEDS, Trajectory, trajectory
from demo_t2v.evaluation.matching import Match, find_thing

SHARE_FOUND: Final = 0.45
"""A frame of which the thing explains less does not show it."""
RIVAL_LEAD: Final = 0.05
"""A frame that another thing explains by so much better shows that one."""
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
    """What a video shows; None where it shows no thing, or no motion, that holds over the frames."""

    thing: str | None
    motion: str | None
    track: Trajectory
    """Where the best matching thing is, whether or not it matches well."""
    share: NDArray[np.float64]
    """(F,) how much of each frame's picture it explains; at most 1, can be negative."""
    best: str
    """The best matching thing, whether or not it matches well."""
    background: str
    deviation: float
    """How far the track is from the nearest motion, in units of TOLERANCE."""

    def right(self, thing: str, motion: str) -> tuple[bool, bool]:
        """Whether the content and the motion are the ones asked for."""
        return self.thing == thing, self.motion == motion


def score_video(frames: NDArray[np.uint8]) -> Finding:
    """Find the thing in a video, uint8 RGB (F, H, W, 3), and name it and its motion.

    Raises ValueError for a shape that cannot be matched.
    """
    match = find_thing(frames)
    track, share = match.free
    found = (share >= SHARE_FOUND) & (share >= match.rival - RIVAL_LEAD)
    shown = bool(found.mean() >= FOUND_FRAMES)
    motion, deviation = classify(match, found) if shown else (None, np.inf)
    thing = match.thing if shown else None
    return Finding(thing, motion, track, share, match.thing, match.background, deviation)


def classify(match: Match, found: NDArray[np.bool_]) -> tuple[str | None, float]:
    """The motion nearest to what the thing does in the frames with `found` (F,), and how near.

    Where the thing started, and its size, are free. Its angles are not, but count only by what the
    picture says: a ball that does not turn is also a ball that spins.
    """
    weight = found / found.sum()
    _, free = match.free
    best: tuple[float, str | None] = (np.inf, None)
    for angles, shapes in _templates(len(found)):
        track, share = match.along(np.array(angles))
        loss = weight @ np.clip(free - share, 0, None) / SHARE_TOLERANCE
        for motion, shape in shapes:
            apart = (_places(track) - shape) / TOLERANCE  # (F, 3)
            apart = apart - weight @ apart
            deviation = float(np.sqrt(weight @ (apart**2).sum(1) + loss))
            best = min(best, (deviation, motion))
    deviation, nearest = best
    return (nearest if deviation <= LARGEST_DEVIATION else None), deviation


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
