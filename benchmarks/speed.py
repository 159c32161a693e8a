"""How well a video's speed is the one that `speed` asks for.

    python benchmarks/speed.py                        20 videos at each of 6 speeds, two tables
    python benchmarks/speed.py --videos 4 --speeds 3

Speeds are spread over the calibrated range: pixels a frame for things that move across, and
factors for other motions, relative to the same video without `speed`. Speeds are measured on the
path that the sprite score finds, in all videos, recognized or not. Intervals are 95 %.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from demo_t2v.checkpoints.resolve import resolve
from demo_t2v.conditioning.speed import SpeedCalibration
from demo_t2v.config import InferenceConfig
from demo_t2v.core.atomic_io import atomic_write
from demo_t2v.evaluation.report import Proportion
from demo_t2v.evaluation.sprites.speed import (
    ACROSS,
    OTHERS,
    SpeedMeasurement,
    draw_cases,
    measure_all,
)
from demo_t2v.inference.runner import Runner

Floats = NDArray[np.float64]


def ranks(values: Floats) -> Floats:
    """Ranks; equal values have their mean rank."""
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[index])


def spearman(requested: Floats, measured: Floats) -> float:
    return float(np.corrcoef(ranks(requested), ranks(measured))[0, 1])


def median_error(requested: Floats, measured: Floats) -> float:
    return float(np.median(np.abs(measured / requested - 1)))


def with_interval(
    figure: Callable[[Floats, Floats], float], requested: Floats, measured: Floats
) -> str:
    """The figure and its interval, by 1,000 bootstrap samples of the videos."""
    rng = np.random.default_rng(0)
    samples = [rng.integers(len(requested), size=len(requested)) for _ in range(1000)]
    low, high = np.nanpercentile([figure(requested[s], measured[s]) for s in samples], (2.5, 97.5))
    return f"{figure(requested, measured):.3f} ({low:.3f} to {high:.3f})"


def count_content(results: Sequence[SpeedMeasurement]) -> str:
    return str(Proportion(sum(one.content for one in results), len(results)))


def measure_speeds(
    runner: Runner, calibration: SpeedCalibration, unit: str, options: argparse.Namespace
) -> dict[str, object]:
    """The figures of one unit: `px` for things that move across, `x` for other motions."""
    side, fps = runner.config.height, runner.config.fps
    assert side
    across = unit == "px"
    curve, scale = (calibration.sides_per_frame, side) if across else (calibration.factors, 1)
    speeds = np.linspace(curve[0] * scale, curve[-1] * scale, options.speeds)
    cases = draw_cases(ACROSS if across else OTHERS, options.videos, options.seed)
    plain = measure_all(runner, cases, [0.0] * len(cases))
    usual = np.array([1 / side if across else one.speed for one in plain])
    results = {}
    for speed in speeds:
        knob = calibration.knob(f"{speed:.4f}{unit}", side, fps)
        results[float(speed)] = measure_all(runner, cases, [knob] * len(cases))
        print(f"{speed:.3f}{unit}: knob {knob:.2f}", flush=True)
    requested = np.repeat(list(results), len(cases))
    measured = np.concatenate(
        [np.array([one.speed for one in row]) / usual for row in results.values()]
    )
    rows = measured.reshape(len(speeds), -1)
    return {
        "requested": [round(float(speed), 3) for speed in speeds],
        "measured, mean": [round(float(row.mean()), 3) for row in rows],
        "Spearman": with_interval(spearman, requested, measured),
        "median relative error": with_interval(median_error, requested, measured),
        "thing and background": count_content([one for row in results.values() for one in row]),
        "thing and background without speed": count_content(plain),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="sprites")
    parser.add_argument("--videos", type=int, default=20, help="videos at each speed")
    parser.add_argument("--speeds", type=int, default=6, help="speeds of each table")
    parser.add_argument("--units", nargs="+", choices=("px", "x"), default=("px", "x"))
    parser.add_argument("--seed", type=int, default=2, help="not 0 or 1: the calibration's cases")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="JSON of all figures")
    options = parser.parse_args()
    model = resolve(options.model)
    calibration = model.speed_calibration
    if calibration is None:
        parser.error(f"{options.model} has no speed calibration; run scripts/calibrate_speed.py")
    runner = Runner.load(model, InferenceConfig(device=options.device, seed=options.seed))
    figures = {}
    for unit in options.units:
        figures[unit] = measure_speeds(runner, calibration, unit, options)
        print(json.dumps(figures[unit], indent=1), flush=True)
    if options.out:
        with atomic_write(options.out) as partial:
            partial.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
