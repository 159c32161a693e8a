"""VideoMAE as a feature extractor for FVD."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from demo_t2v.checkpoints.resolve import quieten_libraries
from demo_t2v.core.atomic_io import digest
from demo_t2v.core.devices import process_device
from demo_t2v.core.weight_files import find_weight_file
from demo_t2v.evaluation.errors import EvaluationError
from demo_t2v.evaluation.features.extractor import Features
from demo_t2v.model_folder import load_network, network_files

WEIGHTS: Final = (
    "a VideoMAE model of transformers, such as MCG-NJU/videomae-base-finetuned-ssv2 "
    "(https://huggingface.co/MCG-NJU)"
)
"""What it takes, and where it comes from."""
IMAGENET: Final = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
"""The normalization of models that state none."""


class VideoMAE:
    """What VideoMAE's classifier gets of a video, (1, D) (arXiv 2203.12602, 2404.12391).

    A model without a classifier gives the mean of its last states. Frames are scaled to the model's
    size without cropping, as CD-FVD does, and normalized as its preprocessor_config.json says.
    """

    name = "VideoMAE"

    def __init__(self, source: str | Path, device: str | None = None) -> None:
        """Load a folder or a hub repository on `device`; None: the accelerator, or the CPU.

        Raises EvaluationError for another model, ModelError for missing weights, ConnectionError if
        the hub does not answer.
        """
        folder = _find(source)
        self._device = device or process_device()
        self._network = _load(folder).to(self._device).eval()
        self._size = self._network.config.image_size
        self._normalization = _normalization(folder / "preprocessor_config.json")
        self.sha256 = " ".join(digest(file) for file in network_files(folder))

    @property
    def preprocessing(self) -> Mapping[str, Any]:
        size = f"{self._size}x{self._size}"
        return {"resize": f"{size}, bilinear, without antialiasing", **self._normalization}

    def __call__(self, frames: NDArray[np.uint8]) -> Features:
        """frames (F, H, W, 3) -> (1, D). Raises EvaluationError unless F is the model's."""
        length = self._network.config.num_frames
        if len(frames) != length:
            raise EvaluationError(
                f"has {len(frames)} frames, VideoMAE takes {length}: give --frames {length}, --fps "
                "and --resolution"
            )
        pixels = torch.from_numpy(np.ascontiguousarray(frames)).to(self._device).movedim(-1, 1)
        size = (self._size, self._size)
        pixels = F.interpolate(pixels.float() / 255, size, mode="bilinear", align_corners=False)
        mean, std = (pixels.new_tensor(v)[:, None, None] for v in self._normalization.values())
        with torch.no_grad():
            output = self._network(((pixels - mean) / std)[None])
        pooled = output.logits if "logits" in output else output.last_hidden_state.mean(dim=1)
        features: Features = pooled.cpu().numpy()
        return features


def _find(source: str | Path) -> Path:
    """The folder of the model, downloaded from the hub if it is no folder here."""
    if Path(source).is_dir():
        return Path(source)
    with suppress(EvaluationError):  # a repository may have none
        find_weight_file(source, "preprocessor_config.json", "file", EvaluationError)
    find_weight_file(source, "config.json", "VideoMAE model", EvaluationError)
    return find_weight_file(source, "model.safetensors", "VideoMAE model", EvaluationError).parent


def _load(folder: Path) -> Any:
    """The network; the classifier of one that has a classifier is the identity."""
    from transformers import VideoMAEForVideoClassification, VideoMAEModel

    config = _read_json(folder / "config.json")
    if config.get("model_type") != "videomae":
        raise EvaluationError(f"{folder}: is no VideoMAE; this takes {WEIGHTS}")
    classifies = "VideoMAEForVideoClassification" in (config.get("architectures") or [])
    quieten_libraries()
    kind = VideoMAEForVideoClassification if classifies else VideoMAEModel
    network = load_network(kind, folder, dtype=torch.float32, use_safetensors=True)
    if classifies:
        network.classifier = nn.Identity()
    return network


def _normalization(file: Path) -> dict[str, list[float]]:
    """Mean and standard deviation of the colours in [0, 1]. Raises EvaluationError."""
    if not file.exists():
        return IMAGENET
    settings = _read_json(file)
    if not settings.get("do_normalize", True):
        return {"image_mean": [0.0, 0.0, 0.0], "image_std": [1.0, 1.0, 1.0]}
    return {name: list(settings.get(name, value)) for name, value in IMAGENET.items()}


def _read_json(file: Path) -> dict[str, Any]:
    try:
        tree: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise EvaluationError(f"{file}: is no JSON file that can be read") from None
    return tree
