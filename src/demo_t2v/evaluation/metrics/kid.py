"""KID: the kernel inception distance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from demo_t2v.evaluation.metrics.feature_sets import FeatureMetric
from demo_t2v.evaluation.metrics.metric import Better, Figure, TooFewVideosError

SUBSETS: Final = 100
"""Pairs of random subsets."""
SUBSET_SIZE: Final = 1000
"""Frames of a subset: the number of published figures."""
SEED: Final = 2020
"""That of torch-fidelity, whose subsets these are for sets of 2,000 frames or more."""

Matrix = NDArray[np.float64]


def polynomial_mmd(some: Matrix, others: Matrix) -> float:
    """The unbiased squared maximum mean discrepancy of vectors (N, D) and (M, D).

    The kernel is (x . y / D + 1)^3 (arXiv 1801.01401, eq. 4 and section 4).
    """
    mean = _kernel(some, others).mean()
    return float(_mean_of_pairs(some) + _mean_of_pairs(others) - 2 * mean)


class KernelInceptionDistance(FeatureMetric):
    """The mean MMD of random subsets of frames, generated and real (arXiv 1801.01401).

    Its expected value depends on no number of videos. It can be below 0. The interval holds 95 % of
    the values of the subsets. A subset has at most half of the frames: values of halves vary as
    much as the value of the complete set (Shao & Tu, "The Jackknife and Bootstrap", 1995).
    """

    name = "KID"
    needs_real = True
    better: Better = "lower"

    def compute(self) -> Figure:
        """The mean of the subsets. Raises TooFewVideosError for fewer than 4 frames."""
        generated, real = self.sets.generated, self.sets.real
        least = min(len(generated), len(real))
        if least < 4:
            raise TooFewVideosError(f"{least} frames of a kind: two halves take 4 or more")
        size = min(SUBSET_SIZE, least // 2)
        rng = np.random.RandomState(SEED)
        values = []
        for _ in range(SUBSETS):
            some = generated.take(rng.choice(len(generated), size, replace=False))
            others = real.take(rng.choice(len(real), size, replace=False))
            values.append(polynomial_mmd(some, others))
        low, high = np.percentile(values, (2.5, 97.5))
        extra = {"real videos": float(len(real.counts)), "frames of a subset": float(size)}
        interval = float(low), float(high)
        return Figure(float(np.mean(values)), interval, len(generated.counts), extra)

    def depends_on(self) -> Mapping[str, Any]:
        """The features, the kernel, the subsets and what the interval is."""
        return {
            **self.sets.depends_on(),
            "kernel": "(x . y / D + 1)^3",
            "subsets": SUBSETS,
            "interval": "95 % of the subsets",
        }


def _kernel(some: Matrix, others: Matrix) -> Matrix:
    kernel: Matrix = (some @ others.T / some.shape[1] + 1) ** 3
    return kernel


def _mean_of_pairs(vectors: Matrix) -> float:
    """The mean of the kernel over all pairs of different vectors."""
    count = len(vectors)
    kernel = _kernel(vectors, vectors)
    return float((kernel.sum() - kernel.trace()) / (count * (count - 1)))
