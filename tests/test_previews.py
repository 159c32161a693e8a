"""Sample videos on TensorBoard: real event files, read back."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from demo_t2v.data.sprites import Trajectory, render
from demo_t2v.pipeline import DemoPipeline
from demo_t2v.training.previews import Preview, make_previews, show_previews


class OneVideo:
    """A pipeline without a motion branch whose every video is the same."""

    motion_encoder = None

    def __init__(self, video: np.ndarray) -> None:
        self.video = video

    def __call__(self, _: str, **_options: Any) -> Any:
        return SimpleNamespace(frames=[self.video])


def preview_of(video: np.ndarray) -> Preview:
    """The preview of a video (F, H, W, 3) in [0, 1]."""
    (preview,) = make_previews(OneVideo(video.astype(np.float32)), ["a"], 0)  # type: ignore[arg-type]
    return preview


def test_what_moves_two_pixels_a_frame_has_flow_and_what_stands_has_none() -> None:
    steps = np.arange(6)
    flat = np.ones(6)
    moving = Trajectory(0.3 + steps * 2 / 64, 0.5 * flat, 0.5 * flat, 0 * flat)
    standing = Trajectory(0.5 * flat, 0.5 * flat, 0.5 * flat, 0 * flat)
    moved, stood = (
        preview_of(render("pig", "at night", path, 64) / np.float32(255))
        for path in (moving, standing)
    )
    # The pig covers some 15 % of the picture: 2 pixels there, none elsewhere.
    assert 0.1 < moved.flow < 1
    assert moved.flicker > 1
    assert stood.flow == pytest.approx(0, abs=1e-6)
    assert stood.flicker == 0


def test_a_black_frame_and_a_white_one_flicker_by_the_whole_range() -> None:
    video = np.stack([np.zeros((8, 8, 3)), np.ones((8, 8, 3))])
    assert preview_of(video).flicker == pytest.approx(255)
    assert preview_of(video[:1]).flow == 0


def test_every_prompt_is_shown_with_and_without_motion(tiny_pipeline: DemoPipeline) -> None:
    first, again = (
        list(make_previews(tiny_pipeline, ["a car", "a pig"], seed=3)) for _ in range(2)
    )
    assert [p.name for p in first] == ["a car/motion", "a car/base", "a pig/motion", "a pig/base"]
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one.frames, other.frames)
    assert not np.array_equal(first[0].frames, first[2].frames)


def test_tensorboard_gets_moving_pictures_and_curves(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (5, 16, 24, 3), dtype=np.uint8)
    with SummaryWriter(tmp_path) as writer:
        show_previews(writer, [Preview("a car/motion", frames, 0.5, 7.0)], step=40, fps=8)
    events = EventAccumulator(str(tmp_path)).Reload()
    (shown,) = events.Images("video/a car/motion")
    assert (shown.step, shown.height, shown.width) == (40, 16, 24)
    picture = Image.open(io.BytesIO(shown.encoded_image_string))
    assert picture.format == "GIF"
    assert picture.n_frames == 5
    assert events.Scalars("flow/a car/motion")[0].value == pytest.approx(0.5)
    assert events.Scalars("flicker/a car/motion")[0].value == pytest.approx(7)
