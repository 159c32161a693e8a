"""Metrics move the right way on damaged clips: the benchmark on a few of them."""

from __future__ import annotations

import runpy

import pytest

from helpers.program import ROOT

FLOW, DEGREE, WARP = (
    f"{name} (Lucas-Kanade)" for name in ("flow score", "dynamic degree", "warp error")
)
FLICKER, SCORE = "temporal flickering", "sprite score"

Values = dict[str, dict[str, float]]


@pytest.fixture(scope="module")
def values() -> Values:
    """By version and metric; the three clips spin, circle and move slowly down left."""
    return runpy.run_path(str(ROOT / "benchmarks/metric_directions.py"))["measure_versions"](3)


def test_frozen_frames_do_not_move(values: Values) -> None:
    frozen = values["frozen"]
    assert (frozen[FLOW], frozen[DEGREE], frozen[WARP], frozen[FLICKER]) == (0, 0, 0, 100)


def test_shuffled_frames_move_more_and_less_smoothly(values: Values) -> None:
    real, shuffled = values["real"], values["shuffled"]
    assert shuffled[FLOW] > 1.5 * real[FLOW]
    assert shuffled[WARP] > 2 * real[WARP]
    assert shuffled[FLICKER] < real[FLICKER]


def test_reversed_frames_move_as_much(values: Values) -> None:
    real, reverse = values["real"], values["reversed"]
    assert reverse[FLICKER] == pytest.approx(real[FLICKER])
    assert reverse[FLOW] == pytest.approx(real[FLOW], rel=0.1)
    assert reverse[WARP] == pytest.approx(real[WARP], rel=0.5)


def test_half_the_speed_is_half_the_flow(values: Values) -> None:
    assert values["half speed"][FLOW] == pytest.approx(values["real"][FLOW] / 2, rel=0.25)
    assert values["half speed"][FLICKER] > values["real"][FLICKER]


def test_blur_does_not_stop_motion(values: Values) -> None:
    real, blurred = values["real"], values["blurred"]
    assert blurred[FLOW] == pytest.approx(real[FLOW], rel=0.2)
    assert blurred[FLICKER] > real[FLICKER]  # it softens all differences


def test_the_sprite_score_alone_knows_what_was_asked_for(values: Values) -> None:
    assert values["real"][SCORE] == 100
    for version in ("shuffled", "frozen", "reversed", "wrong caption"):
        assert values[version][SCORE] == 0, version
    same = [name for name in values["real"] if name != SCORE]
    assert all(values["wrong caption"][name] == values["real"][name] for name in same)
