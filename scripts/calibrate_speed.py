"""Measure the speeds of a model of the sprite world, for the option `speed`.

    python scripts/calibrate_speed.py runs/sprites/final
    python scripts/calibrate_speed.py sprites --across 8 --others 8

Videos are made at some settings of the dial, with the model's own defaults, and the speed of the
thing is measured in each. The result is `speed.json` in the model's folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from demo_t2v.checkpoints.resolve import resolve
from demo_t2v.config import InferenceConfig
from demo_t2v.evaluation.sprites.speed import KNOBS, SpeedMeasurement, calibrate
from demo_t2v.inference.runner import Runner


def show(knob: float, results: Sequence[SpeedMeasurement]) -> None:
    speeds = " ".join(f"{one.speed:.4f}{'' if one.content else '!'}" for one in results)
    print(f"knob {knob:g}: {speeds} (frame sides a frame; ! is another thing)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", help="built in, or a folder")
    parser.add_argument("--across", type=int, default=4, help="videos of straight motions a knob")
    parser.add_argument("--others", type=int, default=4, help="videos of other motions a knob")
    parser.add_argument("--knobs", type=float, nargs="+", default=KNOBS)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    model = resolve(options.model)
    runner = Runner.load(model, InferenceConfig(device=options.device))
    calibration = calibrate(runner, options.across, options.others, options.knobs, show)
    calibration.write(model.folder)
    print(f"wrote the calibration to {model.folder}")


if __name__ == "__main__":
    main()
