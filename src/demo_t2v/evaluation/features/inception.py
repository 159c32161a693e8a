"""InceptionV3 as FID, KID and Inception Score use it: the network of torch-fidelity."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from demo_t2v.core.atomic_io import digest, reason
from demo_t2v.core.devices import process_device
from demo_t2v.evaluation.errors import EvaluationError
from demo_t2v.evaluation.features.extractor import Features

WEIGHTS: Final = (
    "weights-inception-2015-12-05-6726825d.pth of torch-fidelity "
    "(https://github.com/toshas/torch-fidelity/releases/tag/v0.2.0)"
)
"""The file, and where it comes from."""
BATCH: Final = 32
"""Frames in a forward pass."""


class InceptionV3:
    """The 2,048 features of the last pooling for each frame (arXiv 1512.00567, 1706.08500).

    torch-fidelity has the weights and the resizing of the TensorFlow network, with which published
    figures are made.
    """

    name = "InceptionV3"
    preprocessing: Mapping[str, Any] = {
        "resize": "299x299, bilinear as TensorFlow 1, without antialiasing",
        "range": "[-1, 1)",
    }

    def __init__(self, weights: Path, device: str | None = None) -> None:
        """Load the weights on `device`; None: the process's accelerator, or the CPU.

        Raises EvaluationError for a file that holds other things, and without torch-fidelity.
        """
        _check_weights(weights)
        self.sha256 = digest(weights)
        self._device = device or process_device()
        try:
            network = _network_class()(
                "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights)
            )
        except RuntimeError:
            raise EvaluationError(f"{weights}: has other weights; this takes {WEIGHTS}") from None
        self._network = network.to(self._device)

    def __call__(self, frames: NDArray[np.uint8]) -> Features:
        """frames (F, H, W, 3) -> features (F, 2048)."""
        pictures = torch.from_numpy(np.ascontiguousarray(frames)).movedim(-1, 1)
        with torch.no_grad():
            batches = [
                self._network(pictures[start : start + BATCH].to(self._device))[0].cpu()
                for start in range(0, len(pictures), BATCH)
            ]
        features: Features = torch.cat(batches).numpy()
        return features

    def logits(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """features (N, 2048) -> logits (N, 1008), without the bias, as the Inception Score has."""
        weight = self._network.fc.weight.detach().cpu().double().numpy()
        logits: NDArray[np.float64] = features @ weight.T
        return logits


def _network_class() -> Any:
    """torch-fidelity's class. Raises EvaluationError where it cannot be imported."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision for another torch
        problem = str(error).strip().partition("\n")[0]
        raise EvaluationError(
            "--inception: torch-fidelity cannot be imported; install it with "
            f"pip install 'demo-t2v[evaluation]' ({problem})"
        ) from None
    return FeatureExtractorInceptionV3


def _check_weights(file: Path) -> None:
    """Raise EvaluationError unless the file holds tensors alone.

    torch-fidelity loads it with pickle, which runs what else is in a file.
    """
    try:
        torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except OSError as error:
        raise EvaluationError(f"{file}: cannot be read ({reason(error, file)})") from None
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError):
        raise EvaluationError(f"{file}: holds no weights; this takes {WEIGHTS}") from None
