"""torch's devices: selection, precision, memory, and messages about unsupported operations."""

from __future__ import annotations

import os
import re
import resource
import sys
from typing import TYPE_CHECKING, Any, Final

from demo_t2v.core.errors import UserError
from demo_t2v.core.launch import local_rank, world_size

if TYPE_CHECKING:
    import torch

SHARED_MEMORY: Final = ("cpu", "mps")
"""Kinds of devices without memory of their own."""

_UNSUPPORTED: Final = (
    r"operator '(?P<what>[\w:.]+)' is not currently \w+ \w+ the (?P<kind>\w+) device",
    r"Could not run '(?P<what>[\w:.]+)' with arguments from the '(?P<kind>[A-Za-z]+)",
    r"(?P<what>\w+) is not (?:currently |yet )?\w+ed (?:on|for) (?P<kind>MPS|XPU|HPU|MTIA|CUDA)\b",
    r"Cannot convert a (?P<kind>\w+) Tensor to (?P<what>\w+) dtype",
)
_UNSUPPORTED_DTYPE: Final = r"\"(?P<what>\w+)\" not implemented for '(?P<dtype>\w+)'"
_DTYPES: Final = {"Half": "float16", "BFloat16": "bfloat16", "Float": "float32"}


class DeviceError(UserError):
    """A device that is not available, or that does not support an operation or a precision."""


def resolve_device(device: str, dtype: str) -> tuple[str, str]:
    """The device (`cpu`, `cuda:0`) and the precision (`float16`) for two configured names.

    `device` auto is the accelerator that torch finds, else the CPU. An accelerator without a number
    gets one from the local rank of this process. `dtype` auto is float16 on an accelerator, float32
    on the CPU. Raises DeviceError.
    """
    accelerator = _accelerator()
    if device == "auto":
        device = accelerator or "cpu"
    kind, _, number = device.partition(":")
    count = _count(kind)
    if not count or int(number or 0) >= count:
        numbers = range(_count(accelerator)) if accelerator else ()
        available = ["cpu", *(f"{accelerator}:{number}" for number in numbers)]
        raise DeviceError(f"device {device}: is not available; use {', '.join(available)}")
    if dtype == "auto":
        dtype = "float32" if kind == "cpu" else "float16"
    if kind == "cpu":
        return kind, dtype
    return f"{kind}:{number or local_rank() % count}", dtype


def process_device() -> str:
    """The default device of this process: an accelerator with its number, else `cpu`."""
    return resolve_device("auto", "auto")[0]


def use_process_device() -> None:
    """Make the accelerator of this process torch's current one."""
    import torch

    device = torch.device(process_device())
    if device.index and torch.accelerator.current_device_index() != device.index:
        torch.accelerator.set_device_index(device.index)


def trains_on_cpu() -> bool:
    """Whether a training runs on the CPU. torch has no distributed backend for MPS."""
    kind = process_device().partition(":")[0]
    return kind == "cpu" or (kind == "mps" and world_size() > 1)


def check_dtype(device: str, dtype: str) -> None:
    """Multiply two small matrices. Raises DeviceError if the device does not support `dtype`."""
    import torch

    try:
        ones = torch.ones(2, 2, dtype=getattr(torch, dtype)).to(device)
        (ones @ ones).cpu()
    except (AssertionError, RuntimeError, TypeError) as error:
        reason = str(as_device_error(error) or str(error).strip().partition("\n")[0])
        problem = f"does not compute in {dtype} ({reason})"
        raise DeviceError(f"device {device}: {problem}; use another --dtype or --device") from None


def name_and_memory(device: str) -> tuple[str, int]:
    """The name of a device, and its memory in bytes."""
    import torch

    module: Any = torch.get_device_module(device)
    if hasattr(module, "get_device_properties"):
        properties = module.get_device_properties(device)
        return str(properties.name), int(properties.total_memory)
    if hasattr(module, "recommended_max_memory"):  # MPS: a fraction of the computer's memory
        return "Apple GPU", int(module.recommended_max_memory())
    return "CPU", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def peak_memory(device: torch.device) -> int:
    """Peak memory of this process in bytes: of the accelerator if it counts, else of the CPU."""
    import torch

    module = torch.get_device_module(device)
    if hasattr(module, "max_memory_allocated"):
        return int(module.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts in bytes, Linux in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def free_memory() -> None:
    """Empty torch's cache of accelerator memory."""
    import torch

    if torch.accelerator.is_available():
        torch.get_device_module(torch.accelerator.current_accelerator()).empty_cache()


def as_device_error(error: BaseException) -> DeviceError | None:
    """The DeviceError for torch's error about an unsupported operation; None for other errors."""
    text = str(error)
    if found := re.search(_UNSUPPORTED_DTYPE, text):
        dtype = _DTYPES.get(found["dtype"], found["dtype"].lower())
        return DeviceError(
            f"the operation {found['what']} does not support {dtype} on this device; "
            "use --dtype float32, or another --device"
        )
    for pattern in _UNSUPPORTED:
        if found := re.search(pattern, text):
            kind = found["kind"].lower()
            remedy = "use another --device"
            if kind == "mps":
                remedy += ", or set PYTORCH_ENABLE_MPS_FALLBACK=1 to compute it on the CPU"
            return DeviceError(f"device {kind}: has no {found['what']}; {remedy}")
    return None


def _accelerator() -> str | None:
    """The kind of accelerator that torch finds."""
    import torch  # slow to import

    found = torch.accelerator.is_available() and torch.accelerator.current_accelerator()
    return found.type if found else None


def _count(kind: str) -> int:
    """Number of available devices of a kind."""
    import torch

    if kind == "cpu":
        return 1
    try:
        module: Any = torch.get_device_module(kind)
    except RuntimeError:  # unknown to torch, or without computation, such as meta
        return 0
    return int(module.device_count()) if module.is_available() else 0
