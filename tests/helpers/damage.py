"""Damages saved models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor


def spoil(folder: Path, part: str, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors of one part of a saved model."""
    (file,) = (folder / part).glob("*.safetensors")
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
