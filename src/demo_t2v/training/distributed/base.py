"""Engines for the training step: one process, DDP and FSDP2.

`deepspeed` has the engine for ZeRO, `engines` chooses one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from demo_t2v.config import ConfigError
from demo_t2v.training.config import TrainConfig
from demo_t2v.training.distributed.model_weights import (
    checkpoint_activations,
    full_tensor,
    load_weights,
    match_layout,
    materialise,
    named_weights,
    to_device,
    trained_parameters,
)
from demo_t2v.training.optimizers import make_average, make_optimizer, rate_factor
from demo_t2v.training.task import Task

if TYPE_CHECKING:
    from accelerate import Accelerator

PRECISIONS: Final = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
SHARD_FROM: Final = 1_000_000
"""Number of parameters from which a layer is sharded, and gathered, as a unit of its own."""


class TrainingStopped(Exception):  # noqa: N818 - mostly on request
    """The run ended before its last step; `code` is the program's exit code.

    The message is empty in all processes but the main one.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class LossModule(nn.Module):
    """A task's loss as a module's forward pass; distributed training wraps this module."""

    def __init__(self, task: Task, device: torch.device, precision: torch.dtype | None) -> None:
        super().__init__()
        self.model = task.model
        self._task = task
        self._device = device.type
        self._precision = precision

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, float]]:
        """The loss in float32; the network computes in the mixed precision."""
        mixed = self._precision is not None
        with torch.autocast(self._device, dtype=self._precision, enabled=mixed):
            loss, figures = self._task.loss(batch)
        return loss.float(), figures


