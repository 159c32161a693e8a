"""The choice of the engine."""

from __future__ import annotations

import os

import torch

from demo_t2v.config import ConfigError
from demo_t2v.core.devices import trains_on_cpu
from demo_t2v.training.config import TrainConfig
from demo_t2v.training.distributed.base import Engine, ShardedEngine
from demo_t2v.training.distributed.deepspeed import make_deepspeed_engine
from demo_t2v.training.task import Task


def make_engine(task: Task, config: TrainConfig) -> Engine:
    """Join the process group, where a launcher started several processes, and make the engine.

    Raises ConfigError for a missing package and for settings that exclude each other.
    """
    try:
        from accelerate import Accelerator
    except ImportError:
        raise ConfigError("training needs accelerate: pip install 'demo-t2v[train]'") from None
    for name in ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"):
        os.environ.pop(name, None)  # the YAML chooses the engine, not the launcher
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.mixed_precision == "fp16" and trains_on_cpu():
        raise ConfigError("mixed_precision: fp16 needs a GPU; write bf16 or no")
    if config.deepspeed_config is not None:
        return make_deepspeed_engine(task, config)
    accelerator = Accelerator(cpu=trains_on_cpu(), mixed_precision="no")
    if not config.fsdp or accelerator.num_processes == 1:
        return Engine(task, config, accelerator)
    if config.optimizer == "muon":
        raise ConfigError("optimizer: muon needs full matrices, but fsdp shards them; write adamw")
    if config.mixed_precision == "fp16":
        raise ConfigError("mixed_precision: fp16 does not work with fsdp; write bf16 or no")
    return ShardedEngine(task, config, accelerator)
