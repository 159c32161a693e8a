"""Videos of more frames than a network is trained for, by windows that overlap in time.

FreeNoise (arXiv 2310.15169) runs a network of N frames on F > N frames by two means:

- Noise rescheduling: the initial noise of the first N frames is repeated, shuffled within units of
  S frames. So all windows have nearly the same noise, and show the same content.
- Window-based attention fusion: temporal attention is computed in windows of N frames with a
  stride of S, and its outputs for a frame are averaged with weights that fall with the distance
  from the window's middle.

Here the predictions of the network are averaged, with the same weights, in place of the outputs
of attention, as in MultiDiffusion (arXiv 2302.08113) and Gen-L-Video (arXiv 2305.18264). So every
layer gets the N frames that it is trained for: temporal convolutions, group normalisation over
frames and an embedding of the frame's index too, which counts from 0 in each window. Activations
take the memory of one window, whatever F is. The network runs once more for each further window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from demo_t2v.diffusion.guidance import Denoiser


def split_windows(num_frames: int, window_frames: int, window_stride: int) -> list[slice]:
    """The frames of each window: at most `window_frames`, `window_stride` apart.

    The last window ends with the video, so that its stride may be shorter. A video of at most
    `window_frames` is one window. Raises ValueError for an empty window, and for a stride that
    leaves frames out.
    """
    if window_frames < 1:
        raise ValueError(f"window_frames {window_frames}: must be at least 1")
    if not 1 <= window_stride <= window_frames:
        raise ValueError(
            f"window_stride {window_stride}: must be at least 1, and at most the window's "
            f"{window_frames} frames"
        )
    last = max(0, num_frames - window_frames)
    starts = [*range(0, last, window_stride), last]
    return [slice(start, min(start + window_frames, num_frames)) for start in starts]


def window_weights(windows: Sequence[slice]) -> list[Tensor]:
    """The share of each window in the average of its frames: (N,) each.

    A window's weight rises by one a frame from its ends to its middle: 1, 2, 3, 2, 1. The shares
    are these weights divided by their sum over all windows of a frame.
    """
    weights = []
    for window in windows:
        index = torch.arange(1.0, window.stop - window.start + 1)
        weights.append(torch.minimum(index, index.flip(0)))
    total = torch.zeros(windows[-1].stop)
    for window, weight in zip(windows, weights, strict=True):
        total[window] += weight
    return [weight / total[window] for window, weight in zip(windows, weights, strict=True)]


def average_windows(parts: Sequence[Tensor], windows: Sequence[slice], dim: int) -> Tensor:
    """One tensor of all frames from one for each window, by `window_weights`.

    `dim` is the axis of the frames.
    """
    shape = list(parts[0].shape)
    shape[dim] = windows[-1].stop
    average = parts[0].new_zeros(shape)
    trailing = [1] * (len(shape) - 1 - dim)
    for part, window, weight in zip(parts, windows, window_weights(windows), strict=True):
        frames = average.narrow(dim, window.start, part.shape[dim])
        frames += part * weight.to(part).view(-1, *trailing)
    return average


def fuse_windows(denoiser_of: Callable[[slice], Denoiser], windows: Sequence[slice]) -> Denoiser:
    """The denoiser of all frames whose prediction is the weighted average over the windows.

    `denoiser_of(window)` is the denoiser of these frames; it is called for one window after
    another in each step.
    """

    def fused(latents: Tensor, timestep: Tensor) -> Tensor:
        parts = [denoiser_of(window)(latents[:, :, window], timestep) for window in windows]
        return average_windows(parts, windows, dim=2)

    return fused


def reschedule_noise(
    noise: Tensor,
    num_frames: int,
    window_stride: int,
    generator: torch.Generator | list[torch.Generator] | None = None,
) -> Tensor:
    """The initial noise of F frames from that of the first N: (B, C, N, H, W) -> (B, C, F, H, W).

    Each unit of `window_stride` frames behind the first N has the frames of the unit N frames
    before it, in an order drawn for each video. `generator` may be a list with one for each video.
    """
    window_frames = noise.shape[2]
    generators = generator if isinstance(generator, list) else [generator] * len(noise)
    orders = []
    for own in generators:
        device = own.device if own else None
        order = list(range(window_frames))
        for start in range(window_frames, num_frames, window_stride):
            unit = order[start - window_frames :][:window_stride]
            shuffled = torch.randperm(len(unit), generator=own, device=device).tolist()
            order += [unit[index] for index in shuffled]
        orders.append(torch.tensor(order[:num_frames], device=noise.device))
    return torch.stack([one[:, order] for one, order in zip(noise, orders, strict=True)])
