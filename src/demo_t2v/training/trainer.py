"""One training loop for every stage, readable from top to bottom.

A step is a pure function of the state before it and of (seed, step): the random generators are
seeded anew for every step, so a run that was interrupted goes on as if it never had been. The
samples of a run are numbered; each of several processes takes its share of a step's numbers.
"""

from __future__ import annotations

import json
import logging
import math
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Self

from demo_t2v.core.atomic_io import atomic_write, make_folder
from demo_t2v.core.devices import peak_memory
from demo_t2v.training.checkpointing import Checkpoints, Progress, Resume, read_weights, restore
from demo_t2v.training.config import TrainConfig
from demo_t2v.training.data.prefetch import Ahead
from demo_t2v.training.distributed.base import Engine, Task, TrainingStopped, make_engine
from demo_t2v.training.distributed.model_weights import load_weights

__all__ = ["Task", "TrainingStopped", "train"]
_log = logging.getLogger(__name__)


def train(task: Task, config: TrainConfig, resume: Resume = "auto") -> Iterator[dict[str, float]]:
    """Train from a checkpoint (the last one in `config.log_dir`, one given, or none).

    Yields log lines, in the main process: means over the steps since the line before. Leaves
    `checkpoints/`, `metrics.jsonl` and `final/` (averaged weights) in the folder. SIGTERM and
    SIGINT end it after a checkpoint, with TrainingStopped.
    """
    checkpoints = Checkpoints(config)
    source = checkpoints.find(resume)
    engine = make_engine(task, config)
    if source is not None:
        load_weights(task.model, read_weights(source, task.model))
    engine.wrap()
    run = restore(source, engine) if source is not None else Progress()
    metrics = config.log_dir / "metrics.jsonl"
    if engine.main:
        make_folder(config.log_dir)
        if source is not None and run.step >= config.num_steps:
            _log.warning(_nothing_left(source, run.step, config.num_steps))
        checkpoints.begin(run.step)
        _forget_after(metrics, run.step)
    with _Signals() as signals, Ahead(engine, run.step, run.position) as ahead:
        pace = _Pace(engine, ahead, run.step)
        while run.step < config.num_steps and not signals.agreed:
            figures = _take_step(engine, run.step, ahead, signals)
            _count(run, figures, config.batch_size)
            if run.bad >= config.max_bad_steps:
                message = f"loss or gradient was not finite in steps {run.step - run.bad + 1} to"
                raise engine.stopped(f"{message} {run.step} (max_bad_steps)", 1)
            if run.step % config.log_interval == 0:
                line = _line(run) | pace.figures(run.step)
                if engine.main:
                    _append(metrics, line)
                    yield line
                pace = _Pace(engine, ahead, run.step)
            done = run.step == config.num_steps
            if done or signals.agreed or run.step % config.save_ckp_interval == 0:
                checkpoints.save(engine, run, ahead.state)
    if run.step < config.num_steps:
        name = signal.Signals(signals.agreed).name
        message = f"{name}: stopped after step {run.step}; the same command goes on from there"
        raise engine.stopped(message, 128 + signals.agreed)
    engine.finish()
    if engine.main:
        task.export(config.log_dir / "final")


def _nothing_left(source: Path, step: int, num_steps: int) -> str:
    """What a run says that is started again after its last step."""
    begun = f"{source}: has taken all {num_steps} steps (num_steps), there is nothing to train"
    if step > num_steps:
        begun = f"{source}: is at step {step}, beyond num_steps {num_steps}; nothing is trained"
    return (
        f"{begun}, and final/ is written from it; a larger num_steps goes on, "
        "--resume none begins anew"
    )


