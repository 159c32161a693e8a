"""Train the built-in model from nothing: every stage in order, then the score and the model card.

    python scripts/train_sprites.py
    python scripts/train_sprites.py --device cuda
    python scripts/train_sprites.py --device cuda --minutes 8
    python scripts/train_sprites.py --out runs/try num_steps=3 stills.batch_size=4

The same command resumes where it was stopped. With --minutes the pace of each stage is measured,
and the steps of all stages are set to fit. KEY=VALUE sets a key of every stage, STAGE.KEY=VALUE
of one stage. The result is the folder `final` below --out.
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

from demo_t2v.checkpoints.resolve import quieten_libraries
from demo_t2v.config import ConfigError, load
from demo_t2v.core.atomic_io import atomic_write
from demo_t2v.evaluation.sprites.prompts import HELD_OUT, TRAINED
from demo_t2v.pipeline import DemoPipeline
from demo_t2v.training.config import AnyTraining, TrainConfig
from demo_t2v.training.data.feature_cache import prepare
from demo_t2v.training.distributed.base import TrainingStopped
from demo_t2v.training.tasks import make_task
from demo_t2v.training.trainer import train as train_stage

CONFIGS: Final = Path(__file__).parent.parent / "configs" / "sprites"
RUNS: Final = "runs/sprites/"
"""Where the configurations write and read; `--out` stands in for it."""


@dataclass(frozen=True)
class Stage:
    """One stage of the recipe; its configuration is `configs/sprites/<name>.yaml`."""

    name: str
    does: str
    minutes: float
    """On two CPU cores, about; what the time that is left is guessed from."""
    gpu_share: float
    """Percent of the time on a GPU. There every step of a small network takes the time of its
    launches, so the small stages need a larger share than on the CPU."""
    one_process: bool = False
    """The samples of a batch are compared with each other, so one process has them all."""

    @property
    def config(self) -> Path:
        """The configuration's file."""
        return CONFIGS / f"{self.name}.yaml"


STAGES: Final = (
    Stage("autoencoder", "64x64 frames to latents and back", 12, 11),
    Stage("clip", "captions and still frames in one space", 6, 5, one_process=True),
    Stage("motion-clip", "captions and sheets of frames in one space", 25, 9, one_process=True),
    Stage("stills", "an image denoiser", 80, 17),
    Stage("base", "a video denoiser without motion conditioning", 50, 10),
    Stage("demo", "DEMO", 330, 34),
    Stage("decoder", "latents to 128x128 frames", 40, 10),
    Stage("encoder", "128x128 frames to the same latents", 15, 4),
)

GPU: Final = (
    *("mixed_precision=bf16", "threads=4"),
    # A step takes the time of its launches up to about these sizes. Learning rates grow with the
    # square root of the batch at most, as far as AdamW's and Muon's steps bear it.
    *("autoencoder.batch_size=128", "autoencoder.lr=4.0e-3"),
    *("clip.batch_size=256", "motion-clip.batch_size=256"),
    *("stills.batch_size=512", "stills.optimizer=muon", "stills.encode_in_step=true"),
    *("base.batch_size=128", "base.lr=2.0e-3", "base.encode_in_step=true"),
    *("demo.batch_size=128", "demo.lr=2.0e-3", "demo.motion_lr=2.0e-3", "demo.encode_in_step=true"),
    # A shorter run has a shorter warm-up; at these rates it should still be some dozen steps.
    *("base.warmup_steps=150", "demo.warmup_steps=500"),
    *("decoder.batch_size=128", "decoder.lr=7.0e-3", "encoder.batch_size=128", "encoder.lr=5.0e-3"),
)
"""What a GPU is told beside the configurations, and that the other cores draw the samples."""

DATA: Final = """\
The sprite world of DEMO-T2V, drawn while training: 32 things with 18 motions at 3 speeds before 5
backgrounds. One fifth of the pairs of thing and motion is held out. `scripts/train_sprites.py` runs
all stages from nothing; their steps were {stages}."""


