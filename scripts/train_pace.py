"""How long does a training step take? Each configuration is trained for a few steps.

    python scripts/train_pace.py --out pace.json -- configs/sprites/clip.yaml batch_size=256
    python scripts/train_pace.py --steps 20 -- FILE KEY=VALUE -- FILE KEY=VALUE

All of them are trained in one process, one after another, so that a later one can start from
what an earlier one leaves. Steps on windows and on whole frames count as often as in the whole
training. The figures are printed, a line of JSON for each configuration, and written to --out as
soon as they are known.
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
    """Seconds a step, and what the training says of itself; medians of each kind's later steps.

    It ends with the trained weights in its folder, unless `unsaved`.
    """
    whole = config.over(steps)
    taken = steps + unsaved
    update = {"num_steps": taken, "log_interval": 1, "save_ckp_interval": taken}
    whole = whole.model_copy(update=update)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    began = time.monotonic()
    prepare(whole)
    training = train(make_task(whole), whole, "none")
    lines = list(islice(training, steps) if unsaved else training)
    training.close()
    seconds = time.monotonic() - began
    pace = [line["seconds_per_step"] for line in lines]
    cropped = getattr(whole, "crop_steps", 0)
    kinds = [kind for kind in (pace[:cropped], pace[cropped:]) if kind]
    usual = sum(statistics.median(kind[len(kind) // 2 :]) * len(kind) for kind in kinds) / steps
    rest = {name: statistics.median(line[name] for line in lines[steps // 2 :]) for name in FIGURES}
    rest["clips_per_second"] = round(whole.batch_size / usual, 1)
    set_up = max(0.0, seconds - sum(pace))
    return {"seconds_per_step": round(usual, 5), "set_up": round(set_up, 2), **rest}


def write_json(file: Path, tree: Any) -> None:
    """Write a tree as JSON; the file appears whole or not at all."""
    with atomic_write(file) as partial:
        partial.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=60, help="of each training; default: 60")
    parser.add_argument(
        "--unsaved", action="store_true", help="leave no weights; nothing can start from them"
    )
    parser.add_argument("--out", type=Path, help="a file for the figures, as JSON")
    parser.add_argument("jobs", nargs=argparse.REMAINDER, metavar="-- FILE [KEY=VALUE] ...")
    asked = parser.parse_args()
    jobs: list[list[str]] = []
    for word in asked.jobs:
        jobs.append([]) if word == "--" else jobs[-1].append(word)
    if not jobs or not all(jobs) or asked.steps < 1:
        parser.error("say -- and a configuration's file, and at least one step")
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
        figures["jobs"].append(job | measure(config, asked.steps, asked.unsaved))
        print(json.dumps(figures["jobs"][-1]), flush=True)
        if asked.out is not None:
            asked.out.parent.mkdir(parents=True, exist_ok=True)
            write_json(asked.out, figures)


if __name__ == "__main__":
    main()
