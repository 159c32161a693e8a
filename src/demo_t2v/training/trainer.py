"""The training loop of every task.

A step depends only on the state before it and on (seed, step): the random generators are seeded in
every step, so interrupted runs resume bit-exactly. Samples have numbers; each process takes its
numbers of every step.
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
from demo_t2v.training.checkpointing import Checkpoints, Resume, TrainState, read_weights, restore
from demo_t2v.training.config import TrainConfig
from demo_t2v.training.data.prefetch import Prefetcher
from demo_t2v.training.distributed.base import Engine, TrainingStopped
from demo_t2v.training.distributed.engines import make_engine
from demo_t2v.training.distributed.model_weights import load_weights
from demo_t2v.training.task import Task

__all__ = ["TrainingStopped", "train"]
_log = logging.getLogger(__name__)


def train(task: Task, config: TrainConfig, resume: Resume = "auto") -> Iterator[dict[str, float]]:
    """Train from a checkpoint: the last one in `config.log_dir`, a given one, or none.

    Yields log lines in the main process: means over the steps since the previous line. Writes
    `checkpoints/`, `metrics.jsonl` and `final/` (the averaged weights) in the folder. After SIGTERM
    or SIGINT it writes a checkpoint and raises TrainingStopped.
    """
    checkpoints = Checkpoints(config)
    source = checkpoints.find(resume)
    engine = make_engine(task, config)
    if source is not None:
        load_weights(task.model, read_weights(source, task.model))
    engine.wrap()
    state = restore(source, engine) if source is not None else TrainState()
    metrics = config.log_dir / "metrics.jsonl"
    if engine.main:
        make_folder(config.log_dir)
        if source is not None and state.step >= config.num_steps:
            _log.warning(_nothing_left(source, state.step, config.num_steps))
        checkpoints.begin(state.step)
        _truncate_metrics(metrics, state.step)
    with _Signals() as signals, Prefetcher(engine, state.step, state.position) as batches:
        pace = _Pace(engine, batches, state.step)
        while state.step < config.num_steps and not signals.agreed:
            figures = _take_step(engine, state.step, batches, signals)
            _count_step(state, figures, config.batch_size)
            if state.bad >= config.max_bad_steps:
                first = state.step - state.bad + 1
                message = f"loss or gradient was not finite in steps {first} to {state.step}"
                raise engine.stopped(f"{message} (max_bad_steps)", 1)
            line = None
            if state.step % config.log_interval == 0:
                line = _take_means(state) | pace.figures(state.step)
                if engine.main:
                    _append(metrics, line)
            done = state.step == config.num_steps
            if done or signals.agreed or state.step % config.save_ckp_interval == 0:
                checkpoints.save(engine, state, batches.data_state)
            if line is not None:
                if engine.main:
                    yield line  # after the checkpoint, which an error of the caller does not lose
                pace = _Pace(engine, batches, state.step)
    if state.step < config.num_steps:
        name = signal.Signals(signals.agreed).name
        message = f"{name}: stopped after step {state.step}; the same command continues from there"
        raise engine.stopped(message, 128 + signals.agreed)
    engine.finish()
    if engine.main:
        task.export(config.log_dir / "final")


def _take_step(
    engine: Engine, step: int, batches: Prefetcher, signals: _Signals
) -> dict[str, float] | None:
    """Train on the next samples. Returns the step's figures, or None if the step was skipped since
    a loss or the gradient was not finite.
    """
    engine.begin_step(step)
    sums: dict[str, float] = {}
    for batch, last in batches.step():
        with engine.micro_batch(last):
            loss, figures = engine.loss(batch)
            flags = signals.received()
            means = engine.mean(loss, *figures.values(), *flags)
            signals.agree(means[-len(flags) :])
            for name, value in zip(("loss", *figures), means, strict=False):
                sums[name] = sums.get(name, 0.0) + value / engine.config.gradient_accumulation
            if not math.isfinite(means[0]):
                engine.zero_grad()
                return None
            engine.backward(loss)
    norm = engine.step()
    if norm is None:
        return None
    return {**sums, "grad_norm": norm, **engine.learning_rates()}


def _count_step(state: TrainState, figures: dict[str, float] | None, samples: int) -> None:
    """Update the state after a step; `figures` is None for a skipped one."""
    state.step += 1
    state.position += samples
    if figures is None:
        state.bad, state.skipped = state.bad + 1, state.skipped + 1
        return
    state.bad, state.taken = 0, state.taken + 1
    for name, value in figures.items():
        state.sums[name] = state.sums.get(name, 0.0) + value


def _take_means(state: TrainState) -> dict[str, float]:
    """The means since the previous log line; resets the sums."""
    line: dict[str, float] = {"step": state.step}
    line |= {name: total / state.taken for name, total in state.sums.items()}
    line["skipped"] = state.skipped
    state.taken, state.skipped, state.sums = 0, 0, {}
    return line


def _nothing_left(source: Path, step: int, num_steps: int) -> str:
    """The warning of a run that is resumed after its last step."""
    reached = f"{source}: has taken all {num_steps} steps (num_steps), there is nothing to train"
    if step > num_steps:
        reached = f"{source}: is at step {step}, beyond num_steps {num_steps}; nothing is trained"
    return (
        f"{reached}, and final/ is written from it; a larger num_steps continues, "
        "--resume none starts over"
    )


class _Pace:
    """Speed and memory of the steps since its construction."""

    def __init__(self, engine: Engine, batches: Prefetcher, step: int) -> None:
        self._engine, self._batches, self._step = engine, batches, step
        self._start, self._waited = time.monotonic(), batches.waited

    def figures(self, step: int) -> dict[str, float]:
        """Clips per second over all processes, the fraction of time in which this process waited
        for data, and its peak memory in GiB (of the GPU, if there is one).
        """
        seconds, steps = time.monotonic() - self._start, step - self._step
        clips = steps * self._engine.config.batch_size
        return {
            "seconds_per_step": round(seconds / steps, 4),
            "clips_per_second": round(clips / seconds, 3),
            "data_wait": round((self._batches.waited - self._waited) / seconds, 4),
            "memory": round(peak_memory(self._engine.device) / 2**30, 3),
        }


class _Signals:
    """Handles SIGINT and SIGTERM; the processes agree on received signals in every micro-batch.

    A second SIGINT has the previous handler. A second SIGTERM is ignored, also while the program
    ends: launchers forward it to processes that have received it already.
    """

    KINDS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.agreed = 0
        """A signal that some process received and all know; 0 without one."""
        self._received: set[int] = set()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for kind in self.KINDS:
                if signal.getsignal(kind) is not signal.SIG_IGN:
                    self._previous[kind] = signal.signal(kind, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for kind, handler in self._previous.items():
            ending = kind == signal.SIGTERM and kind in self._received
            signal.signal(kind, signal.SIG_IGN if ending else handler)

    def _handle(self, kind: int, _: FrameType | None) -> None:
        self._received.add(kind)
        if kind == signal.SIGINT:
            signal.signal(kind, self._previous[kind])

    def received(self) -> list[float]:
        """For each kind, 1 if this process has received it."""
        return [float(kind in self._received) for kind in self.KINDS]

    def agree(self, fractions: list[float]) -> None:
        """Set `agreed`, given the fraction of processes that have received each kind."""
        for kind, fraction in zip(self.KINDS, fractions, strict=True):
            if fraction > 0:
                self.agreed = kind


def _truncate_metrics(file: Path, step: int) -> None:
    """Drop the lines after `step`, and an incomplete one."""
    if file.exists():
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        complete = [line for line in lines if line.endswith("\n")]
        valid = [line for line in complete if json.loads(line)["step"] <= step]
        if valid != lines:
            with atomic_write(file) as partial:
                partial.write_text("".join(valid), encoding="utf-8")


def _append(file: Path, line: dict[str, float]) -> None:
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")
