"""The training objective of DEMO (arXiv 2410.24219), one function an equation.

Every loss is a scalar, the mean over the batch; eq. 10 is their weighted sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from demo_t2v.losses.optical_flow import FlowEstimator, resize, resize_flow, video_flow

STILL = 1e-2
"""Below this norm, in pixels over a whole clip, a flow counts as none and its cosine as zero."""
FLAT = 1e-4
"""Attention maps whose values span less than about this over a clip count as one colour."""


def diffusion(prediction: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Eq. 1 and 2: the mean squared error of the prediction; both (B, ...).

    Raises ValueError for shapes that differ.
    """
    _check_shapes("prediction", prediction, "target", target)
    return _mean((prediction - target).square(), weights)


def text_motion(
    maps: Sequence[Tensor], estimator: FlowEstimator, real_flow: Tensor, size: int = 32
) -> Tensor:
    """Eq. 3 to 5: minus the cosine between the flow of attention maps and that of the real clip.

    `maps` are the [eot] attention maps (B, h, w, F), one a motion transformer; maps of one
    resolution are averaged. Each average is spread over [-1, 1] (its least and greatest value
    in the clip) and, where its shorter side is less than `size`, enlarged bilinearly, for flow
    is meaningless on a handful of pixels. `real_flow` (B, F-1, 2, H, W) is brought to the same
    size, its values with it, and gets no gradient. The cosine is taken over all of a clip's space
    and time together, then averaged over resolutions and samples. A clip or a map that stands
    still has the cosine 0. Raises ValueError for maps and a flow that do not fit.
    """
    by_resolution: dict[tuple[int, ...], list[Tensor]] = {}
    for attention in maps:
        by_resolution.setdefault(attention.shape, []).append(attention)
    if not by_resolution:
        raise ValueError("no attention maps: the network has no motion transformers")
    cosines = [
        _flow_cosine(torch.stack(alike).mean(dim=0), estimator, real_flow, size)
        for alike in by_resolution.values()
    ]
    return -torch.stack(cosines).mean()


def regularization(motion: Tensor, image: Tensor) -> Tensor:
    """Eq. 6: minus the cosine between the motion encoder's [eot] state and a frame's embedding.

    motion (B, D), and image (B, D), CLIP's embedding of each clip's middle frame.
    Raises ValueError for shapes that differ.
    """
    _check_shapes("motion state", motion, "image embedding", image)
    return -F.cosine_similarity(motion, image, dim=1).mean()


def video_motion(predicted: Tensor, real: Tensor, space: Literal["x0", "eps"] = "x0") -> Tensor:
    """Eq. 7 to 9: the squared error of the differences between consecutive frames.

    predicted and real (B, C, F, H, W). In the space "x0", as in the paper, they are clean latents.
    In "eps", as in the published code, they are predicted and added noise, and the differences'
    absolute values are compared. Raises ValueError for shapes that differ or a single frame.
    """
    _check_shapes("predicted", predicted, "real", real)
    if real.shape[2] < 2:
        raise ValueError(f"a clip of {real.shape[2]} frames has no motion: it takes 2 or more")
    steps = [latents.diff(dim=2) for latents in (predicted, real)]
    if space == "eps":
        steps = [step.abs() for step in steps]
    return (steps[0] - steps[1]).square().mean()


def _flow_cosine(
    attention: Tensor, estimator: FlowEstimator, real_flow: Tensor, size: int
) -> Tensor:
    """The mean cosine of one resolution's attention (B, h, w, F) with the real flow."""
    samples, height, width, frames = attention.shape
    if real_flow.shape[:2] != (samples, frames - 1):
        raise ValueError(
            f"attention maps of {samples} clips of {frames} frames and a real flow of "
            f"{real_flow.shape[0]} clips of {real_flow.shape[1] + 1}: both should be the same"
        )
    enlarged = max(1.0, size / min(height, width))
    shape = (round(height * enlarged), round(width * enlarged))
    video = resize(rearrange(_spread(attention), "b h w f -> b f h w"), shape)[:, None]
    seen = video_flow(estimator, video).flatten(1)  # (B, (F-1)*2*H*W)
    real = resize_flow(rearrange(real_flow.detach(), "b f d h w -> (b f) d h w"), shape)
    real = rearrange(real, "(b f) d h w -> b (f d h w)", b=samples)
    return F.cosine_similarity(seen, real, dim=1, eps=STILL).mean()


def _spread(attention: Tensor) -> Tensor:
    """Each sample's values (B, ...) stretched from what they span over [-1, 1]."""
    samples = attention.float().flatten(1)
    least, greatest = samples.amin(1, keepdim=True), samples.amax(1, keepdim=True)
    spread = (2 * samples - least - greatest) / (greatest - least + FLAT)
    return spread.view_as(attention)


def _mean(errors: Tensor, weights: Tensor | None) -> Tensor:
    """errors (B, ...) -> the mean over everything, of each sample times its weight (B,)."""
    samples = errors.flatten(1).mean(dim=1)
    return samples.mean() if weights is None else (weights * samples).mean()


def _check_shapes(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if tensor.shape != other.shape:
        raise ValueError(
            f"{name} of shape {tuple(tensor.shape)}: should be that of {other_name}, "
            f"{tuple(other.shape)}"
        )
