"""DeepSpeed's ZeRO as an engine, and what its JSON may say beside the training's YAML."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from demo_t2v.config import ConfigError, read_json
from demo_t2v.launch import as_if_launched, world_size
from demo_t2v.training.config import TrainConfig
from demo_t2v.training.engine import Engine, Task, micro_batch_size
from demo_t2v.training.optimizers import make_average, make_optimizer
from demo_t2v.training.placement import materialise, named_weights, trained

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
    settings = read_settings(config, world_size())
    stage = settings["zero_optimization"]["stage"]
    if stage == 3 and config.ema_decay is not None:
        raise ConfigError("ema_decay: does not go with ZeRO stage 3; write ema_decay: null")
    as_if_launched()
    os.environ.pop("ACCELERATE_USE_CPU", None)  # it would leave DeepSpeed out
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    accelerator = Accelerator(
        deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=settings),
        gradient_accumulation_steps=config.gradient_accumulation,
        mixed_precision=config.mixed_precision,
        kwargs_handlers=[InitProcessGroupKwargs(backend=backend)],
    )
    return ZeroEngine(task, config, accelerator, stage)


class ZeroEngine(Engine):
    """Several processes that share optimizer (ZeRO-1), gradients (2) and weights (3)."""

    def __init__(self, task: Task, config: TrainConfig, accelerator: Any, stage: int) -> None:
        super().__init__(task, config, accelerator)
        self.kind = f"ZeRO stage {stage}"
        self.stage = stage

    def wrap(self) -> None:
        self.task.model.to(self.device)
        self.parameters = dict(trained(self.task.model))
        self.average = make_average(self.parameters, self.config)  # before they lose precision
        groups = self.task.parameter_groups()
        optimizer = make_optimizer(self.task.model, groups, self.config)
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.module, self.optimizer = self.accelerator.prepare(self.objective, optimizer)
        self.module.train()

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


def read_settings(config: TrainConfig, world: int) -> dict[str, Any]:
    """DeepSpeed's settings from `config.deepspeed_config`, complete, for so many processes.

    What the YAML says already may be left out there, be "auto", or be the same. Raises ConfigError
    where it is something else.
    """
    file = config.deepspeed_config
    assert file is not None
    settings = read_json(file)
    zero = settings.get("zero_optimization") if isinstance(settings, dict) else None
    if not isinstance(zero, dict) or zero.get("stage") not in (1, 2, 3):
        raise ConfigError(f"{file}: zero_optimization.stage should be 1, 2 or 3")
    for key in ("optimizer", "scheduler"):
        if key in settings:
            raise ConfigError(f"{file}: {key} is set by the training's YAML; leave it out here")
    accumulation, size = config.gradient_accumulation, config.batch_size
    known = {
        "train_batch_size": (size, f"batch_size is {size}"),
        "gradient_accumulation_steps": (accumulation, f"gradient_accumulation is {accumulation}"),
        "train_micro_batch_size_per_gpu": (
            micro_batch_size(config, world),
            f"batch_size {size} / {world} process(es) / gradient_accumulation {accumulation}",
        ),
        "gradient_clipping": (config.grad_clip, f"grad_clip is {config.grad_clip}"),
        "bf16.enabled": (config.mixed_precision == "bf16", "see mixed_precision"),
        "fp16.enabled": (config.mixed_precision == "fp16", "see mixed_precision"),
    }
    for key, (right, why) in known.items():
        section, _, name = key.rpartition(".")
        place = settings.setdefault(section, {}) if section else settings
        if place.get(name, "auto") not in ("auto", right):
            raise ConfigError(
                f"{file}: {key} is {json.dumps(place[name])}, but it should be "
                f'{json.dumps(right)} as in the training\'s YAML ({why}); write "auto"'
            )
        place[name] = right
    complete: dict[str, Any] = settings
    return complete