def overrides_of(stage: Stage, out: Path, asked: Sequence[str]) -> list[str]:
    """What the stage's configuration is told: its folders below `out`, then what was asked for."""
    keys: Mapping[str, Any] = yaml.safe_load(stage.config.read_text(encoding="utf-8"))
    told = [
        f"{key}={out / value.removeprefix(RUNS)}"
        for key, value in keys.items()
        if isinstance(value, str) and value.startswith(RUNS)
    ]
    names = {known.name for known in STAGES}
    for override in asked:
        name, _, rest = override.partition(".")
        if name not in names:
            told.append(override)
        elif name == stage.name:
            told.append(rest)
    return told


def command(stage: Stage, processes: int, told: Sequence[str]) -> list[str]:
    """The program that trains one stage, over several processes where that is of use."""
    program = [sys.executable]
    if processes > 1 and not stage.one_process:
        program += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [*program, "-m", "demo_t2v", "train", "--json", f"--config={stage.config}", *told]


def lines_of(program: Sequence[str], device: str) -> Iterator[dict[str, float]]:
    """Run a training; yields its log lines. Ends this program as the training ended, if not well.

    Ctrl-C reaches the training by itself; SIGTERM is passed on. Both end it after a checkpoint.
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
    """Minutes for all stages, which get their shares of what is left one after another.

    A stage's overrides are settled when it begins, and kept in a file: one that was stopped goes on
    with the steps that it had. All stages are trained in this process, since every start of a
    program would cost as much as some hundred steps.
    """

    def __init__(self, out: Path, device: str, minutes: float, asked: Sequence[str]) -> None:
        self._out, self._device, self._asked = out, device, asked
        self._file = out / "plan.json"
        self.told: dict[str, list[str]] = {}
        if self._file.exists():
            self.told = json.loads(self._file.read_text(encoding="utf-8"))
        left = [stage for stage in STAGES if not (out / stage.name / "final").exists()]
        share = sum(map(self._weight, left)) / sum(map(self._weight, STAGES))
        self._end = time.monotonic() + 60 * minutes * share
        self._pace = self._measure() if left else {}

    def _weight(self, stage: Stage) -> float:
        return stage.gpu_share if self._device == "cuda" else stage.minutes

    def _measure(self) -> dict[str, dict[str, float]]:
        """Each stage's pace, of a short training of all of them; measured once."""
        file = self._out / "pace.json"
        known: dict[str, dict[str, float]] = {}
        if file.exists():
            known = json.loads(file.read_text(encoding="utf-8"))
        steps = 48 if self._device == "cuda" else 6  # more than workers hold ready
        with tempfile.TemporaryDirectory() as folder:
            for stage in STAGES if known.keys() != {stage.name for stage in STAGES} else ():
                told = overrides_of(stage, Path(folder), self._asked)
                known[stage.name] = measure(load(AnyTraining, stage.config, told), steps)
                say(f"pace of {stage.name}: {json.dumps(known[stage.name])}")
                write_json(file, known)
        return known

    def plan(self, number: int) -> list[str]:
        """The overrides with which a stage fits, and its phases with it."""
        stage = STAGES[number]
        if stage.name not in self.told:
            left = self._end - time.monotonic()
            share = self._weight(stage) / sum(map(self._weight, STAGES[number:]))
            pace = self._pace[stage.name]
            steps = max(1, int((share * left - pace["set_up"]) / pace["seconds_per_step"]))
            told = overrides_of(stage, self._out, self._asked)
            config: TrainConfig = load(AnyTraining, stage.config, told)
            scaled = config.over(steps).model_dump()
            phases = ("num_steps", "warmup_steps", "decay_steps", "crop_steps")
            self.told[stage.name] = [f"{key}={scaled[key]}" for key in phases if key in scaled]
            often = min(config.log_interval, max(1, steps // 20))
            self.told[stage.name] += [f"log_interval={often}", f"save_ckp_interval={steps}"]
            write_json(self._file, self.told)
        return self.told[stage.name]

    @staticmethod
    def lines_of(stage: Stage, told: Sequence[str]) -> Iterator[dict[str, float]]:
        """Train a stage in this process; yields its log lines. Ends this program as it ended."""
        config: TrainConfig = load(AnyTraining, stage.config, told)
        gc.collect()  # of the stage before
        try:
            prepare(config)
            yield from train_stage(make_task(config), config)
        except TrainingStopped as stopped:
            say(str(stopped))
            raise SystemExit(stopped.code) from None


def train(
    out: Path, device: str, processes: int, asked: Sequence[str], budget: Budget | None
) -> None:
    """Every stage that is not finished, in order; says how far it is and how long is left."""
    slower = 1.0  # than the table says
    for number, stage in enumerate(STAGES):
        later = sum(other.minutes for other in STAGES[number + 1 :])
        head = f"stage {number + 1} of {len(STAGES)}, {stage.name} ({stage.does})"
        if (out / stage.name / "final").exists():
            say(f"{head}: finished")
            continue
        say(head)
        told = overrides_of(stage, out, asked)
        told += budget.plan(number) if budget else []
        steps = load(AnyTraining, stage.config, told).num_steps
        program = command(stage, processes, told)
        lines = budget.lines_of(stage, told) if budget else lines_of(program, device)
        for line in lines:
            done, pace = int(line["step"]), line["seconds_per_step"]
            left = (steps - done) * pace / 60
            if done < steps:
                slower = left / (stage.minutes * (1 - done / steps))
            say(
                f"  step {done} of {steps}, loss {line['loss']:.4g}, {pace:.2f} s a step, "
                f"{span(left)} left here, about {span(left + later * slower)} in all"
            )


def steps_of(stage: Stage, told: Sequence[str]) -> int:
    """The steps that a stage will take. Raises ConfigError for what it cannot be told."""
    return load(AnyTraining, stage.config, told).num_steps  # type: ignore[no-any-return]


def span(minutes: float) -> str:
    """Minutes, or hours where they are many."""
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def assemble(out: Path) -> Path:
    """DEMO with the autoencoder for 128x128 frames, as one model."""
    final = out / "final"
    if not final.exists():
        pipeline = DemoPipeline.from_pretrained(out / "demo" / "final", dtype=torch.float32)
        vae = AutoencoderKL.from_pretrained(out / "encoder" / "final" / "vae", dtype=torch.float32)
        pipeline.register_modules(vae=vae)
        with atomic_write(final) as partial:
            pipeline.save_pretrained(partial)
    return final


def demo(*words: str | Path, device: str) -> None:
    """Run a command of `demo-t2v`; ends this program where it fails."""
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    done = subprocess.run([sys.executable, "-m", "demo_t2v", *words], env=os.environ | hidden)
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
    asked = parser.parse_args()
    gpu = asked.device == "cuda"
    if gpu and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU")
    cores = os.cpu_count() or 1
    processes = (
        1
        if asked.minutes
        else asked.processes or (torch.cuda.device_count() if gpu else min(2, cores))
    )
    drawing = f"num_workers={max(1, cores // processes - 2)}"
    overrides = [*((*GPU, drawing) if gpu else ()), *asked.overrides]
    budget = None
    if asked.minutes is not None:
        if not asked.minutes > 0 or (asked.processes or 1) > 1:
            parser.error("--minutes: must be more than 0, and is for one process")
        if not gpu:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        quieten_libraries()
        asked.out.mkdir(parents=True, exist_ok=True)
    try:
        for stage in STAGES:  # what is wrong is said before anything begins
            steps_of(stage, overrides_of(stage, asked.out, overrides))
        if asked.minutes is not None:
            budget = Budget(asked.out, asked.device, asked.minutes, overrides)
        train(asked.out, asked.device, processes, overrides, budget)
    except ConfigError as error:
        parser.error(str(error))
    final, scores = assemble(asked.out), asked.out / "score.json"
    say("the score")
    trained, held_out = map(str, asked.score)
    pairs = ["--trained", trained, "--held-out", held_out]
    score = ["evaluate", "sprites", "--model", final, "--base", "", "--out", scores, *pairs]
    demo(*score, device=asked.device)
    planned = budget.told if budget else {}
    taken = [
        (stage, [*overrides_of(stage, asked.out, overrides), *planned.get(stage.name, ())])
        for stage in STAGES
    ]
    stages = ", ".join(f"{stage.name} {steps_of(stage, told):,}" for stage, told in taken)
    card = ["--license", "mit", "--data", DATA.format(stages=stages), "--scores", str(scores)]
    demo("card", final, *card, "--overwrite", device=asked.device)


if __name__ == "__main__":
    main()
