"""Sample videos of a training, with the motion branch on and off, and measures of their motion."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray

from demo_t2v.data.video import gif_bytes
from demo_t2v.losses.optical_flow import lucas_kanade, video_flow
from demo_t2v.pipeline import DemoPipeline

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@dataclass(frozen=True)
class Preview:
    """One sample video."""

    name: str
    frames: NDArray[np.uint8]
    """(F, H, W, 3) RGB"""
    flow: float
    """Mean length of the optical flow between neighbouring frames, in pixels."""
    flicker: float
    """Mean absolute difference of neighbouring frames, in grey levels (0 to 255)."""


def make_previews(pipeline: DemoPipeline, prompts: Sequence[str], seed: int) -> Iterator[Preview]:
    """Each prompt's video with the motion branch and, where there is one, without it.

    The n-th prompt starts from the same noise, `seed` + n, in every call.
    """
    strengths = {"base": 0.0}
    if pipeline.motion_encoder is not None:
        strengths = {"motion": 1.0, **strengths}
    for number, prompt in enumerate(prompts):
        for name, strength in strengths.items():
            video: NDArray[np.float32] = pipeline(
                prompt,
                motion_strength=strength,
                generator=torch.Generator().manual_seed(seed + number),
            ).frames[0]  # type: ignore[assignment]
            yield _measure(f"{prompt}/{name}", video)


def _measure(name: str, video: NDArray[np.float32]) -> Preview:
    """`video` (F, H, W, 3) in [0, 1]; a single frame has neither flow nor flicker."""
    frames = np.rint(video * 255).clip(0, 255).astype(np.uint8)
    if len(video) < 2:
        return Preview(name, frames, 0.0, 0.0)
    clip = rearrange(torch.from_numpy(video), "f h w c -> 1 c f h w") * 2 - 1
    flow = video_flow(lucas_kanade, clip)  # (1, F-1, 2, H, W)
    flicker = np.abs(np.diff(video, axis=0)).mean() * 255
    return Preview(name, frames, flow.norm(dim=2).mean().item(), float(flicker))


def show_previews(writer: SummaryWriter, previews: Sequence[Preview], step: int, fps: int) -> None:
    """Write the videos to TensorBoard, as GIFs, and their figures as curves."""
    # torch's `add_video` silently does nothing without moviepy.
    from tensorboard.compat.proto.summary_pb2 import Summary

    for preview in previews:
        height, width = preview.frames.shape[1:3]
        picture = Summary.Image(
            height=height,
            width=width,
            colorspace=3,
            encoded_image_string=gif_bytes(preview.frames, fps),
        )
        video = Summary(value=[Summary.Value(tag=f"video/{preview.name}", image=picture)])
        writer._get_file_writer().add_summary(video, step)  # type: ignore[no-untyped-call]
        writer.add_scalar(f"flow/{preview.name}", preview.flow, step)
        writer.add_scalar(f"flicker/{preview.name}", preview.flicker, step)
    writer.flush()
