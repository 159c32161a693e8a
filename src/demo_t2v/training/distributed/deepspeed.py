"""The engine for DeepSpeed's ZeRO."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from torch import Tensor
from torch.distributed import get_default_backend_for_device

from demo_t2v.config import ConfigError
from demo_t2v.core.devices import process_device
from demo_t2v.core.launch import set_default_environment, world_size
from demo_t2v.training.config import TrainConfig
from demo_t2v.training.distributed.base import Engine
from demo_t2v.training.distributed.deepspeed_config import Schedule, complete_settings
from demo_t2v.training.distributed.model_weights import (
    materialise,
    named_weights,
    trained_parameters,
)
from demo_t2v.training.optimizers import make_average, make_optimizer
from demo_t2v.training.task import Task

TAG: Final = "deepspeed"
"""DeepSpeed's folder in a checkpoint."""


def make_deepspeed_engine(task: Task, config: TrainConfig) -> Engine:
    """Join DeepSpeed's process group and make the engine. Raises ConfigError."""
    try:
        import deepspeed  # noqa: F401
    except ImportError:
        raise ConfigError(
            "deepspeed_config needs DeepSpeed: pip install 'demo-t2v[train,deepspeed]'"
        ) from None
    from accelerate import Accelerator, DeepSpeedPlugin
    from accelerate.utils import InitProcessGroupKwargs

    if config.fsdp:
        raise ConfigError("fsdp and deepspeed_config: both shard the model; choose one")
    if config.optimizer == "muon":
        raise ConfigError(
            "optimizer: muon needs full matrices, but DeepSpeed shards them; write adamw"
        )
    settings, schedule = complete_settings(config, world_size())
    stage = settings["zero_optimization"]["stage"]
    if stage == 3 and config.ema_decay is not None:
        raise ConfigError("ema_decay: does not work with ZeRO stage 3; write ema_decay: null")
    set_default_environment()
    os.environ.pop("ACCELERATE_USE_CPU", None)  # it would disable DeepSpeed
    backend = get_default_backend_for_device(process_device())
    accelerator = Accelerator(
        deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=settings),
        gradient_accumulation_steps=config.gradient_accumulation,
        mixed_precision=config.mixed_precision,
        kwargs_handlers=[InitProcessGroupKwargs(backend=backend)],
    )
    return DeepSpeedEngine(task, config, accelerator, stage, schedule)


class DeepSpeedEngine(Engine):
    """Several processes that shard the optimizer state (ZeRO-1), gradients (2) and weights (3)."""

    def __init__(
        self,
        task: Task,
        config: TrainConfig,
        accelerator: Any,
        stage: int,
        schedule: Schedule | None,
    ) -> None:
        super().__init__(task, config, accelerator)
        self.kind = f"ZeRO stage {stage}"
        self.stage = stage
        self.schedule = schedule

    def wrap(self) -> None:
        self.task.model.to(self.device)
        self.parameters = dict(trained_parameters(self.task.model))
        self.average = make_average(self.parameters, self.config)  # before DeepSpeed rounds them
        groups = self.task.parameter_groups()
        optimizer = make_optimizer(self.task.model, groups, self.config)
        self.base_rates = [group["lr"] for group in optimizer.param_groups]
        self.module, self.optimizer = self.accelerator.prepare(self.loss_module, optimizer)
        self.module.train()

    def begin_step(self, step: int) -> None:
        super().begin_step(step)
        if self.schedule is not None:  # the JSON's scheduler replaces the YAML's
            factor, betas = self.schedule(step)
            for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
                group["lr"], group["betas"] = rate * factor, betas

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        self.module.set_gradient_accumulation_boundary(last)
        yield

    def backward(self, loss: Tensor) -> None:
        self.module.backward(loss)  # divides by the number of micro-batches

    def step(self) -> float | None:
        self.module.step()
        norm = float(self.module.get_global_grad_norm())
        if not self.module.was_step_applied() or not math.isfinite(norm):
            return None
        if self.average is not None:
            self.average.step(list(self.parameters.values()))
        return norm

    def zero_grad(self) -> None:
        sharded = self.module.optimizer
        if self.stage == 3:
            sharded._overflow_clean_up(sharded.loss_scale)  # resets the count of micro-batches
        else:  # as in DeepSpeed's step when gradients overflow
            sharded.zero_grad(set_to_none=True)
            if sharded.cpu_offload:
                sharded.reset_cpu_buffers()
            else:
                for group in sharded.averaged_gradients:
                    sharded.averaged_gradients[group] = None
                    sharded.all_grad_tensors[group] = None
            sharded.micro_step_id = -1

    def weights(self, frozen: bool = True) -> dict[str, Tensor]:
        from deepspeed.runtime.zero import GatheredParameters
        from deepspeed.utils import safe_get_full_fp32_param

        def full_weights() -> Iterator[tuple[str, Tensor]]:
            for name, weight in named_weights(self.task.model, frozen):
                if name in self.parameters:
                    yield name, safe_get_full_fp32_param(weight)
                else:
                    with GatheredParameters([weight], enabled=self.stage == 3):
                        yield name, weight.detach().clone()

        return self._gather(full_weights())

    def optimizer_state(self) -> dict[str, Tensor]:
        return {}  # see `save_extra_state`

    def save_extra_state(self, folder: Path) -> None:
        self.module.save_checkpoint(
            str(folder), tag=TAG, save_latest=False, exclude_frozen_parameters=True
        )

    def load_extra_state(self, folder: Path) -> None:
        self.module.load_checkpoint(str(folder), tag=TAG, load_module_strict=False)

    def _unwrap(self) -> None:
        self.module.destroy()
        materialise(self.task.model)
