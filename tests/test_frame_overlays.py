"""Pictures of optical flow and attention over video frames."""

from __future__ import annotations

import numpy as np
from PIL import Image

from demo_t2v.evaluation.frame_grids import spread_indices
from demo_t2v.evaluation.frame_overlays import draw_attention, draw_flow


def test_arrows_point_along_the_motion() -> None:
    """A bright square moves to the right: its arrows lie on the right."""
    video = np.full((2, 64, 64, 3), 30, np.uint8)
    video[0, 20:40, 35:55] = video[1, 20:40, 38:58] = 220
    picture = np.asarray(draw_flow([video]).convert("RGB"), int)
    plain = np.asarray(Image.fromarray(video[0]).resize((160, 160)), int)
    drawn = np.abs(picture - plain).sum(axis=-1) > 60
    assert drawn.any()
    assert not drawn[:, :20].any()
    still = np.asarray(draw_flow([np.stack([video[0]] * 2)]).convert("RGB"), int)
    assert np.abs(still - plain).max() == 0


def test_attention_is_bright() -> None:
    frames = np.full((4, 32, 32, 3), 128, np.uint8)
    attention = np.zeros((4, 4, 4), np.float32)
    attention[:, 0, 0] = 1
    picture = np.asarray(draw_attention(frames, [attention]).convert("L"), int)
    assert picture[5, 5] > picture[150, 150] + 80
    flat = draw_attention(frames, [np.ones((4, 4, 4), np.float32)])
    assert np.ptp(np.asarray(flat.convert("L"))[:, :160]) == 0


def test_indices_are_spread() -> None:
    assert spread_indices(2, 2) == [0, 1]
    assert spread_indices(16) == [0, 3, 6, 9, 12, 15]
    assert spread_indices(4) == [0, 1, 1, 2, 2, 3]
