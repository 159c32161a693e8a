"""What a feature extractor is: a network that turns a video's frames into vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float32]
"""Feature vectors (N, D), one for each frame or one for the whole video."""


class Extractor(Protocol):
    """Frames uint8 RGB (F, H, W, 3) -> features (N, D)."""

    @property
    def name(self) -> str:
        """The network's name in results."""

    @property
    def sha256(self) -> str:
        """The hash of its file of weights."""

    @property
    def preprocessing(self) -> Mapping[str, Any]:
        """What is done with the frames before the network, as JSON values."""

    def __call__(self, frames: NDArray[np.uint8], /) -> Features:
        """The features. Raises EvaluationError for frames that the network does not take."""
