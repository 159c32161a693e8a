"""The Frechet distance between two sets of features: exact, with an interval, and without bias.

The distance is the squared one of Gaussians with the means and covariances of the features (Dowson
& Landau, "The Frechet distance between multivariate normal distributions", 1982, eq. 4; arXiv
1706.08500, eq. 6):

    d = |m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((C1 C2)^(1/2)).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from demo_t2v.evaluation.features.rows import FeatureRows
from demo_t2v.evaluation.metrics.feature_sets import GROUPS, STUDENT, FeatureMetric
from demo_t2v.evaluation.metrics.metric import Better, Figure, TooFewVideosError

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """The mean (D,) of `count` vectors and the sum (D, D) of the products of their deviations."""

    count: int
    mean: Matrix
    scatter: Matrix

    @classmethod
    def of(cls, vectors: Matrix) -> Moments:
        """The moments of vectors (N, D)."""
        mean = vectors.mean(axis=0)
        return cls(len(vectors), mean, (vectors - mean).T @ (vectors - mean))

    @property
    def covariance(self) -> Matrix:
        """The covariance (D, D) with the divisor N - 1."""
        return self.scatter / (self.count - 1)

    def __add__(self, other: Moments) -> Moments:
        """The moments of both sets together (Chan, Golub & LeVeque, 1979, eq. 2.1)."""
        count, difference = self.count + other.count, other.mean - self.mean
        between = np.outer(difference, difference) * (self.count * other.count / count)
        mean = self.mean + difference * (other.count / count)
        return Moments(count, mean, self.scatter + other.scatter + between)

    def __sub__(self, part: Moments) -> Moments:
        """The moments of this set without a part of it."""
        count = self.count - part.count
        mean = (self.count * self.mean - part.count * part.mean) / count
        difference = part.mean - mean
        between = np.outer(difference, difference) * (count * part.count / self.count)
        return Moments(count, mean, self.scatter - part.scatter - between)


def frechet_distance(
    mean: Matrix, covariance: Matrix, other_mean: Matrix, other_covariance: Matrix
) -> float:
    """The distance between two Gaussians, from means (D,) and covariances (D, D).

    tr((C1 C2)^(1/2)) is the sum of the singular values of F1^T F2, where C = F F^T. This is exact
    for singular covariances too.
    """
    product = _factor(covariance).T @ _factor(other_covariance)
    root = np.linalg.svd(product, compute_uv=False).sum()
    difference = mean - other_mean
    traces = np.trace(covariance) + np.trace(other_covariance)
    return float(difference @ difference + traces - 2 * root)


def jackknife(value: float, left_out: Sequence[float]) -> tuple[tuple[float, float], float]:
    """The 95 % interval of a distance, and its extrapolation to infinitely many videos.

    `left_out` are the distances without one of GROUPS groups each (the delete-a-group jackknife).
    The interval is that of Student's t. A bootstrap does not suit the distance: videos that are
    drawn twice make it larger. The bias of the distance is proportional to 1 / N (arXiv 1911.07023,
    section 4). The extrapolation is the value at 1 / N = 0 of the line through the distance of all
    videos and the mean of `left_out`.
    """
    values = np.array(left_out)
    share = (len(values) - 1) / len(values)
    error = STUDENT * np.sqrt(share * np.square(values - values.mean()).sum())
    extrapolated = (value - share * values.mean()) / (1 - share)
    return (max(0.0, float(value - error)), float(value + error)), float(extrapolated)


class FrechetDistance(FeatureMetric):
    """The Frechet distance between the features of generated and of real videos.

    A sample is a vector of features: a frame or a video. Groups are of whole videos.
    """

    needs_real = True
    better: Better = "lower"

    def compute(self) -> Figure:
        """The distance, its interval and its extrapolation. Raises TooFewVideosError."""
        kinds = {"generated": self.sets.generated, "real": self.sets.real}
        notes = []
        for kind, rows in kinds.items():
            if len(rows) < 2:
                raise TooFewVideosError(f"{len(rows)} {kind} samples: a covariance takes 2 or more")
            if len(rows) <= rows.width:
                notes.append(
                    f"{len(rows)} {kind} samples, no more than the {rows.width} features: the "
                    "value is too high, and its extrapolation inexact"
                )
        generated, real = kinds.values()
        total = _moments(generated), _moments(real)
        value = _distance(*total)
        interval, extra = None, {"real videos": float(len(real.counts))}
        if min(len(generated.counts), len(real.counts)) < 2 * GROUPS:
            notes.append(f"no interval for fewer than {2 * GROUPS} videos")
        else:
            left_out = [
                _distance(total[0] - _moments(generated, some), total[1] - _moments(real, others))
                for some, others in zip(_groups(generated), _groups(real), strict=True)
            ]
            interval, extra["extrapolated to infinite N"] = jackknife(value, left_out)
        return Figure(value, interval, len(generated.counts), extra, notes)

    def depends_on(self) -> Mapping[str, Any]:
        """The features, and how covariance, interval and extrapolation are computed."""
        groups = f"{GROUPS} groups of videos"
        return {
            **self.sets.depends_on(),
            "covariance": "divisor N - 1, float64",
            "interval": f"delete-a-group jackknife, {groups}",
            "extrapolation": f"line over 1 / N of both sets, {groups}",
        }


def _groups(rows: FeatureRows) -> list[NDArray[np.int64]]:
    """The numbers of the videos in random groups; equal for sets of equal size."""
    return np.array_split(np.random.default_rng(0).permutation(len(rows.counts)), GROUPS)


def _moments(rows: FeatureRows, videos: Iterable[int] | None = None) -> Moments:
    """The moments of the given videos; None: of all."""
    numbers = range(len(rows.counts)) if videos is None else videos
    return reduce(Moments.__add__, map(Moments.of, rows.chunks(numbers)))


def _distance(one: Moments, other: Moments) -> float:
    return frechet_distance(one.mean, one.covariance, other.mean, other.covariance)


def _factor(covariance: Matrix) -> Matrix:
    """F (D, D) with F F^T = C."""
    values, vectors = np.linalg.eigh(covariance)
    factor: Matrix = vectors * np.sqrt(np.maximum(values, 0))
    return factor
