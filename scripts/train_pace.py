"""Measures the time of a training step: trains each configuration for a few steps.

    python scripts/train_pace.py --out pace.json -- configs/sprites/clip.yaml batch_size=256
    python scripts/train_pace.py --steps 20 -- FILE KEY=VALUE -- FILE KEY=VALUE

The configurations are trained one after another in one process, so a later one can start from the
weights of an earlier one. Steps on windows and on complete frames are weighted as in the complete
training. The figures are printed, a line of JSON for each configuration, and written to --out after
each configuration.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from demo_t2v.checkpoints.resolve import quieten_libraries
from demo_t2v.config import ConfigError, load
from demo_t2v.core.atomic_io import atomic_write
from demo_t2v.training.config import AnyTraining, TrainConfig
from demo_t2v.training.data.feature_cache import prepare
from demo_t2v.training.tasks import make_task
from demo_t2v.training.trainer import train

FIGURES = ("clips_per_second", "data_wait", "memory")


def measure(config: TrainConfig, steps: int, unsaved: bool = False) -> dict[str, float]:
    """Seconds per step, and medians of the training's own figures over the later steps.

    The weights are saved as by any training, unless `unsaved`.
    """
    num_steps = steps + unsaved
    update = {"num_steps": num_steps, "log_interval": 1, "save_ckp_interval": num_steps}
    short = config.over(steps).model_copy(update=update)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    began = time.monotonic()
    prepare(short)
    training = train(make_task(short), short, "none")
    lines = list(islice(training, steps) if unsaved else training)
    training.close()
    seconds = time.monotonic() - began
    pace = [line["seconds_per_step"] for line in lines]
    cropped = getattr(short, "crop_steps", 0)
    kinds = [kind for kind in (pace[:cropped], pace[cropped:]) if kind]
    usual = sum(statistics.median(kind[len(kind) // 2 :]) * len(kind) for kind in kinds) / steps
    rest = {name: statistics.median(line[name] for line in lines[steps // 2 :]) for name in FIGURES}
    rest["clips_per_second"] = round(short.batch_size / usual, 1)
    set_up = max(0.0, seconds - sum(pace))
    return {"seconds_per_step": round(usual, 5), "set_up": round(set_up, 2), **rest}


def write_json(file: Path, tree: Any) -> None:
    """Write JSON atomically."""
    with atomic_write(file) as partial:
        partial.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=60, help="of each training; default: 60")
    parser.add_argument(
        "--unsaved",
        action="store_true",
        help="save no weights for later configurations",
    )
    parser.add_argument("--out", type=Path, help="a file for the figures, as JSON")
    parser.add_argument("jobs", nargs=argparse.REMAINDER, metavar="-- FILE [KEY=VALUE] ...")
    args = parser.parse_args()
    jobs: list[list[str]] = []
    for word in args.jobs:
        jobs.append([]) if word == "--" else jobs[-1].append(word)
    if not jobs or not all(jobs) or args.steps < 1:
        parser.error("give -- and a configuration's file, and at least one step")
    quieten_libraries()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    figures: dict[str, Any] = {"device": device, "torch": torch.__version__}
    figures["jobs"] = []
    for file, *overrides in jobs:
        try:
            config: TrainConfig = load(AnyTraining, Path(file), overrides)
        except ConfigError as error:
            parser.error(str(error))
        job = {"config": file, "overrides": overrides, "batch_size": config.batch_size}
        figures["jobs"].append(job | measure(config, args.steps, args.unsaved))
        print(json.dumps(figures["jobs"][-1]), flush=True)
        if args.out is not None:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            write_json(args.out, figures)


if __name__ == "__main__":
    main()
