"""A task that trains in milliseconds, for tests of the training loop, also in several processes.

As a program: `python tiny_task.py CONFIG.json...` trains and prints the log lines.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from safetensors.torch import save_file
from torch import Tensor, nn

from demo_t2v.core.launch import exit_process
from demo_t2v.training.config import TrainConfig
from demo_t2v.training.trainer import TrainingStopped, train


class TinyConfig(TrainConfig):
    """Keys of the tiny task: numbers of samples that are not finite, seconds per batch, width."""

    poison: tuple[int, ...] = ()
    pause: float = 0.0
    width: int = 16


class TinyTask:
    """A small network that learns a linear function. Sample n depends only on n."""

    samples = None

    def __init__(self, config: TinyConfig) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        width = config.width
        self.model = nn.Sequential(nn.Linear(4, width), nn.GELU(), nn.Linear(width, 2))

    def parameter_groups(self) -> list[dict[str, Any]]:
        first, _, second = self.model
        groups = [{"params": list(first.parameters()), "lr": self.config.lr / 2}]
        return [*groups, {"params": list(second.parameters())}]

    def batch(self, numbers: range) -> tuple[Tensor, Tensor]:
        time.sleep(self.config.pause)
        draws = [torch.randn(4, generator=torch.Generator().manual_seed(n)) for n in numbers]
        inputs = torch.stack(draws)
        for row, number in enumerate(numbers):
            if number in self.config.poison:
                inputs[row] = math.nan
        return inputs, inputs.cumsum(1)[:, :2]

    def loss(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, float]]:
        inputs, target = batch
        error = (self.model(inputs) - target).square().mean()
        return error, {"size": float(len(inputs))}

    def export(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: p.detach().contiguous() for name, p in self.model.named_parameters()}
        save_file(weights, folder / "model.safetensors")


def run(config: TinyConfig, **options: Any) -> list[dict[str, float]]:
    """Train; the log lines."""
    return list(train(TinyTask(config), config, **options))


def main(files: list[str]) -> None:
    """Train one configuration after another, each with an engine of its own."""
    for file in files:
        settings = TinyConfig.model_validate_json(Path(file).read_text())
        for line in train(TinyTask(settings), settings):
            print(json.dumps({"run": str(settings.log_dir), **line}), flush=True)
        AcceleratorState._reset_state(reset_partial_state=True)  # it keeps the engine's settings


if __name__ == "__main__":
    code = 0
    try:
        main(sys.argv[1:])
    except TrainingStopped as stopped:
        print(stopped, file=sys.stderr, flush=True)
        code = stopped.code
    exit_process(code)
