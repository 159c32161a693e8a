"""DeepSpeed's ZeRO as an engine."""

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
from demo_t2v.core.devices import own
from demo_t2v.core.launch import as_if_launched, world_size
from demo_t2v.training.config import TrainConfig
from demo_t2v.training.distributed.base import Engine, Task
from demo_t2v.training.distributed.deepspeed_config import Rates, read_settings
from demo_t2v.training.distributed.model_weights import materialise, named_weights, trained
from demo_t2v.training.optimizers import make_average, make_optimizer

TAG: Final = "deepspeed"
"""The folder in a checkpoint that DeepSpeed writes and reads."""


def make_zero_engine(task: Task, config: TrainConfig) -> Engine:
    """Join the other processes under DeepSpeed. Raises ConfigError, as `make_engine` does."""
    try:
        import deepspeed  # noqa: F401
    except ImportError:
        raise ConfigError(
            "deepspeed_config needs DeepSpeed: pip install 'demo-t2v[train,deepspeed]'"
        ) from None
    from accelerate import Accelerator, DeepSpeedPlugin
    from accelerate.utils import InitProcessGroupKwargs

    if config.fsdp:
        raise ConfigError("fsdp and deepspeed_config: two ways to share one model; choose one")
    if config.optimizer == "muon":
        raise ConfigError("optimizer: muon needs whole matrices, DeepSpeed cuts them; write adamw")
    settings, rates = read_settings(config, world_size())
    stage = settings["zero_optimization"]["stage"]
    if stage == 3 and config.ema_decay is not None:
        raise ConfigError("ema_decay: does not go with ZeRO stage 3; write ema_decay: null")
    as_if_launched()
    os.environ.pop("ACCELERATE_USE_CPU", None)  # it would leave DeepSpeed out
    backend = get_default_backend_for_device(own())
    accelerator = Accelerator(
        deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=settings),
        gradient_accumulation_steps=config.gradient_accumulation,
        mixed_precision=config.mixed_precision,
        kwargs_handlers=[InitProcessGroupKwargs(backend=backend)],
    )
    return ZeroEngine(task, config, accelerator, stage, rates)


class ZeroEngine(Engine):
    """Several processes that share optimizer (ZeRO-1), gradients (2) and weights (3)."""

    def __init__(
        self,
        task: Task,
        config: TrainConfig,
        accelerator: Any,
        stage: int,
        rates: Rates | None,
    ) -> None:
        super().__init__(task, config, accelerator)
        self.kind = f"ZeRO stage {stage}"
        self.stage = stage
        self.rates_of = rates

    def wrap(self) -> None:
        self.task.model.to(self.device)
        self.parameters = dict(trained(self.task.model))
        self.average = make_average(self.parameters, self.config)  # before they lose precision
        groups = self.task.parameter_groups()
        optimizer = make_optimizer(self.task.model, groups, self.config)
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.module, self.optimizer = self.accelerator.prepare(self.objective, optimizer)
        self.module.train()

    def begin(self, step: int) -> None:
        super().begin(step)
        if self.rates_of is not None:  # the JSON's scheduler instead of the YAML's
            factor, betas = self.rates_of(step)
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"], group["betas"] = rate * factor, betas

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        self.module.set_gradient_accumulation_boundary(last)
        yield

    def backward(self, loss: Tensor) -> None:
        self.module.backward(loss)  # divides by the accumulation itself

    def step(self) -> float | None:
        self.module.step()
        norm = float(self.module.get_global_grad_norm())
        if not self.module.was_step_applied() or not math.isfinite(norm):
            return None
        if self.average is not None:
            self.average.step(list(self.parameters.values()))
        return norm

    def discard(self) -> None:
        shared = self.module.optimizer
        if self.stage == 3:
            shared._overflow_clean_up(shared.loss_scale)  # counts micro-batches anew, from 0
        else:  # what its own step does when gradients overflow
            shared.zero_grad(set_to_none=True)
            if shared.cpu_offload:
                shared.reset_cpu_buffers()
            else:
                for group in shared.averaged_gradients:
                    shared.averaged_gradients[group] = None
                    shared.all_grad_tensors[group] = None
            shared.micro_step_id = -1

    def weights(self, frozen: bool = True) -> dict[str, Tensor]:
        from deepspeed.runtime.zero import GatheredParameters
        from deepspeed.utils import safe_get_full_fp32_param

        def entire() -> Iterator[tuple[str, Tensor]]:
            for name, weight in named_weights(self.task.model, frozen):
                if name in self.parameters:
                    yield name, safe_get_full_fp32_param(weight)
                else:
                    with GatheredParameters([weight], enabled=self.stage == 3):
                        yield name, weight.detach().clone()

        return self._gather(entire())

    def optimizer_state(self) -> dict[str, Tensor]:
        return {}  # it writes its own

    def save_own(self, folder: Path) -> None:
        self.module.save_checkpoint(
            str(folder), tag=TAG, save_latest=False, exclude_frozen_parameters=True
        )

    def load_own(self, folder: Path) -> None:
        self.module.load_checkpoint(str(folder), tag=TAG, load_module_strict=False)

    def _unwrap(self) -> None:
        self.module.destroy()
        materialise(self.task.model)
