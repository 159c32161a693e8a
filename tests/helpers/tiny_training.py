"""Trainings of the tiny task: in this process, and in two that torchrun starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from helpers.program import TIMEOUT, free_port
from helpers.tiny_task import TinyConfig

WORKER = Path(__file__).parent / "tiny_task.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
SHARED = {"num_steps": 8, "batch_size": 8, "lr": 1e-2, "warmup_steps": 2, "log_interval": 1}
ZERO = {"zero_optimization": {"stage": 2}, "gradient_clipping": "auto"}


def config(folder: Path, **settings: Any) -> TinyConfig:
    """Eight steps with a log line each; the run is in `folder`."""
    return TinyConfig(log_dir=folder / "run", **{**SHARED, **settings})


def checkpointed(folder: Path, **settings: Any) -> TinyConfig:
    """Twelve steps of four samples, with a checkpoint after every second step."""
    return config(folder, **{"num_steps": 12, "batch_size": 4, "save_ckp_interval": 2, **settings})


def launch(*wanted: TinyConfig) -> list[list[dict[str, float]]]:
    """Train all of them, one after another, in the same two processes; each one's log lines."""
    files = [each.log_dir.with_suffix(".json") for each in wanted]
    for each, file in zip(wanted, files, strict=True):
        file.parent.mkdir(exist_ok=True)
        file.write_text(each.model_dump_json())
    done = subprocess.run(
        [*TORCHRUN, str(free_port()), str(WORKER), *map(str, files)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    workers, _, _ = done.stderr.partition("torch/distributed/run.py")  # torchrun's own traceback
    assert done.returncode == 0, workers
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return [[line for line in lines if line["run"] == str(each.log_dir)] for each in wanted]


def curve(lines: list[dict[str, float]]) -> dict[float, list[float]]:
    """Loss and gradient norm by step: the figures that do not depend on a clock."""
    return {line["step"]: [line.get("loss", 0), line.get("grad_norm", 0)] for line in lines}


def zero(folder: Path, **settings: Any) -> Path:
    """A DeepSpeed JSON of ZeRO stage 2 with these settings."""
    file = folder / "zero.json"
    file.write_text(json.dumps({**ZERO, **settings}))
    return file
