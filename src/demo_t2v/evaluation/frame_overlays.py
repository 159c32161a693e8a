"""Pictures of optical flow and attention over video frames, and animated previews."""

from __future__ import annotations

import base64
import colorsys
import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from demo_t2v.data.video import gif_bytes
from demo_t2v.evaluation.frame_grids import COLUMNS, image_grid, spread_indices
from demo_t2v.losses.optical_flow import lucas_kanade, video_flow

HEIGHT: Final = 160
"""Height of an enlarged frame in pixels."""
_GAP: Final = 4
_ARROWS: Final = 8  # along the shorter side of a frame
_ARROW_SCALE: Final = 3.0  # length of an arrow per displacement between two frames
_MIN_DISPLACEMENT: Final = 1 / 100  # of the frame's height; smaller ones have no arrow
_COLOUR_MAP: Final = np.array(
    [(0, 0, 8), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], np.float32
)  # from dark to bright in even steps, like Matplotlib's "inferno"
_HEAT_OPACITY: Final = 0.65
_PREVIEW_SIDE: Final = 128

Frames = NDArray[np.uint8]
"""(F, H, W, 3) RGB."""


def gif_data_uri(frames: Frames, fps: float) -> str:
    """The frames, at most 128 pixels wide and high, as a looping GIF in a data URI."""
    height, width = frames.shape[1:3]
    scale = min(1.0, _PREVIEW_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.stack([np.asarray(Image.fromarray(frame).resize(size)) for frame in frames])
    return f"data:image/gif;base64,{base64.b64encode(gif_bytes(small, fps)).decode()}"


def optical_flow(frames: Frames) -> NDArray[np.float32]:
    """The flow (F-1, 2, H, W) from each frame to the next, in pixels; at least two frames."""
    clip = rearrange(torch.from_numpy(frames), "f h w c -> 1 c f h w").float() / 127.5 - 1
    flow: NDArray[np.float32] = video_flow(lucas_kanade, clip)[0].numpy()
    return flow


def draw_flow(videos: Sequence[Frames]) -> Image.Image:
    """A row of frames for each video, with arrows along the optical flow to the next frame.

    An arrow is three times as long as the displacement, its hue is the direction. Videos need at
    least two frames. The picture is RGBA, transparent between the frames.
    """
    rows = []
    for frames in videos:
        flow = optical_flow(frames)
        rows.append([with_arrows(enlarged(frames[i]), flow[i]) for i in _columns(len(flow))])
    return _grid(rows)


def draw_attention(frames: Frames, attention: Sequence[NDArray[np.float32]]) -> Image.Image:
    """A row of frames for each attention (F, h, w), which is drawn as a heat map.

    Each row has its own scale, from its minimum to its maximum. The picture is RGBA, transparent
    between the frames.
    """
    rows = []
    for maps in attention:
        level = normalized(maps)
        rows.append([with_heat(enlarged(frames[i]), level[i]) for i in _columns(len(frames))])
    return _grid(rows)


def normalized(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """The maps on a scale from their minimum, 0, to their maximum, 1; all 0 where they are even."""
    span = float(np.ptp(maps))
    return (maps - maps.min()) / span if span else np.zeros_like(maps)


def _columns(frames: int) -> list[int]:
    """Indices of at most COLUMNS frames."""
    return spread_indices(frames, min(COLUMNS, frames))


def _grid(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    return image_grid(rows, _GAP, "RGBA", "#0000")


def enlarged(frame: NDArray[np.uint8]) -> Image.Image:
    """A frame (H, W, 3) as a picture HEIGHT pixels high."""
    height, width = frame.shape[:2]
    return Image.fromarray(frame).resize((max(1, round(HEIGHT * width / height)), HEIGHT))


def with_arrows(picture: Image.Image, flow: NDArray[np.float32]) -> Image.Image:
    """The enlarged frame with arrows of its flow (2, H, W), in pixels of the original frame."""
    height, width = flow.shape[1:]
    scale, spacing = picture.height / height, max(1, min(height, width) // _ARROWS)
    draw = ImageDraw.Draw(picture)
    for row in range(spacing // 2, height, spacing):
        for column in range(spacing // 2, width, spacing):
            # Each arrow shows the largest displacement around it, so that small things have one.
            near = flow[:, row - spacing // 2 : row + spacing // 2 + 1][
                :, :, column - spacing // 2 : column + spacing // 2 + 1
            ].reshape(2, -1)
            x, y = map(float, near[:, np.hypot(*near).argmax()])
            if math.hypot(x, y) > _MIN_DISPLACEMENT * height:
                start = ((column + 0.5) * scale, (row + 0.5) * scale)
                _draw_arrow(draw, start, (x * scale * _ARROW_SCALE, y * scale * _ARROW_SCALE))
    return picture


def _draw_arrow(
    draw: ImageDraw.ImageDraw, start: tuple[float, float], vector: tuple[float, float]
) -> None:
    """An arrow with a dark outline, visible on any background."""
    angle = math.atan2(vector[1], vector[0])
    tip = (start[0] + vector[0], start[1] + vector[1])
    head = min(7.0, math.hypot(*vector))
    barbs = [
        (tip[0] - head * math.cos(angle + turn), tip[1] - head * math.sin(angle + turn))
        for turn in (-0.5, 0.5)
    ]
    red, green, blue = colorsys.hsv_to_rgb(angle / math.tau % 1, 0.75, 1)
    colour = (round(255 * red), round(255 * green), round(255 * blue))
    for fill, line in (((0, 0, 0), 4), (colour, 2)):
        draw.line([start, tip], fill, line)
        draw.line([barbs[0], tip, barbs[1]], fill, line)


def with_heat(picture: Image.Image, level: NDArray[np.float32]) -> Image.Image:
    """The frame in grey under the heat map of `level` (h, w) in [0, 1]."""
    positions = np.linspace(0, 1, len(_COLOUR_MAP))
    fine = Image.fromarray(np.ascontiguousarray(level, np.float32)).resize(
        picture.size, Image.Resampling.BICUBIC
    )
    smooth = np.clip(np.asarray(fine), 0, 1)
    heat = np.stack([np.interp(smooth, positions, channel) for channel in _COLOUR_MAP.T], axis=-1)
    grey = picture.convert("L").convert("RGB")
    return Image.blend(grey, Image.fromarray(heat.astype(np.uint8)), _HEAT_OPACITY)
