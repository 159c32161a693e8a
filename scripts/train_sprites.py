"""Train the built-in model from scratch: every stage in order, then the score and the model card.

    python scripts/train_sprites.py
    python scripts/train_sprites.py --device cuda
    python scripts/train_sprites.py --device cuda --minutes 8
    python scripts/train_sprites.py --out runs/try num_steps=3 stills.batch_size=4

The same command resumes an interrupted run. With --minutes, the pace of each stage is measured, and
the steps of all stages are set to fit. KEY=VALUE sets a key of every stage, STAGE.KEY=VALUE of one
stage. The results are the folders `final` and `final-fast`, which needs four steps, below --out.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import yaml
from diffusers import AutoencoderKL
from train_pace import measure, write_json

from demo_t2v.checkpoints.resolve import load_pipeline, quieten_libraries
from demo_t2v.config import ConfigError, load
from demo_t2v.core.atomic_io import atomic_write
from demo_t2v.evaluation.sprites.prompts import HELD_OUT, TRAINED
from demo_t2v.training.config import AnyTraining, TrainConfig
from demo_t2v.training.data.feature_cache import prepare
from demo_t2v.training.distributed.base import TrainingStopped
from demo_t2v.training.tasks import make_task
from demo_t2v.training.trainer import train as train_stage

CONFIGS: Final = Path(__file__).parent.parent / "configs" / "sprites"
RUNS: Final = "runs/sprites/"
"""The folder of the configurations' paths, which `--out` replaces."""
SECONDS_PER_CHECKPOINT: Final = 300
"""Of training, with --minutes."""


@dataclass(frozen=True)
class Stage:
    """One stage of the recipe; its configuration is `configs/sprites/<name>.yaml`."""

    name: str
    description: str
    minutes: float
    """Approximate duration on two CPU cores, for the estimate of the remaining time."""
    gpu_percent: float
    """Percentage of the total time on a GPU. The launches of kernels dominate the steps of a small
    network there, so small stages get a larger fraction than on the CPU."""
    one_process: bool = False
    """Whether one process needs all samples of a batch, for a contrastive loss."""

    @property
    def config(self) -> Path:
        """The configuration file."""
        return CONFIGS / f"{self.name}.yaml"


STAGES: Final = (
    Stage("autoencoder", "64x64 frames to latents and back", 12, 10),
    Stage("clip", "captions and still frames in one space", 6, 5, one_process=True),
    Stage("motion-clip", "captions and sheets of frames in one space", 25, 9, one_process=True),
    Stage("stills", "an image denoiser", 80, 15),
    Stage("base", "a video denoiser without motion conditioning", 50, 9),
    Stage("demo", "DEMO", 330, 30),
    Stage("decoder", "latents to 128x128 frames", 40, 9),
    Stage("encoder", "128x128 frames to the same latents", 15, 3),
    Stage("fast", "four steps in place of DEMO's", 120, 10),
)

GPU: Final = (
    *("mixed_precision=bf16", "threads=4"),
    # Up to about these batch sizes, the launches of kernels dominate a step. Learning rates grow at
    # most with the square root of the batch size, as far as AdamW and Muon stay stable.
    *("autoencoder.batch_size=128", "autoencoder.lr=4.0e-3"),
    *("clip.batch_size=256", "motion-clip.batch_size=256"),
    *("stills.batch_size=512", "stills.optimizer=muon", "stills.encode_in_step=true"),
    *("base.batch_size=128", "base.lr=2.0e-3", "base.encode_in_step=true"),
    *("demo.batch_size=128", "demo.lr=2.0e-3", "demo.motion_lr=2.0e-3", "demo.encode_in_step=true"),
    # --minutes scales the warm-up; at these learning rates it needs some dozen steps.
    *("base.warmup_steps=150", "demo.warmup_steps=500"),
    *("decoder.batch_size=128", "decoder.lr=7.0e-3", "encoder.batch_size=128", "encoder.lr=5.0e-3"),
    *("fast.batch_size=64", "fast.lr=2.0e-3", "fast.encode_in_step=true"),
)
"""Overrides for a GPU."""

DATA: Final = """\
The sprite world of DEMO-T2V, drawn during training: 32 things with 18 motions at 3 speeds before 5
backgrounds. One fifth of the pairs of thing and motion is held out. `scripts/train_sprites.py` runs
all stages from scratch; their steps were {stages}."""


def overrides_of(stage: Stage, out: Path, given: Sequence[str]) -> list[str]:
    """The overrides of a stage: its folders below `out`, then the given ones that apply to it."""
    keys: Mapping[str, Any] = yaml.safe_load(stage.config.read_text(encoding="utf-8"))
    overrides = [
        f"{key}={out / value.removeprefix(RUNS)}"
        for key, value in keys.items()
        if isinstance(value, str) and value.startswith(RUNS)
    ]
    names = {each.name for each in STAGES}
    for override in given:
        name, _, rest = override.partition(".")
        if name not in names:
            overrides.append(override)
        elif name == stage.name:
            overrides.append(rest)
    return overrides