class Engine:
    """One process, or several with a full copy of the model each (DDP).

    Call `wrap` after loading the weights and before all other methods. Methods marked
    "Collective" must be called by every process.
    """

    kind = "torch"
    """Format of the optimizer's state in a checkpoint."""

    def __init__(self, task: Task, config: TrainConfig, accelerator: Accelerator) -> None:
        self.task, self.config, self.accelerator = task, config, accelerator
        self.rank: int = accelerator.process_index
        self.world: int = accelerator.num_processes
        self.main: bool = accelerator.is_main_process
        self.device: torch.device = accelerator.device
        self.micro_batch_size = micro_batch_size(config, self.world)
        if config.gradient_checkpointing:
            checkpoint_activations(task.model)
        self.loss_module = LossModule(task, self.device, PRECISIONS[config.mixed_precision])
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=config.mixed_precision == "fp16"
        )

    def wrap(self) -> None:
        """Distribute the loss module and make the optimizer. Collective."""
        self.task.model.to(self.device)
        self.module: Any = self.accelerator.prepare_model(self.loss_module).train()
        self._make_optimizer()

    def _make_optimizer(self) -> None:
        """Make the optimizer and the average for the parameters, which `wrap` may replace."""
        self.optimizer: Any = make_optimizer(
            self.task.model, self.task.parameter_groups(), self.config
        )
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.parameters = dict(trained_parameters(self.task.model))
        self.average = make_average(self.parameters, self.config)

    def begin_step(self, step: int) -> None:
        """Set the step's learning rates and seed torch's random generator."""
        torch.manual_seed((self.config.seed * 1_000_003 + step) * self.world + self.rank)
        factor = rate_factor(self.config, step)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor

    def learning_rates(self) -> dict[str, float]:
        """The current learning rates by name."""
        return {g.get("rate", "lr"): float(g["lr"]) for g in self.optimizer.param_groups}

    def micro_batches(self, position: int) -> Iterator[tuple[range, bool]]:
        """This process's sample numbers of the step that begins at sample `position`: a range for
        each micro-batch, and whether it is the step's last one.
        """
        size = self.micro_batch_size
        numbers = range(position + self.rank, position + self.config.batch_size, self.world)
        for start in range(0, len(numbers), size):
            yield numbers[start : start + size], start + size == len(numbers)

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        """Context of a micro-batch's forward and backward pass; the last one reduces gradients."""
        with nullcontext() if last else self.accelerator.no_sync(self.module):
            yield

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, float]]:
        """The task's loss of a batch, which is moved to this process's device."""
        loss, figures = self.module(to_device(batch, self.device))
        return loss, figures

    def backward(self, loss: Tensor) -> None:
        """Add a micro-batch's gradients."""
        scaled = self.scaler.scale(loss / self.config.gradient_accumulation)
        scaled.backward()  # type: ignore[no-untyped-call]

    def step(self) -> float | None:
        """Update the weights. Returns the gradients' norm, or None if it is not finite and the
        weights were not changed. Collective.
        """
        self.scaler.unscale_(self.optimizer)
        weights = list(self.parameters.values())
        norm = float(full_tensor(nn.utils.clip_grad_norm_(weights, self.config.grad_clip)))
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)  # skips the step on overflow
            self.scaler.update()
        elif math.isfinite(norm):
            self.optimizer.step()
        self.zero_grad()
        if not math.isfinite(norm):
            return None
        if self.average is not None:
            self.average.step(weights)
        return norm

    def zero_grad(self) -> None:
        """Discard the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def mean(self, *values: Tensor | float) -> list[float]:
        """The mean of each value over the processes. Collective."""
        stacked = torch.stack([torch.as_tensor(v, device=self.device).float() for v in values])
        means: list[float] = self.accelerator.reduce(stacked.detach(), "mean").tolist()
        return means

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process. Collective."""
        return self.mean(float(flag))[0] > 0

    def stopped(self, message: str, code: int) -> TrainingStopped:
        """The exception that every process raises to end the run."""
        return TrainingStopped(message if self.main else "", code)

    def weights(self, frozen: bool = True) -> dict[str, Tensor]:
        """Full weights by name in the main process, an empty dict in others. Collective."""
        return self._gather(named_weights(self.task.model, frozen))

    def average_weights(self) -> dict[str, Tensor]:
        """The averaged weights, as `weights`; empty without an average. Collective."""
        if self.average is None:
            return {}
        return self._gather(zip(self.parameters, self.average.shadow_params, strict=True))

    def optimizer_state(self) -> dict[str, Tensor]:
        """The optimizer's state as `<parameter>.<key>`, as `weights`. Collective."""
        return self._gather(
            (f"{name}.{key}", value)
            for name, weight in self.parameters.items()
            for key, value in self.optimizer.state.get(weight, {}).items()
        )

    def save_extra_state(self, folder: Path) -> None:
        """Write state in a format of the engine. Collective."""

    def load_extra_state(self, folder: Path) -> None:
        """Read what `save_extra_state` wrote with the same number of processes. Collective."""

    def load_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        """Load what `optimizer_state` returned, with any number of processes.

        Raises ConfigError for the state of a parameter that is not trained.
        """
        for full_name, tensor in tensors.items():
            name, _, key = full_name.rpartition(".")
            if name not in self.parameters:
                raise ConfigError(f"the checkpoint's optimizer trained {name}, which is frozen now")
            weight = self.parameters[name]
            value = match_layout(weight, tensor) if tensor.shape == weight.shape else tensor
            self.optimizer.state[weight][key] = value

    def load_average(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Load what `average_weights` returned after that many steps of averaging."""
        if self.average is not None:
            self.average.optimization_step = steps
            shadows = zip(self.parameters, self.average.shadow_params, strict=True)
            for name, shadow in shadows:
                shadow.copy_(match_layout(shadow, tensors[name]))

    def finish(self) -> None:
        """Load the full averaged weights into the main process's model, for the export. The engine
        cannot train afterwards. Collective.
        """
        final = self.weights() | self.average_weights()
        self._unwrap()
        if self.main:
            load_weights(self.task.model, final)
        self.task.model.eval().cpu()

    def _unwrap(self) -> None:
        """Turn the model into a plain one; its weights are set afterwards."""

    def _gather(self, named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """Full tensors by name on the CPU of the main process. Collective.

        torch's `get_optimizer_state_dict` takes an optimizer step where state is missing, renames
        the keys and holds all tensors at once; here one tensor at a time is on the device.
        """
        tensors = {}
        for name, tensor in named:
            full = full_tensor(tensor)
            if self.main:
                tensors[name] = full.cpu()
        return tensors


class ShardedEngine(Engine):
    """Several processes with a shard of weights, gradients and optimizer state each (FSDP2)."""

    def wrap(self) -> None:
        model = self.task.model.to(self.device)
        mesh = init_device_mesh(self.device.type, (self.world,))
        # Only leaf layers are sharded: a block's own weights are full only during its forward
        # pass, but keys and values are computed by calls from outside.
        for layer in [module for module in model.modules() if not any(module.children())]:
            if sum(p.numel() for p in layer.parameters()) >= SHARD_FROM:
                fully_shard(layer, mesh=mesh)
        fully_shard(self.loss_module.train(), mesh=mesh)
        self.module = self.loss_module
        self._make_optimizer()

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:  # noqa: ARG002
        yield  # every micro-batch reduces its gradients: unreduced ones could not be discarded

    def _unwrap(self) -> None:
        for module in self.loss_module.modules():
            if isinstance(module, FSDPModule):
                module.__class__ = type(module).__bases__[1]  # the class before `fully_shard`
                module._forward_pre_hooks.clear()
                module._forward_hooks.clear()
        materialise(self.task.model)


def micro_batch_size(config: TrainConfig, world: int) -> int:
    """Samples in one micro-batch of one of `world` processes. Raises ConfigError."""
    size, rest = divmod(config.batch_size, world * config.gradient_accumulation)
    if rest:
        raise ConfigError(
            f"batch_size: {config.batch_size} clips cannot be divided evenly among "
            f"{world} process(es) x gradient_accumulation {config.gradient_accumulation}"
        )
    return size
