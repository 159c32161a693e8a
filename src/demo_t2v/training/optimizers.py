"""Optimizers, learning-rate schedules and the average of the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from demo_t2v.training.config import TrainConfig
from demo_t2v.training.muon import Muon


def rate_factor(config: TrainConfig, step: int) -> float:
    """The factor of the learning rates in a step: a pure function, without state.

    Every schedule rises over `warmup_steps`. `cosine` then falls to zero, `constant` does so over
    the last `decay_steps`. `one_cycle` rises from 1/25 and falls to 1/250,000 along cosines, as
    torch's OneCycleLR; with `lr_floor` it rises from there and falls back linearly.
    """
    warm, floor = config.warmup_steps, config.lr_floor
    if config.lr_schedule == "one_cycle" and floor is not None:
        distance = abs(step - warm) / max(1, warm)  # from the peak, in warm-ups
        return floor + (1 - floor) * max(0.0, 1 - distance)
    if config.lr_schedule == "one_cycle":
        first, peak, last = 0, max(0, warm - 1), max(1, config.num_steps - 1)
        if step <= peak:
            return _cosine(1 / 25, 1.0, (step - first) / max(1, peak - first))
        return _cosine(1.0, 1 / 250_000, (step - peak) / max(1, last - peak))
    if step < warm:
        return step / max(1, warm)
    if config.lr_schedule == "constant":
        decay = config.decay_steps
        return min(1.0, (config.num_steps - step) / decay) if decay else 1.0
    progress = (step - warm) / max(1, config.num_steps - warm)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))


def _cosine(start: float, end: float, fraction: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * fraction))


def make_optimizer(
    model: nn.Module, groups: list[dict[str, Any]], config: TrainConfig
) -> torch.optim.Optimizer:
    """AdamW, or Muon with AdamW for the embeddings, norms and biases of `model`."""
    if config.optimizer == "adamw":
        return torch.optim.AdamW(
            groups,
            lr=config.lr,
            weight_decay=config.weight_decay,
            betas=config.betas,
            eps=config.eps,
        )
    embeddings = [m.weight for m in model.modules() if isinstance(m, nn.Embedding)]
    others = {id(weight) for weight in embeddings}
    split = []
    for group in groups:
        for matrices in (True, False):
            chosen = [
                p for p in group["params"] if (p.ndim > 1 and id(p) not in others) == matrices
            ]
            split.append(group | {"params": chosen, "matrices": matrices})
    return Muon(split, config.lr, config.weight_decay, config.betas, config.eps)


def make_average(weights: Mapping[str, Tensor], config: TrainConfig) -> EMAModel | None:
    """An exponential moving average that starts from the weights; None without `ema_decay`."""
    if config.ema_decay is None:
        return None
    # foreach saves thousands of kernel launches on a GPU; on a CPU it rounds differently.
    on_gpu = all(weight.is_cuda for weight in weights.values())
    return EMAModel(
        weights.values(), decay=config.ema_decay, use_ema_warmup=True, power=0.75, foreach=on_gpu
    )
