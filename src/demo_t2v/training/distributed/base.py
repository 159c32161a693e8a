"""Where a step is computed: in one process, in several by DDP, or sharded over them by FSDP2.

The loop speaks to an engine and knows none of them. DeepSpeed's engine is in `zero`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from demo_t2v.config import ConfigError
from demo_t2v.core.devices import trains_on_cpu
from demo_t2v.training.config import TrainConfig
from demo_t2v.training.distributed.model_weights import (
    checkpoint_activations,
    like,
    load_weights,
    materialise,
    named_weights,
    to_device,
    trained,
    whole,
)
from demo_t2v.training.optimizers import make_average, make_optimizer, rate_factor

if TYPE_CHECKING:
    from accelerate import Accelerator

    from demo_t2v.training.data.samples import ItemSource

PRECISIONS: Final = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
SHARD_FROM: Final = 1_000_000
"""Parameters that a part of the network must have to be sharded, and gathered, on its own."""


class Task(Protocol):
    """What one stage trains: a model, its data, its loss, and how the result is saved."""

    @property
    def model(self) -> nn.Module:
        """What is trained."""

    @property
    def items(self) -> ItemSource | None:
        """What `batch` reads its samples from, if it has a place in it to be remembered."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups as torch's optimizers take them; `lr` defaults to the configuration's, and the
        curve of it is called `lr` too unless `rate` says otherwise.
        """

    def batch(self, places: range) -> Any:
        """The samples with these numbers, counted from the run's beginning; the same each time."""

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, float]]:
        """The scalar to minimise and figures worth logging, the same ones in every process."""

    def export(self, folder: Path) -> None:
        """Save the trained weights as diffusers and transformers folders."""


