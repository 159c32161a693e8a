"""Features on disk: the memory does not grow with the number of videos."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Final

import numpy as np
from numpy.typing import NDArray

from demo_t2v.evaluation.errors import EvaluationError
from demo_t2v.evaluation.features.extractor import Features

CHUNK: Final = 1024
"""Rows that are read at once."""


class FeatureRows:
    """Feature vectors (N, D) of V videos, in a temporary file without a name."""

    def __init__(self) -> None:
        self.width = 0
        """D; 0 before the first video."""
        self.counts: list[int] = []
        """How many rows each video has."""
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as this)

    def __len__(self) -> int:
        return sum(self.counts)

    def append(self, features: Features) -> None:
        """Add a video's rows (n, D). Raises EvaluationError for another D, or for no numbers."""
        count, width = features.shape
        if self.width not in (0, width):
            raise EvaluationError(f"has features of width {width}, the videos before {self.width}")
        if not np.isfinite(features).all():
            raise EvaluationError("has features that are no finite numbers")
        self.width = width
        self._file.seek(0, 2)
        self._file.write(np.ascontiguousarray(features, np.float32).tobytes())
        self.counts.append(count)

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float64]:
        """The rows of the given numbers, (len(indices), D)."""
        rows = np.empty((len(indices), self.width), np.float32)
        for row, index in zip(rows, indices, strict=True):
            self._file.seek(int(index) * row.nbytes)
            self._file.readinto(row.data)
        return rows.astype(np.float64)

    def chunks(self, videos: Iterable[int]) -> Iterator[NDArray[np.float64]]:
        """The rows of the videos of the given numbers, at most CHUNK rows at a time."""
        starts = [0, *accumulate(self.counts)]
        pending: list[int] = []
        for video in videos:
            pending += range(starts[video], starts[video + 1])
            while len(pending) >= CHUNK:
                yield self.take(pending[:CHUNK])
                del pending[:CHUNK]
        if pending:
            yield self.take(pending)
