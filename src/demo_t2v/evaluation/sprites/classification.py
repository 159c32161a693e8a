"""Recognizes the thing and the motion of a sprite video without a learned network."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from demo_t2v.data.sprites import MOTIONS, SPEEDS, Trajectory, trajectory
from demo_t2v.evaluation.sprites.matching import Match, find_things
from demo_t2v.evaluation.sprites.scene import read_scene

MIN_SHARE: Final = 0.6
"""Share of a frame that the thing must explain in order to count as visible."""
MAX_RIVAL_RESIDUAL: Final = 0.85
"""Limit of the thing's unexplained share, relative to that of the second-best thing."""
MAX_ELLIPSE_LEAD: Final = 0.1
"""A frame shows no thing if an ellipse of one colour explains more than this above the thing."""
MIN_VISIBLE_FRAMES: Final = 0.8
"""Share of the frames in which the thing must be visible."""
TOLERANCE: Final = np.array([0.03, 0.03, 0.025])
"""One unit of deviation in x, y and size (frame sides)."""
SHARE_TOLERANCE: Final = 0.05
"""Loss of explained share, caused by a motion's angles, that counts as one squared unit."""
MAX_DEVIATION: Final = 1.5
"""Root-mean-square deviation above which a track is none of the motions."""


@dataclass(frozen=True)
class VideoClassification:
    """What a video of F frames shows; thing and motion are None where none is recognized."""

    thing: str | None
    motion: str | None
    track: Trajectory
    """Path of the best matching thing, whether or not it is recognized."""
    share: NDArray[np.float64]
    """(F,) explained share of each frame: at most 1, may be negative."""
    background: str
    deviation: float
    """Distance of the track to the nearest motion, in units of TOLERANCE; infinite for no thing."""


def classify_video(frames: NDArray[np.uint8]) -> VideoClassification:
    """Recognize thing, motion and background of a video, uint8 RGB (F, H, W, 3).

    It may have any size of at least 32 pixels and any number of frames, which are compared with
    motions of this number of frames. Raises EvaluationError for other shapes.
    """
    scene = read_scene(frames)
    match, rival = find_things(scene)
    track, share = match.fitted_path
    visible = share >= MIN_SHARE
    visible &= 1 - share <= MAX_RIVAL_RESIDUAL * (1 - rival.fitted_path[1])
    visible &= share >= scene.ellipse_share - MAX_ELLIPSE_LEAD
    recognized = bool(visible.mean() >= MIN_VISIBLE_FRAMES)
    motion, deviation = classify_motion(match, visible) if recognized else (None, np.inf)
    thing = match.thing if recognized else None
    return VideoClassification(thing, motion, track, share, scene.background, deviation)


def classify_motion(match: Match, visible: NDArray[np.bool_]) -> tuple[str | None, float]:
    """The motion nearest to the thing's path in its visible frames, (F,), and its deviation.

    Start position and size are free. A motion's angles cost only the explained share that they
    lose: a ball that spins looks like a ball that does not.
    """
    weight = visible / visible.sum()
    _, free_share = match.best_path
    choices = []
    for angles, shapes in _templates(len(visible)):
        track, share = match.path_with_angles(np.array(angles))
        loss = free_share - share
        choices += [
            (_deviation(track, shape, loss, weight), motion, shape, track)
            for motion, shape in shapes
        ]
    _, motion, shape, track = min(choices, key=lambda choice: choice[0])
    track, share = match.fit(track)  # the grid selects the motion, the exact fit measures it
    _, free_share = match.fitted_path
    deviation = _deviation(track, shape, free_share - share, weight)
    return (motion if deviation <= MAX_DEVIATION else None), deviation


def _deviation(
    track: Trajectory,
    shape: NDArray[np.float64],
    loss: NDArray[np.float64],
    weight: NDArray[np.float64],
) -> float:
    """Root-mean-square distance, weighted by (F,), of a track to a motion's path (F, 3)."""
    offset = (_positions(track) - shape) / TOLERANCE  # (F, 3)
    offset = offset - weight @ offset
    lost = np.clip(loss, 0, None) / SHARE_TOLERANCE
    return float(np.sqrt(weight @ ((offset**2).sum(1) + lost)))


_Shapes = list[tuple[str, NDArray[np.float64]]]


@cache
def _templates(frames: int) -> tuple[tuple[tuple[float, ...], _Shapes], ...]:
    """All motions at all speeds of the sprite world: angles (F,) and the paths (F, 3) with them."""
    groups: dict[tuple[float, ...], _Shapes] = {}
    for motion in MOTIONS:
        for speed in SPEEDS:
            path = trajectory(motion, speed, np.random.default_rng(0), frames)
            groups.setdefault(tuple(path.angle), []).append((motion, _positions(path)))
    return tuple(groups.items())


def _positions(path: Trajectory) -> NDArray[np.float64]:
    return np.stack([path.x, path.y, path.size], 1)  # (F, 3)
