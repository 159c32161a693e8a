"""The losses of DEMO (arXiv 2410.24219); eq. 10 is their weighted sum.

Each function returns a scalar, the mean over the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from demo_t2v.losses.optical_flow import FlowEstimator, resize, resize_flow, video_flow

MIN_FLOW_NORM: Final = 1e-2
"""Smallest norm of a clip's flow, in pixels: below it the cosine goes to zero."""
MIN_SPAN: Final = 1e-4
"""Smallest range of a clip's attention maps: below it they are not spread over [-1, 1]."""


def diffusion(prediction: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Diffusion loss, eq. 1 and 2: the mean squared error of the prediction.

    prediction and target (B, ...), weights (B,) of the samples (None: all 1).
    Raises ValueError for shapes that differ.
    """
    _check_shapes("prediction", prediction, "target", target)
    return _mean((prediction - target).square(), weights)


def text_motion(
    maps: Sequence[Tensor], estimator: FlowEstimator, real_flow: Tensor, size: int = 32
) -> Tensor:
    """Text-motion loss, eq. 3 to 5: minus the cosine of the maps' flow and the real clip's flow.

    `maps` are the [eot] attention maps (B, h, w, F), one for each motion transformer. Maps of one
    resolution are averaged. The values of each clip are spread over [-1, 1], and maps whose
    shorter side is less than `size` are enlarged bilinearly, since flow over a few pixels is
    meaningless. `real_flow` (B, F-1, 2, H, W) is resized to the same size and has no gradient. The
    cosine is computed over space and time of a clip together, then averaged over resolutions and
    samples. It is 0 for a clip or a map without motion. Raises ValueError for no maps, and for
    maps and a flow of different clips.
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
    """Regularization loss, eq. 6: minus the cosine of the motion encoder's state and an image's.

    motion (B, D), the state of [eot], and image (B, D), the CLIP embedding of each clip's middle
    frame. Raises ValueError for shapes that differ.
    """
    _check_shapes("motion state", motion, "image embedding", image)
    return -F.cosine_similarity(motion, image, dim=1).mean()


def video_motion(predicted: Tensor, real: Tensor, space: Literal["x0", "eps"] = "x0") -> Tensor:
    """Video-motion loss, eq. 7 to 9: the squared error of differences of consecutive frames.

    predicted and real (B, C, F, H, W). In the space "x0", as in the paper, they are clean latents.
    In "eps", as in the released code, they are the predicted and the added noise, and absolute
    values of the differences are compared. Raises ValueError for shapes that differ or for a
    single frame.
    """
    _check_shapes("predicted", predicted, "real", real)
    if real.shape[2] < 2:
        raise ValueError(f"a clip of {real.shape[2]} frames has no motion: it takes 2 or more")
    differences = [latents.diff(dim=2) for latents in (predicted, real)]
    if space == "eps":
        differences = [difference.abs() for difference in differences]
    return (differences[0] - differences[1]).square().mean()


def _flow_cosine(
    attention: Tensor, estimator: FlowEstimator, real_flow: Tensor, size: int
) -> Tensor:
    """The mean cosine of the flow of attention maps (B, h, w, F) and the real flow (eq. 4, 5)."""
    samples, height, width, frames = attention.shape
    if real_flow.shape[:2] != (samples, frames - 1):
        raise ValueError(
            f"attention maps of {samples} clips of {frames} frames and a real flow of "
            f"{real_flow.shape[0]} clips of {real_flow.shape[1] + 1}: must be the same"
        )
    scale = max(1.0, size / min(height, width))
    shape = (round(height * scale), round(width * scale))
    video = resize(rearrange(_spread(attention), "b h w f -> b f h w"), shape)[:, None]
    attention_flow = video_flow(estimator, video).flatten(1)  # (B, (F-1)*2*H*W)
    real = resize_flow(rearrange(real_flow.detach(), "b f d h w -> (b f) d h w"), shape)
    real = rearrange(real, "(b f) d h w -> b (f d h w)", b=samples)
    return F.cosine_similarity(attention_flow, real, dim=1, eps=MIN_FLOW_NORM).mean()


def _spread(attention: Tensor) -> Tensor:
    """Each sample's values (B, ...) scaled linearly, so that they span [-1, 1]."""
    samples = attention.float().flatten(1)
    least, greatest = samples.amin(1, keepdim=True), samples.amax(1, keepdim=True)
    spread = (2 * samples - least - greatest) / (greatest - least + MIN_SPAN)
    return spread.view_as(attention)


def _mean(errors: Tensor, weights: Tensor | None) -> Tensor:
    """The mean of errors (B, ...), where samples are multiplied by their weights (B,)."""
    samples = errors.flatten(1).mean(dim=1)
    return samples.mean() if weights is None else (weights * samples).mean()


def _check_shapes(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if tensor.shape != other.shape:
        raise ValueError(
            f"{name} of shape {tuple(tensor.shape)}: should be that of {other_name}, "
            f"{tuple(other.shape)}"
        )