def command(stage: Stage, processes: int, overrides: Sequence[str]) -> list[str]:
    """The command that trains one stage, with several processes if the stage allows it."""
    program = [sys.executable]
    if processes > 1 and not stage.one_process:
        program += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [*program, "-m", "demo_t2v", "train", "--json", f"--config={stage.config}", *overrides]


def lines_of(program: Sequence[str], device: str) -> Iterator[dict[str, float]]:
    """Run a training; yields its log lines. Exits with the training's code if it fails.

    The terminal sends Ctrl-C to the training, and this function forwards SIGTERM. Both end the
    training after a checkpoint.
    """
    environment = {"OMP_NUM_THREADS": "1"} | os.environ
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    with subprocess.Popen(program, env=environment, stdout=subprocess.PIPE, text=True) as training:
        signal.signal(signal.SIGTERM, lambda *_: training.terminate())
        signal.signal(signal.SIGINT, lambda *_: None)
        assert training.stdout is not None
        for line in training.stdout:
            yield json.loads(line)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if training.returncode:
        code = training.returncode
        raise SystemExit(code if code > 0 else 128 - code)


class Budget:
    """A time limit for all stages. Each stage gets a fraction of the time that is left.

    The overrides of a stage are computed when it starts and saved in a file, so an interrupted
    stage resumes with the same number of steps. All stages run in this process, since the start of
    a process takes as long as some hundred steps.
    """

    def __init__(self, out: Path, device: str, minutes: float, overrides: Sequence[str]) -> None:
        self._out, self._device, self._overrides = out, device, overrides
        self._file = out / "plan.json"
        self.plans: dict[str, list[str]] = {}
        if self._file.exists():
            self.plans = json.loads(self._file.read_text(encoding="utf-8"))
        left = [stage for stage in STAGES if not (out / stage.name / "final").exists()]
        fraction = sum(map(self._weight, left)) / sum(map(self._weight, STAGES))
        self._end = time.monotonic() + 60 * minutes * fraction
        self._pace = self._measure() if left else {}
        self._slowdown = 1.0

    def _weight(self, stage: Stage) -> float:
        return stage.gpu_percent if self._device == "cuda" else stage.minutes

    def _measure(self) -> dict[str, dict[str, float]]:
        """The pace of each stage, from a short training of all stages; cached in a file."""
        file = self._out / "pace.json"
        pace: dict[str, dict[str, float]] = {}
        if file.exists():
            pace = json.loads(file.read_text(encoding="utf-8"))
        steps = 48 if self._device == "cuda" else 6  # more than the workers prefetch
        with tempfile.TemporaryDirectory() as folder:
            for stage in STAGES if pace.keys() != {stage.name for stage in STAGES} else ():
                overrides = overrides_of(stage, Path(folder), self._overrides)
                pace[stage.name] = measure(load(AnyTraining, stage.config, overrides), steps)
                log(f"pace of {stage.name}: {json.dumps(pace[stage.name])}")
                write_json(file, pace)
        return pace

    def plan(self, number: int) -> list[str]:
        """The overrides that fit a stage's steps and their phases into its time."""
        stage = STAGES[number]
        if stage.name not in self.plans:
            left = self._end - time.monotonic()
            fraction = self._weight(stage) / sum(map(self._weight, STAGES[number:]))
            pace = self._pace[stage.name]
            seconds_per_step = pace["seconds_per_step"] * self._slowdown
            steps = max(1, int((fraction * left - pace["set_up"]) / seconds_per_step))
            overrides = overrides_of(stage, self._out, self._overrides)
            config: TrainConfig = load(AnyTraining, stage.config, overrides)
            scaled = config.over(steps).model_dump()
            phases = ("num_steps", "warmup_steps", "decay_steps", "crop_steps")
            self.plans[stage.name] = [f"{key}={scaled[key]}" for key in phases if key in scaled]
            interval = min(config.log_interval, max(1, steps // 20))
            save_interval = max(1, int(SECONDS_PER_CHECKPOINT / seconds_per_step))
            self.plans[stage.name] += [
                f"log_interval={interval}",
                f"save_ckp_interval={min(steps, save_interval)}",
            ]
            write_json(self._file, self.plans)
        return self.plans[stage.name]

    def lines_of(self, stage: Stage, overrides: Sequence[str]) -> Iterator[dict[str, float]]:
        """Train a stage in this process; yields its log lines. Exits if the training is stopped.

        Later stages are planned with the pace of the last line, which other programs may have
        slowed down.
        """
        config: TrainConfig = load(AnyTraining, stage.config, overrides)
        gc.collect()  # frees the previous stage
        try:
            prepare(config)
            for line in train_stage(make_task(config), config):
                measured = self._pace[stage.name]["seconds_per_step"]
                self._slowdown = max(1.0, line["seconds_per_step"] / measured)
                yield line
        except TrainingStopped as stopped:
            log(str(stopped))
            raise SystemExit(stopped.code) from None


def train(
    out: Path, device: str, processes: int, given: Sequence[str], budget: Budget | None
) -> None:
    """Train the unfinished stages in order; logs progress and an estimate of the remaining time."""
    slowdown = 1.0  # relative to the minutes of STAGES
    for number, stage in enumerate(STAGES):
        later = sum(other.minutes for other in STAGES[number + 1 :])
        head = f"stage {number + 1} of {len(STAGES)}, {stage.name} ({stage.description})"
        if (out / stage.name / "final").exists():
            log(f"{head}: finished")
            continue
        log(head)
        overrides = overrides_of(stage, out, given)
        overrides += budget.plan(number) if budget else []
        steps = steps_of(stage, overrides)
        program = command(stage, processes, overrides)
        lines = budget.lines_of(stage, overrides) if budget else lines_of(program, device)
        for line in lines:
            done, pace = int(line["step"]), line["seconds_per_step"]
            left = (steps - done) * pace / 60
            if done < steps:
                slowdown = left / (stage.minutes * (1 - done / steps))
            log(
                f"  step {done} of {steps}, loss {line['loss']:.4g}, {pace:.2f} s a step, "
                f"{span(left)} left here, about {span(left + later * slowdown)} in all"
            )


def steps_of(stage: Stage, overrides: Sequence[str]) -> int:
    """The number of steps of a stage. Raises ConfigError for bad overrides."""
    return load(AnyTraining, stage.config, overrides).num_steps  # type: ignore[no-any-return]


def span(minutes: float) -> str:
    """A duration in minutes, or in hours from 90 minutes."""
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def assemble(out: Path, stage: str, folder: str) -> Path:
    """Save a stage's model with the autoencoder for 128x128 frames, as `folder` below `out`."""
    final = out / folder
    if not final.exists():
        pipeline = load_pipeline(str(out / stage / "final"), "cpu", "float32")
        vae = AutoencoderKL.from_pretrained(out / "encoder" / "final" / "vae", dtype=torch.float32)
        pipeline.register_modules(vae=vae)
        with atomic_write(final) as partial:
            pipeline.save_pretrained(partial)
    return final


def demo(*arguments: str | Path, device: str) -> None:
    """Run a command of `demo-t2v`; exits with its code if it fails."""
    without_gpu = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    program = [sys.executable, "-m", "demo_t2v", *arguments]
    done = subprocess.run(program, env=os.environ | without_gpu)
    if done.returncode:
        raise SystemExit(done.returncode)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(RUNS))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--processes", type=int, help="default: the GPUs, or two CPU cores")
    parser.add_argument("--minutes", type=float, help="for all stages, in one process")
    parser.add_argument(
        "--score", type=int, nargs=2, metavar=("TRAINED", "HELD_OUT"), default=(TRAINED, HELD_OUT)
    )
    parser.add_argument("overrides", nargs="*", metavar="[STAGE.]KEY=VALUE")
    args = parser.parse_args()
    gpu = args.device == "cuda"
    if gpu and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU")
    cores = os.cpu_count() or 1
    processes = (
        1
        if args.minutes
        else args.processes or (torch.cuda.device_count() if gpu else min(2, cores))
    )
    workers = f"num_workers={max(1, cores // processes - 2)}"
    overrides = [*((*GPU, workers) if gpu else ()), *args.overrides]
    budget = None
    if args.minutes is not None:
        if not args.minutes > 0 or (args.processes or 1) > 1:
            parser.error("--minutes: must be more than 0, and is for one process")
        if not gpu:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        quieten_libraries()
        args.out.mkdir(parents=True, exist_ok=True)
    try:
        for stage in STAGES:  # bad overrides are refused before anything runs
            steps_of(stage, overrides_of(stage, args.out, overrides))
        if args.minutes is not None:
            budget = Budget(args.out, args.device, args.minutes, overrides)
        train(args.out, args.device, processes, overrides, budget)
    except ConfigError as error:
        parser.error(str(error))
    plans = budget.plans if budget else {}
    complete = [
        (stage, [*overrides_of(stage, args.out, overrides), *plans.get(stage.name, ())])
        for stage in STAGES
    ]
    stages = ", ".join(f"{stage.name} {steps_of(stage, keys):,}" for stage, keys in complete)
    trained, held_out = map(str, args.score)
    pairs = ["--trained", trained, "--held-out", held_out]
    for stage, folder, file in (("demo", "final", "score"), ("fast", "final-fast", "score-fast")):
        final, scores = assemble(args.out, stage, folder), args.out / f"{file}.json"
        log(f"score of {folder}")
        score = ["evaluate", "sprites", "--model", final, "--base", "", "--out", scores, *pairs]
        demo(*score, device=args.device)
        card = ["--license", "mit", "--data", DATA.format(stages=stages), "--scores", str(scores)]
        demo("card", final, *card, "--overwrite", device=args.device)


if __name__ == "__main__":
    main()
