"""Weights and inputs generated from their names, as for the recorded tensors in data/."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

DATA = Path(__file__).parent.parent / "data"


def _normal(name: str, shape: Iterable[int]) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return rng.standard_normal(size=tuple(shape), dtype=np.float32)


def weight(key: str, shape: Iterable[int]) -> Tensor:
    """The parameter of this published name and shape."""
    shape = tuple(shape)
    values = _normal(key, shape)
    if len(shape) >= 2:
        values *= 1 / math.sqrt(math.prod(shape[1:]))
    elif key.endswith("weight"):
        values = 1 + np.float32(0.1) * values
    else:
        values *= 0.02
    return torch.from_numpy(values)


def manifest(keys_json: str) -> dict[str, tuple[int, ...]]:
    """Published names and shapes from a manifest in data/."""
    text = (DATA / keys_json).read_text(encoding="utf-8")
    return {key: tuple(shape) for key, shape in json.loads(text).items()}


def make_state(keys_json: str) -> dict[str, Tensor]:
    """A complete state dict in the published layout for a manifest in data/."""
    return {key: weight(key, shape) for key, shape in manifest(keys_json).items()}


def make_input(name: str, shape: Iterable[int]) -> Tensor:
    """The input called `name`."""
    return torch.from_numpy(_normal(name, shape))


def recorded(file: str) -> dict[str, Tensor]:
    """The recorded tensors of a file in data/."""
    return load_file(DATA / file)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """The norm of the difference over the norm of `expected`."""
    return ((actual - expected).norm() / expected.norm()).item()