def _take_step(
    engine: Engine, step: int, ahead: Ahead, signals: _Signals
) -> dict[str, float] | None:
    """One step on the samples that come next: its figures, or None if it was skipped, since
    the loss of some process or the gradient was not finite.
    """
    engine.begin(step)
    sums: dict[str, float] = {}
    for samples, last in ahead.step():
        with engine.micro_batch(last):
            loss, figures = engine.loss(samples)
            heard = signals.heard()
            means = engine.mean(loss, *figures.values(), *heard)
            signals.agree(means[-len(heard) :])
            for name, value in zip(("loss", *figures), means, strict=False):
                sums[name] = sums.get(name, 0.0) + value / engine.config.gradient_accumulation
            if not math.isfinite(means[0]):
                engine.discard()
                return None
            engine.backward(loss)
    norm = engine.step()
    if norm is None:
        return None
    return {**sums, "grad_norm": norm, **engine.learning_rates()}


def _count(run: Progress, figures: dict[str, float] | None, samples: int) -> None:
    """Go on by a step that was taken, or skipped (None)."""
    run.step += 1
    run.position += samples
    if figures is None:
        run.bad, run.skipped = run.bad + 1, run.skipped + 1
        return
    run.bad, run.taken = 0, run.taken + 1
    for name, value in figures.items():
        run.sums[name] = run.sums.get(name, 0.0) + value


def _line(run: Progress) -> dict[str, float]:
    """What the run says of the steps up to now, after which counting begins anew."""
    line: dict[str, float] = {"step": run.step}
    line |= {name: total / run.taken for name, total in run.sums.items()}
    line["skipped"] = run.skipped
    run.taken, run.skipped, run.sums = 0, 0, {}
    return line


class _Pace:
    """What a clock says of the steps since it was made, and the memory that this process took."""

    def __init__(self, engine: Engine, ahead: Ahead, step: int) -> None:
        self._engine, self._ahead, self._step = engine, ahead, step
        self._began, self._waited = time.monotonic(), ahead.waited

    def figures(self, step: int) -> dict[str, float]:
        """Clips a second over all processes, the share of this one's time in which it waited for
        data, and its peak memory in GiB: the GPU's, where there is one.
        """
        seconds, steps = time.monotonic() - self._began, step - self._step
        clips = steps * self._engine.config.batch_size
        return {
            "seconds_per_step": round(seconds / steps, 4),
            "clips_per_second": round(clips / seconds, 3),
            "data_wait": round((self._ahead.waited - self._waited) / seconds, 4),
            "memory": round(peak_memory(self._engine.device) / 2**30, 3),
        }


class _Signals:
    """Listens for SIGINT and SIGTERM; the processes agree on what was heard, step by step.

    A second Ctrl-C does what it did before. A second SIGTERM does nothing, not even while the
    program ends, since launchers pass it on to processes that have had it themselves.
    """

    KINDS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.agreed = 0
        """The signal that some process has heard, and all know of; 0 as long as there is none."""
        self._heard: set[int] = set()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for kind in self.KINDS:
                if signal.getsignal(kind) is not signal.SIG_IGN:
                    self._before[kind] = signal.signal(kind, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        for kind, handler in self._before.items():
            ending = kind == signal.SIGTERM and kind in self._heard
            signal.signal(kind, signal.SIG_IGN if ending else handler)

    def _hear(self, kind: int, _: FrameType | None) -> None:
        self._heard.add(kind)
        if kind == signal.SIGINT:
            signal.signal(kind, self._before[kind])

    def heard(self) -> list[float]:
        """For each kind, 1 if this process has heard it."""
        return [float(kind in self._heard) for kind in self.KINDS]

    def agree(self, shares: list[float]) -> None:
        """Take note of the share of processes that have heard each kind."""
        for kind, share in zip(self.KINDS, shares, strict=True):
            if share > 0:
                self.agreed = kind


def _forget_after(file: Path, step: int) -> None:
    """Drop the lines of steps that will be taken again, and one that was cut short."""
    if file.exists():
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        kept = [line for line in whole if json.loads(line)["step"] <= step]
        if kept != lines:
            with atomic_write(file) as partial:
                partial.write_text("".join(kept), encoding="utf-8")


def _append(file: Path, line: dict[str, float]) -> None:
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")
