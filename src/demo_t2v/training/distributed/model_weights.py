"""A model's weights by name, on one device or sharded over several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from demo_t2v.config import ConfigError


def named_weights(model: nn.Module, frozen: bool = True) -> Iterator[tuple[str, Tensor]]:
    """Parameters and persistent buffers by name, each once; without frozen ones if `frozen` is
    False.
    """
    yield from ((n, p) for n, p in model.named_parameters() if frozen or p.requires_grad)
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(prefix, recurse=False):
            if name.rpartition(".")[2] not in module._non_persistent_buffers_set:
                yield name, buffer


def trained_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters with `requires_grad`, by name."""
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)


@torch.no_grad()
def load_weights(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Set the weights in `tensors` of a plain model, in place."""
    for name, weight in named_weights(model):
        if name in tensors:
            weight.copy_(tensors[name])


def full_tensor(tensor: Tensor) -> Tensor:
    """The unsharded tensor on its device. Every process with a shard must call it."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def match_layout(weight: Tensor, tensor: Tensor) -> Tensor:
    """The values of `tensor` with the layout, the device and the sharding of `weight`."""
    if isinstance(weight, DTensor):
        tensor = tensor.to(weight.device, weight.dtype)
        return distribute_tensor(tensor, weight.device_mesh, weight.placements)
    return torch.empty_like(weight, requires_grad=False).copy_(tensor)


def materialise(model: nn.Module) -> None:
    """Replace every parameter by an uninitialised float32 one of its shape on the CPU."""
    plain: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is None:
                continue
            if id(weight) not in plain:
                shape = getattr(weight, "ds_shape", weight.shape)  # `shape` is empty under ZeRO-3
                plain[id(weight)] = nn.Parameter(torch.empty(shape), weight.requires_grad)
            module._parameters[name] = plain[id(weight)]


def to_device(batch: Any, device: torch.device) -> Any:
    """The batch with its tensors (in tuples, lists, dicts, dataclasses) on `device`."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, tuple | list):
        return type(batch)(to_device(value, device) for value in batch)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if is_dataclass(batch) and not isinstance(batch, type):
        moved = {f.name: to_device(getattr(batch, f.name), device) for f in fields(batch)}
        return replace(batch, **moved)
    return batch


def checkpoint_activations(model: nn.Module) -> None:
    """Make the networks in `model` recompute activations in the backward pass.

    Raises ConfigError if none of them supports it.
    """
    found = False
    for module in model.modules():
        if getattr(module, "_supports_gradient_checkpointing", False):  # diffusers
            module.enable_gradient_checkpointing()  # type: ignore[operator]
        elif getattr(module, "supports_gradient_checkpointing", False):  # transformers
            module.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        else:
            continue
        found = True
    if not found:
        raise ConfigError("gradient_checkpointing: this network does not support it; leave it out")