class TrainingStopped(Exception):  # noqa: N818 - mostly as asked for
    """The run ended before its last step; `code` is for the program to exit with.

    The main process says why; the message of others is empty.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Objective(nn.Module):
    """A task's loss as a module's forward pass, which is what distributed training wraps."""

    def __init__(self, task: Task, device: torch.device, precision: torch.dtype | None) -> None:
        super().__init__()
        self.model = task.model
        self._task = task
        self._device = device.type
        self._precision = precision

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, float]]:
        """The loss in float32, its network computed in the mixed precision that was asked for."""
        mixed = self._precision is not None
        with torch.autocast(self._device, dtype=self._precision, enabled=mixed):
            loss, figures = self._task.loss(batch)
        return loss.float(), figures


class Engine:
    """One process, or several that each hold the whole model (DDP).

    `wrap` comes after the weights are loaded and before everything else. Methods that say
    "together" are called by every process or by none.
    """

    kind = "torch"
    """Who reads the optimizer's state in a checkpoint."""

    def __init__(self, task: Task, config: TrainConfig, accelerator: Accelerator) -> None:
        self.task, self.config, self.accelerator = task, config, accelerator
        self.rank: int = accelerator.process_index
        self.world: int = accelerator.num_processes
        self.main: bool = accelerator.is_main_process
        self.device: torch.device = accelerator.device
        self.share = micro_batch_size(config, self.world)
        if config.gradient_checkpointing:
            checkpoint_activations(task.model)
        self.objective = Objective(task, self.device, PRECISIONS[config.mixed_precision])
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=config.mixed_precision == "fp16"
        )

    def wrap(self) -> None:
        """Make the optimizer, and the module that computes the objective. Together."""
        self.task.model.to(self.device)
        self.module: Any = self.accelerator.prepare_model(self.objective).train()
        self._adopt()

    def _adopt(self) -> None:
        """Take up the model's parameters, as they are after wrapping: optimizer and average."""
        self.optimizer: Any = make_optimizer(
            self.task.model, self.task.parameter_groups(), self.config
        )
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.parameters = dict(trained(self.task.model))
        self.average = make_average(self.parameters, self.config)

    def begin(self, step: int) -> None:
        """Set the learning rates of this step, and seed all that is drawn by chance in it."""
        torch.manual_seed((self.config.seed * 1_000_003 + step) * self.world + self.rank)
        factor = rate_factor(self.config, step)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor

    def learning_rates(self) -> dict[str, float]:
        """The learning rates of this step, by name."""
        return {g.get("rate", "lr"): float(g["lr"]) for g in self.optimizer.param_groups}

    def micro_batches(self, position: int) -> Iterator[tuple[range, bool]]:
        """This process's samples of the step that begins at sample `position`, in micro-batches;
        and whether it is the step's last one.
        """
        places = range(position + self.rank, position + self.config.batch_size, self.world)
        for start in range(0, len(places), self.share):
            yield places[start : start + self.share], start + self.share == len(places)

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        """Round the forward and backward pass of one micro-batch; gradients meet in the last."""
        with nullcontext() if last else self.accelerator.no_sync(self.module):
            yield

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, float]]:
        """The task's loss for a batch, moved to this process's device."""
        loss, figures = self.module(to_device(batch, self.device))
        return loss, figures

    def backward(self, loss: Tensor) -> None:
        """Add a micro-batch's share to the gradients."""
        share = self.scaler.scale(loss / self.config.gradient_accumulation)
        share.backward()  # type: ignore[no-untyped-call]

    def step(self) -> float | None:
        """Move the weights by the gradients; the gradients' norm, or None if it is not finite and
        the weights stayed. Together.
        """
        self.scaler.unscale_(self.optimizer)
        weights = list(self.parameters.values())
        norm = float(whole(nn.utils.clip_grad_norm_(weights, self.config.grad_clip)))
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)  # skips, and tries a smaller scale, by itself
            self.scaler.update()
        elif math.isfinite(norm):
            self.optimizer.step()
        self.discard()
        if not math.isfinite(norm):
            return None
        if self.average is not None:
            self.average.step(weights)
        return norm

    def discard(self) -> None:
        """Forget the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def mean(self, *values: Tensor | float) -> list[float]:
        """The mean of each value over the processes. Together."""
        stacked = torch.stack([torch.as_tensor(v, device=self.device).float() for v in values])
        means: list[float] = self.accelerator.reduce(stacked.detach(), "mean").tolist()
        return means

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process. Together."""
        return self.mean(float(flag))[0] > 0

    def stopped(self, message: str, code: int) -> TrainingStopped:
        """What to raise, in every process, to end the run."""
        return TrainingStopped(message if self.main else "", code)

    def weights(self, frozen: bool = True) -> dict[str, Tensor]:
        """Weights by name, whole, in the main process; nothing in others. Together."""
        return self._gather(named_weights(self.task.model, frozen))

    def average_weights(self) -> dict[str, Tensor]:
        """The averaged weights, as `weights`; empty without an average. Together."""
        if self.average is None:
            return {}
        return self._gather(zip(self.parameters, self.average.shadow_params, strict=True))

    def optimizer_state(self) -> dict[str, Tensor]:
        """Each parameter's state as `<parameter>.<key>`, as `weights`. Together."""
        return self._gather(
            (f"{name}.{key}", value)
            for name, weight in self.parameters.items()
            for key, value in self.optimizer.state.get(weight, {}).items()
        )

    def save_own(self, folder: Path) -> None:
        """Write what is no tensor by name. Together."""

    def load_own(self, folder: Path) -> None:
        """Read what `save_own` wrote, by as many processes. Together."""

    def load_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up what `optimizer_state` gave, whatever the number of processes was.

        Raises ConfigError if it is the state of a parameter that is not trained.
        """
        for full_name, tensor in tensors.items():
            name, _, key = full_name.rpartition(".")
            if name not in self.parameters:
                raise ConfigError(f"the checkpoint's optimizer trained {name}, which is frozen now")
            weight = self.parameters[name]
            value = like(weight, tensor) if tensor.shape == weight.shape else tensor
            self.optimizer.state[weight][key] = value

    def load_average(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Take up what `average_weights` gave after so many steps of averaging."""
        if self.average is not None:
            self.average.optimization_step = steps
            shadows = zip(self.parameters, self.average.shadow_params, strict=True)
            for name, shadow in shadows:
                shadow.copy_(like(shadow, tensors[name]))

    def finish(self) -> None:
        """Leave the averaged weights, whole, in the main process's model, ready to be exported;
        nothing can be trained afterwards. Together.
        """
        final = self.weights() | self.average_weights()
        self._unwrap()
        if self.main:
            load_weights(self.task.model, final)
        self.task.model.eval().cpu()

    def _unwrap(self) -> None:
        """Turn the model back into a plain one; its weights are set afterwards."""

    def _gather(self, named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """Tensors by name, whole, on the CPU; other processes help, and keep none. Together."""
        tensors = {}
        for name, tensor in named:
            entire = whole(tensor)
            if self.main:
                tensors[name] = entire.cpu()
        return tensors


class ShardedEngine(Engine):
    """Several processes that each hold a share of weights, gradients and optimizer (FSDP2)."""

    def wrap(self) -> None:
        model = self.task.model.to(self.device)
        mesh = init_device_mesh(self.device.type, (self.world,))
        # Layers alone: a block's own weights would be whole only while the block is called, and
        # keys and values are asked of an attention from outside.
        for layer in [part for part in model.modules() if not any(part.children())]:
            if sum(p.numel() for p in layer.parameters()) >= SHARD_FROM:
                fully_shard(layer, mesh=mesh)
        fully_shard(self.objective.train(), mesh=mesh)
        self.module = self.objective  # what it is now
        self._adopt()

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:  # noqa: ARG002
        yield  # gradients meet in each: what waits unshared could not be discarded

    def _unwrap(self) -> None:
        for part in self.objective.modules():
            if isinstance(part, FSDPModule):
                part.__class__ = type(part).__bases__[1]  # as it was called before
                part._forward_pre_hooks.clear()
                part._forward_hooks.clear()
        materialise(self.task.model)


def micro_batch_size(config: TrainConfig, world: int) -> int:
    """Samples in one micro-batch of one of `world` processes. Raises ConfigError."""
    share, rest = divmod(config.batch_size, world * config.gradient_accumulation)
    if rest:
        raise ConfigError(
            f"batch_size: {config.batch_size} clips cannot be shared out evenly to "
            f"{world} process(es) x gradient_accumulation {config.gradient_accumulation}"
        )
    return share


def make_engine(task: Task, config: TrainConfig) -> Engine:
    """Join the other processes, if the program was started as several, and choose the engine.

    Raises ConfigError where a package is missing or what was asked for does not go together.
    """
    try:
        from accelerate import Accelerator
    except ImportError:
        raise ConfigError("training needs accelerate: pip install 'demo-t2v[train]'") from None
    for name in ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"):
        os.environ.pop(name, None)  # the YAML says which engine, not the launcher
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.mixed_precision == "fp16" and trains_on_cpu():
        raise ConfigError("mixed_precision: fp16 needs a GPU; write bf16 or no")
    if config.deepspeed_config is not None:
        from demo_t2v.training.distributed.deepspeed import make_zero_engine

        return make_zero_engine(task, config)
    accelerator = Accelerator(cpu=trains_on_cpu(), mixed_precision="no")
    if not config.fsdp or accelerator.num_processes == 1:
        return Engine(task, config, accelerator)
    if config.optimizer == "muon":
        raise ConfigError("optimizer: muon needs whole matrices, fsdp shards them; write adamw")
    if config.mixed_precision == "fp16":
        raise ConfigError("mixed_precision: fp16 does not go with fsdp; write bf16 or no")
    return ShardedEngine(task, config, accelerator)
