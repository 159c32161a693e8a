"""The Inception Score."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from demo_t2v.evaluation.metrics.feature_sets import GROUPS, STUDENT, FeatureMetric, FeatureSets
from demo_t2v.evaluation.metrics.metric import Better, Figure, TooFewVideosError

SPLITS: Final = GROUPS
SEED: Final = 2020
"""That of torch-fidelity, whose splits these are for videos of one frame."""

Matrix = NDArray[np.float64]


def inception_score(logits: Iterable[Matrix]) -> float:
    """exp(mean over x of KL(p(y|x) || p(y))), from logits (N, C) in parts.

    It is between 1, for the same classes in each sample, and C (arXiv 1606.03498, section 4).
    """
    count, marginal, negative_entropy = 0, np.zeros(1), 0.0
    for part in logits:
        shifted = part - part.max(axis=1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        count += len(part)
        marginal = marginal + np.exp(log_p).sum(axis=0)
        negative_entropy += float((np.exp(log_p) * log_p).sum())
    mean = marginal / count
    # A class without any probability adds nothing: x log x goes to 0.
    entropy = -(mean * np.log(np.where(mean > 0, mean, 1))).sum()
    return float(np.exp(negative_entropy / count + entropy))


class InceptionScore(FeatureMetric):
    """The mean score of ten splits of the videos (arXiv 1606.03498).

    All frames of a video are in one split. The interval is that of Student's t over the splits.
    Published scores of UCF-101 use another network, C3D: they are not comparable.
    """

    name = "Inception Score"
    needs_real = False
    better: Better = "higher"

    def __init__(self, sets: FeatureSets, logits: Callable[[Matrix], Matrix]) -> None:
        """`logits` turns the features (N, D) of `sets` into logits (N, C)."""
        super().__init__(sets)
        self._logits = logits

    def compute(self) -> Figure:
        """The score and its interval. Raises TooFewVideosError for fewer videos than splits."""
        rows = self.sets.generated
        videos = len(rows.counts)
        if videos < SPLITS:
            raise TooFewVideosError(f"{videos} videos: {SPLITS} splits take {SPLITS} or more")
        order = np.random.RandomState(SEED).permutation(videos)
        bounds = [number * videos // SPLITS for number in range(SPLITS + 1)]
        scores = [
            inception_score(map(self._logits, rows.chunks(order[start:stop])))
            for start, stop in pairwise(bounds)
        ]
        mean = float(np.mean(scores))
        error = STUDENT * float(np.std(scores, ddof=1)) / SPLITS**0.5
        notes = []
        frames = len(rows) // SPLITS
        if frames < 1000:
            notes.append(f"{frames} frames in a split, fewer than classes: the value is too low")
        return Figure(mean, (max(1.0, mean - error), mean + error), videos, {}, notes)

    def depends_on(self) -> Mapping[str, Any]:
        """The network, the splits and what the interval is."""
        return {
            **self.sets.depends_on(),
            "splits": SPLITS,
            "interval": "Student's t over the splits",
        }
