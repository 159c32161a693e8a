"""I3D as FVD uses it: the TorchScript network of StyleGAN-V."""

from __future__ import annotations

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

WEIGHTS: Final = "i3d_torchscript.pt of StyleGAN-V (https://www.dropbox.com/s/ge9e5ujwgetktms/i3d_torchscript.pt)"
"""The file, and where it comes from."""


class I3D:
    """The 400 logits of a video (arXiv 1705.07750), trained on Kinetics-400.

    The file is a program: it scales the frames itself, and loading it runs its code. It equals the
    TensorFlow network of the first FVD (arXiv 1812.01717; StyleGAN-V, arXiv 2112.14683).
    """

    name = "I3D"
    preprocessing: Mapping[str, Any] = {
        "resize": "224x224 inside the TorchScript file",
        "range": "[-1, 1]",
    }

    def __init__(self, file: Path, device: str | None = None) -> None:
        """Load the network on `device`; None: the process's accelerator, or the CPU.

        Raises EvaluationError for a file that is no TorchScript.
        """
        self._file = file
        self._device = device or process_device()
        try:
            self.sha256 = digest(file)
            network = torch.jit.load(file, map_location=self._device)  # type: ignore[no-untyped-call]
            self._network = network.eval()
        except OSError as error:
            raise EvaluationError(f"{file}: cannot be read ({reason(error, file)})") from None
        except (RuntimeError, ValueError):
            raise EvaluationError(f"{file}: is no TorchScript file; this takes {WEIGHTS}") from None

    def __call__(self, frames: NDArray[np.uint8]) -> Features:
        """frames (F, H, W, 3) -> logits (1, 400). Raises EvaluationError if the network fails."""
        video = torch.from_numpy(np.ascontiguousarray(frames)).to(self._device)
        batch = video.movedim(-1, 0)[None].float()
        try:
            with torch.no_grad():
                output = self._network(batch, rescale=True, resize=True, return_features=True)
            features: Features = output.reshape(1, -1).cpu().numpy()
        except (RuntimeError, AttributeError, torch.jit.Error) as error:
            problem = str(error).strip().rpartition("\n")[2]
            size = f"{len(frames)} frames of {frames.shape[2]}x{frames.shape[1]}"
            raise EvaluationError(f"{self._file} does not take {size} ({problem})") from None
        return features
