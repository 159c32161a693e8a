"""Preprocessing of images for CLIP's image tower.

transformers' `CLIPImageProcessor` differs by one grey level in up to 1 % of the values after
resizing, which would change cached embeddings, and its default class needs torchvision.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from torch.nn import functional as F

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImagePreprocessing:
    """Images are resized to `size` pixels a side, cropped to `crop_size` and normalised."""

    size: int
    crop_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def read(cls, folder: Path, side: int) -> ImagePreprocessing:
        """From the folder's `preprocessor_config.json`; without it `plain(side)`."""
        file = folder / "preprocessor_config.json"
        if not file.exists():
            _log.warning("%s: is missing; images are scaled to %d pixels and [-1, 1]", file, side)
            return cls.plain(side)
        saved = json.loads(file.read_text(encoding="utf-8"))
        size, crop_size = saved["size"], saved["crop_size"]
        return cls(
            size["shortest_edge"] if isinstance(size, dict) else size,
            crop_size["height"] if isinstance(crop_size, dict) else crop_size,
            tuple(saved["image_mean"]),
            tuple(saved["image_std"]),
        )

    @classmethod
    def plain(cls, side: int) -> ImagePreprocessing:
        """Resized to `side`, in [-1, 1]."""
        return cls(side, side, (0.5,) * 3, (0.5,) * 3)

    def save(self, folder: Path) -> None:
        """Write the folder's `preprocessor_config.json`, as transformers reads it."""
        content = {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": self.size},
            "crop_size": {"height": self.crop_size, "width": self.crop_size},
            "resample": 3,  # bicubic
            "image_mean": self.mean,
            "image_std": self.std,
        }
        file = folder / "preprocessor_config.json"
        file.write_text(json.dumps(content, indent=2), encoding="utf-8")

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 squares (N, 3, H, H) on the CPU -> float32 (N, 3, crop_size, crop_size)."""
        size = (self.size, self.size)
        if images.shape[2:] != size:
            images = F.interpolate(images, size, mode="bicubic", antialias=True)
        edge = (self.size - self.crop_size) // 2
        pixels = images[..., edge : edge + self.crop_size, edge : edge + self.crop_size] / 255
        mean, std = (pixels.new_tensor(v)[:, None, None] for v in (self.mean, self.std))
        return (pixels - mean) / std
