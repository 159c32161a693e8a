"""Whether two models differ: tests of values that are paired, video by video."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, sqrt
from typing import Final

import numpy as np
from numpy.typing import NDArray

from demo_t2v.evaluation.metrics.metric import mean_interval

MCNEMAR: Final = "McNemar, exact"
SIGN_FLIPS: Final = "sign flips"
FLIPS: Final = 10_000
"""Random flips; all 2^n are made where there are fewer."""
_CHUNK: Final = 500  # flips in memory
_NORMAL: Final = 1.959964  # 97.5 % quantile of the normal distribution

Values = NDArray[np.float64]


@dataclass(frozen=True)
class PairedTest:
    """The mean difference of `count` pairs, the first value minus the second one.

    `p` is two-sided. `interval` holds 95 %, without a correction for several tests; None for one
    pair, and where all pairs are equal.
    """

    difference: float
    interval: tuple[float, float] | None
    p: float
    count: int
    method: str


def paired_test(first: Sequence[float], second: Sequence[float]) -> PairedTest:
    """The test of values (N,) and (N,), N at least 1, whose places belong together.

    Values that are 0 and 1, or 0 and 100, say that a video is wrong or right: McNemar's exact test
    (1947). The interval of their difference is that of Agresti & Min (2005), which adds half a
    video to each cell of the table. Other values: the permutation test that flips the signs of the
    differences (Fisher, 1935), of the mean, with a bootstrap interval (Efron, 1979). It needs no
    distribution: if the models do not differ, each difference is as likely with either sign.
    """
    one, other = np.array(first, dtype=np.float64), np.array(second, dtype=np.float64)
    difference = one - other
    interval: tuple[float, float] | None = None
    if np.unique(np.concatenate([one, other])).tolist() in ([0, 1], [0, 100]):
        only_one, only_other = int((difference > 0).sum()), int((difference < 0).sum())
        right = max(one.max(), other.max())
        low, high = _agresti_min(only_one, only_other, len(one))
        interval, p, method = (right * low, right * high), mcnemar(only_one, only_other), MCNEMAR
    else:
        if difference.any():
            interval = mean_interval(difference)
        p, method = sign_flips(difference), SIGN_FLIPS
    return PairedTest(float(difference.mean()), interval, p, len(one), method)


def mcnemar(only_first: int, only_second: int) -> float:
    """The two-sided exact p of McNemar's test: numbers of videos that one model alone has right."""
    total, less = only_first + only_second, min(only_first, only_second)
    tail = sum(comb(total, number) for number in range(less + 1))
    return min(1.0, float(2 * tail / 2**total))


def sign_flips(differences: Values) -> float:
    """The two-sided p of the mean of `differences` (N,) under flips of their signs.

    All flips are made where there are at most FLIPS. Otherwise FLIPS random ones are, the same in
    each call, and the differences themselves count as one more (Phipson & Smyth, 2010).
    """
    nonzero = differences[differences != 0]
    rounding = 1e-9 * np.abs(nonzero).sum()
    observed = abs(nonzero.sum()) - rounding  # equal sums may differ by it
    if 2 ** len(nonzero) <= FLIPS:
        bits = np.arange(2 ** len(nonzero))[:, None] >> np.arange(len(nonzero)) & 1
        return float((np.abs((1 - 2 * bits) @ nonzero) >= observed).mean())
    rng, extreme = np.random.default_rng(0), 0
    for _ in range(FLIPS // _CHUNK):
        signs = rng.integers(2, size=(_CHUNK, len(nonzero)), dtype=np.int8) * 2 - 1
        extreme += int((np.abs(signs @ nonzero) >= observed).sum())
    return (extreme + 1) / (FLIPS + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values of several tests, adjusted: at most 5 % risk of any false one below 0.05.

    (Holm, "A simple sequentially rejective multiple test procedure", 1979.)
    """
    values = np.array(p_values)
    order = np.argsort(values, kind="stable")
    factors = np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(values[order] * factors))
    return [float(value) for value in adjusted]


def _agresti_min(only_first: int, only_second: int, count: int) -> tuple[float, float]:
    """The 95 % interval of the difference of two shares, in [-1, 1]."""
    total = count + 2
    centre = (only_first - only_second) / total
    width = _NORMAL * sqrt((only_first + only_second + 1) / total - centre**2) / sqrt(total)
    return max(-1.0, centre - width), min(1.0, centre + width)
