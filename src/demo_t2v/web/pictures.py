"""What the page draws: previews, optical flow over frames, attention over frames."""

from __future__ import annotations

import base64
import colorsys
import io
import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from demo_t2v.losses.optical_flow import lucas_kanade, video_flow

COLUMNS: Final = 6
"""Frames in a strip: as many as can still be told apart on a phone."""
_CELL: Final = 160  # pixels, the height of a frame in a strip
_GAP: Final = 4
_ARROWS: Final = 8  # along the shorter side of a frame
_STRETCH: Final = 3.0  # an arrow is so many times as long as the way from a frame to the next
_STILL: Final = 1 / 100  # of the frame's height: what moves less has no arrow
_RAMP: Final = np.array(
    [(0, 0, 8), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], np.float32
)  # dark to bright, in even steps
_HEAT: Final = 0.65  # how much of a frame its attention covers
_PREVIEW_SIDE: Final = 128

Frames = NDArray[np.uint8]
"""(F, H, W, 3) RGB."""


def columns(frames: int) -> list[int]:
    """Which of so many frames a strip shows: at most COLUMNS, evenly spread, rising."""
    return [round(place) for place in np.linspace(0, frames - 1, min(COLUMNS, frames))]


def preview(frames: Frames, fps: float) -> str:
    """The frames as a small GIF that loops, as a data URI."""
    height, width = frames.shape[1:3]
    scale = min(1.0, _PREVIEW_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    first, *others = (Image.fromarray(frame).resize(size) for frame in frames)
    stream = io.BytesIO()
    first.save(
        stream, "gif", save_all=True, append_images=others, duration=round(1000 / fps), loop=0
    )
    return f"data:image/gif;base64,{base64.b64encode(stream.getvalue()).decode()}"


def flow_strip(videos: Sequence[Frames]) -> Image.Image:
    """A row a video: its frames, and over them where everything is on its way to.

    Arrows point along the optical flow to the next frame, their colour says the direction.
    Videos need two frames or more.
    """
    rows = []
    for frames in videos:
        clip = rearrange(torch.from_numpy(frames), "f h w c -> 1 c f h w").float() / 127.5 - 1
        flow = video_flow(lucas_kanade, clip)[0].numpy()  # (F-1, 2, H, W)
        rows.append([_with_arrows(_cell(frames[i]), flow[i]) for i in columns(len(flow))])
    return _grid(rows)


def heat_strip(frames: Frames, attention: Sequence[NDArray[np.float32]]) -> Image.Image:
    """A row an attention (F, h, w): the frames, lit where they pay most of it in that row."""
    rows = []
    for maps in attention:
        span = float(np.ptp(maps))
        level = (maps - maps.min()) / span if span else np.zeros_like(maps)
        rows.append([_with_heat(_cell(frames[i]), level[i]) for i in columns(len(frames))])
    return _grid(rows)


def _cell(frame: NDArray[np.uint8]) -> Image.Image:
    height, width = frame.shape[:2]
    return Image.fromarray(frame).resize((max(1, round(_CELL * width / height)), _CELL))


def _with_arrows(picture: Image.Image, flow: NDArray[np.float32]) -> Image.Image:
    """`flow` (2, H, W) in pixels of the original frame, drawn over its enlarged picture."""
    height, width = flow.shape[1:]
    scale, apart = picture.height / height, max(1, min(height, width) // _ARROWS)
    draw = ImageDraw.Draw(picture)
    for row in range(apart // 2, height, apart):
        for column in range(apart // 2, width, apart):
            # A place stands for its neighbourhood, where what moves may be small.
            near = flow[:, row - apart // 2 : row + apart // 2 + 1][
                :, :, column - apart // 2 : column + apart // 2 + 1
            ].reshape(2, -1)
            x, y = (float(part) for part in near[:, np.hypot(*near).argmax()])
            if math.hypot(x, y) > _STILL * height:
                start = ((column + 0.5) * scale, (row + 0.5) * scale)
                _arrow(draw, start, (x * scale * _STRETCH, y * scale * _STRETCH))
    return picture


def _arrow(draw: ImageDraw.ImageDraw, start: tuple[float, float], way: tuple[float, float]) -> None:
    """An arrow with a dark rim, so that it shows on any ground."""
    angle = math.atan2(way[1], way[0])
    tip = (start[0] + way[0], start[1] + way[1])
    head = min(7.0, math.hypot(*way))
    barbs = [
        (tip[0] - head * math.cos(angle + turn), tip[1] - head * math.sin(angle + turn))
        for turn in (-0.5, 0.5)
    ]
    red, green, blue = colorsys.hsv_to_rgb(angle / math.tau % 1, 0.75, 1)
    colour = (round(255 * red), round(255 * green), round(255 * blue))
    for fill, line in (((0, 0, 0), 4), (colour, 2)):
        draw.line([start, tip], fill, line)
        draw.line([barbs[0], tip, barbs[1]], fill, line)


def _with_heat(picture: Image.Image, level: NDArray[np.float32]) -> Image.Image:
    """`level` (h, w) in [0, 1] as colours over a frame in grey."""
    places = np.linspace(0, 1, len(_RAMP))
    fine = Image.fromarray(np.ascontiguousarray(level, np.float32)).resize(
        picture.size, Image.Resampling.BICUBIC
    )
    smooth = np.clip(np.asarray(fine), 0, 1)
    heat = np.stack([np.interp(smooth, places, channel) for channel in _RAMP.T], axis=-1)
    grey = picture.convert("L").convert("RGB")
    return Image.blend(grey, Image.fromarray(heat.astype(np.uint8)), _HEAT)


def _grid(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Cells of one size, on nothing: the page shows between them in light and dark."""
    width, height = rows[0][0].size
    size = (
        max(len(row) for row in rows) * (width + _GAP) - _GAP,
        len(rows) * (height + _GAP) - _GAP,
    )
    sheet = Image.new("RGBA", size, (0, 0, 0, 0))
    for line, row in enumerate(rows):
        for place, cell in enumerate(row):
            sheet.paste(cell, (place * (width + _GAP), line * (height + _GAP)))
    return sheet
