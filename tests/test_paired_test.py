"""Tests of values paired by video: hand-computed p values, intervals that cover."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from demo_t2v.evaluation.comparison.paired_test import (
    MCNEMAR,
    SIGN_FLIPS,
    holm,
    mcnemar,
    paired_test,
    sign_flips,
)


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [
        (8, 2, 2 * (1 + 10 + 45) / 1024),  # 2 P(at most 2 of 10 heads)
        (2, 8, 2 * (1 + 10 + 45) / 1024),
        (6, 0, 2 / 64),
        (3, 3, 1),
        (0, 0, 1),
    ],
)
def test_mcnemar_is_the_binomial_test_of_the_videos_that_differ(only_first, only_second, p):
    assert mcnemar(only_first, only_second) == pytest.approx(p)


def test_right_and_wrong_videos_are_tested_by_mcnemar():
    first = [100] * 8 + [0] * 2 + [100] * 5 + [0] * 5
    second = [0] * 8 + [100] * 2 + [100] * 5 + [0] * 5
    test = paired_test(first, second)
    assert (test.method, test.count, test.difference) == (MCNEMAR, 20, 30)
    assert test.p == pytest.approx(0.109375)
    # Agresti & Min: 6 / 22 -+ 1.96 sqrt((11 / 22 - (6 / 22)^2) / 22)
    assert test.interval == pytest.approx((0.011, 54.534), abs=0.01)


def test_models_that_are_right_in_the_same_videos_may_still_differ_a_little():
    test = paired_test([1] * 17 + [0], [1] * 17 + [0])
    assert (test.method, test.difference, test.p) == (MCNEMAR, 0, 1)
    # 1.96 sqrt((1 / 20) / 20)
    assert test.interval == pytest.approx((-0.098, 0.098), abs=0.0001)


def test_equal_values_have_no_interval():
    test = paired_test([100, 100, 100], [100, 100, 100])
    assert (test.difference, test.p, test.interval) == (0, 1, None)


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1, 2, 3], 2 / 8),  # +++ and ---
        ([1, 2, 3, 0, 0], 2 / 8),  # a zero has no sign
        ([3, 1, -1], 6 / 8),  # sums 5 3 3 1 -1 -3 -3 -5, observed 3
        ([0, 0], 1),
        ([0.1, 0.2, 0.3, -0.6], 1),  # the sum is 0 but for rounding
    ],
)
def test_all_signs_are_flipped_where_there_are_few(differences, p):
    assert sign_flips(np.array(differences, float)) == pytest.approx(p)


def test_random_flips_agree_with_all_flips():
    differences = np.random.default_rng(3).normal(0.4, 1, 15)
    signs = np.array(list(product((-1, 1), repeat=15)))
    exact = (np.abs(signs @ differences) >= abs(differences.sum()) - 1e-9).mean()
    assert sign_flips(differences) == pytest.approx(exact, abs=0.015)
    assert sign_flips(differences) == sign_flips(differences)


def test_intervals_hold_the_true_difference_and_equal_models_seldom_differ():
    rng = np.random.default_rng(0)
    covered, significant = [], []
    for _ in range(60):
        video = rng.normal(5, 3, 30)  # what both models share
        one, other = video + rng.normal(1, 1, 30), video + rng.normal(0, 1, 30)
        low, high = paired_test(one, other).interval
        covered.append(low <= 1 <= high)
        significant.append(sign_flips(rng.normal(0, 1, 8)) < 0.05)
    assert 0.87 <= np.mean(covered) <= 1
    assert np.mean(significant) <= 0.1


def test_intervals_of_shares_hold_the_true_difference():
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(400):
        one, other = 100 * (rng.random(60) < 0.8), 100 * (rng.random(60) < 0.7)
        low, high = paired_test(one, other).interval
        covered.append(low <= 10 <= high)
    assert 0.92 <= np.mean(covered) <= 0.99


def test_the_models_may_change_places():
    rng = np.random.default_rng(1)
    one, other = rng.normal(0, 1, 30), rng.normal(0.5, 1, 30)
    test, back = paired_test(one, other), paired_test(other, one)
    assert test.method == SIGN_FLIPS
    assert (back.difference, back.p) == (pytest.approx(-test.difference), test.p)
    assert back.interval == pytest.approx((-test.interval[1], -test.interval[0]), abs=0.05)


def test_one_pair_shows_nothing():
    test = paired_test([1.5], [0.5])
    assert (test.p, test.interval) == (1, None)


def test_holm_multiplies_the_smallest_p_by_the_number_of_tests():
    # Sorted 0.01 0.03 0.04, times 3 2 1: 0.03 0.06 0.04, which may not fall.
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []
