"""One training loop for every stage, readable from top to bottom.

A step is a pure function of the state before it and of (seed, step): the random generators are
seeded anew for every step, so a run that was interrupted goes on as if it never had been. The
samples of a run are numbered; each of several processes takes its share of a step's numbers.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from demo_t2v.training.config import TrainConfig
from demo_t2v.training.muon import Muon


class Task(Protocol):
    """What one stage trains: a model, its data, its loss, and how the result is saved."""

    @property
    def model(self) -> nn.Module:
        """What is trained."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups as torch's optimizers take them; `lr` defaults to the configuration's."""

    def batch(self, places: range) -> Any:
        """The samples with these numbers, counted from the run's beginning; the same each time."""

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, float]]:
        """The scalar to minimise and figures worth logging."""

    def export(self, folder: Path) -> None:
        """Save the trained weights as diffusers and transformers folders."""


class _Objective(nn.Module):
    """A task's loss as a module's forward pass, which is what distributed training wraps."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model = task.model
        self._task = task

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, float]]:
        return self._task.loss(batch)


def train(task: Task, config: TrainConfig) -> Iterator[dict[str, float]]:
    """Train from the last checkpoint in `config.log_dir`, or from nothing; yields log lines.

    Leaves `state.pt` (for resuming), `metrics.jsonl` and `final/` (EMA weights) in the folder.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    engine = Accelerator(cpu=not torch.cuda.is_available())
    rank, world = engine.process_index, engine.num_processes
    config.log_dir.mkdir(parents=True, exist_ok=True)
    parameters = [p for p in task.model.parameters() if p.requires_grad]
    optimizer = make_optimizer(task, config)
    schedule = get_cosine_schedule_with_warmup(optimizer, config.warmup_steps, config.num_steps)
    ema = EMAModel(parameters, decay=config.ema_decay, use_ema_warmup=True, power=0.75)
    state = {"optimizer": optimizer, "schedule": schedule, "ema": ema, "model": task.model}
    first, seen = _load_state(config.log_dir / "state.pt", state)
    metrics = config.log_dir / "metrics.jsonl"
    if engine.is_main_process:
        _forget_after(metrics, first)
    objective = engine.prepare_model(_Objective(task)).train()
    started = time.monotonic()
    for step in range(first, config.num_steps):
        torch.manual_seed((config.seed * 1_000_003 + step) * world + rank)
        size = config.batch_size
        places = range(step * size + rank, (step + 1) * size, world)
        loss, figures = objective(task.batch(places))
        engine.backward(loss)
        norm = nn.utils.clip_grad_norm_(parameters, config.grad_clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        ema.step(parameters)
        seen += float(engine.reduce(loss.detach(), "mean"))
        if (step + 1) % config.log_interval == 0:
            seconds = (time.monotonic() - started) / config.log_interval
            line = {"step": step + 1, "loss": seen / config.log_interval, **figures}
            line |= {"grad_norm": float(norm), "seconds_per_step": round(seconds, 4)}
            if engine.is_main_process:
                _append(metrics, line)
                yield line
            seen, started = 0.0, time.monotonic()
        last = step + 1 == config.num_steps
        if engine.is_main_process and (last or (step + 1) % config.save_ckp_interval == 0):
            _save_state(config.log_dir / "state.pt", state, step + 1, seen)
    ema.copy_to(parameters)
    task.model.eval()
    if engine.is_main_process:
        task.export(config.log_dir / "final")


def make_optimizer(task: Task, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW; or Muon, which leaves embeddings, norms and biases to AdamW."""
    groups = task.parameter_groups()
    if config.optimizer == "adamw":
        decay, betas = config.weight_decay, (0.9, 0.99)
        return torch.optim.AdamW(groups, lr=config.lr, weight_decay=decay, betas=betas)
    tables = [m.weight for m in task.model.modules() if isinstance(m, nn.Embedding)]
    others = {id(weight) for weight in tables}
    parted = []
    for group in groups:
        for matrices in (True, False):
            chosen = [
                p for p in group["params"] if (p.ndim > 1 and id(p) not in others) == matrices
            ]
            parted.append(group | {"params": chosen, "matrices": matrices})
    return Muon(parted, config.lr, config.weight_decay)


def _load_state(file: Path, parts: dict[str, Any]) -> tuple[int, float]:
    """Restore every part from `file`: the step to go on with, and the losses not yet logged."""
    if not file.exists():
        return 0, 0.0
    saved = torch.load(file, map_location="cpu", weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    return int(saved["step"]), float(saved.get("seen", 0.0))


def _save_state(file: Path, parts: dict[str, Any], step: int, seen: float) -> None:
    """Write the state beside `file`, sync it, and put it in place by rename."""
    partial = file.with_suffix(".partial")
    with partial.open("wb") as stream:
        states = {name: part.state_dict() for name, part in parts.items()}
        torch.save(states | {"step": step, "seen": seen}, stream)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(file)


def _forget_after(file: Path, step: int) -> None:
    """Drop the lines of steps that will be taken again, and one that was cut short."""
    if file.exists():
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        kept = [line for line in whole if json.loads(line)["step"] <= step]
        file.write_text("".join(kept), encoding="utf-8")


def _append(file: Path, line: dict[str, float]) -> None:
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")
