"""The devices that torch computes on: which there are, what they hold, what they lack."""

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
"""Kinds of devices that compute in the computer's own memory."""

_LACKING: Final = (
    r"operator '(?P<what>[\w:.]+)' is not currently \w+ \w+ the (?P<kind>\w+) device",
    r"Could not run '(?P<what>[\w:.]+)' with arguments from the '(?P<kind>[A-Za-z]+)",
    r"(?P<what>\w+) is not (?:currently |yet )?\w+ed (?:on|for) (?P<kind>MPS|XPU|HPU|MTIA|CUDA)\b",
    r"Cannot convert a (?P<kind>\w+) Tensor to (?P<what>\w+) dtype",
)
_LACKING_DTYPE: Final = r"\"(?P<what>\w+)\" not implemented for '(?P<dtype>\w+)'"
_DTYPES: Final = {"Half": "float16", "BFloat16": "bfloat16", "Float": "float32"}


class DeviceError(UserError):
    """A device that is not there, or does not compute what it should; one line for a person."""


def settle(device: str, dtype: str) -> tuple[str, str]:
    """The device, `cpu` or as `cuda:0`, and the precision that two names mean in this process.

    `device` auto is the accelerator that torch finds, else the CPU. A kind of accelerator without a
    number is the one that is this process's among those of its machine. `dtype` auto is float16 on
    an accelerator, float32 on the CPU. Raises DeviceError.
    """
    import torch  # which the command line loads late

    if device == "auto":
        found = torch.accelerator.is_available() and torch.accelerator.current_accelerator()
        device = found.type if found else "cpu"
    kind, _, number = device.partition(":")
    count = _count(kind)
    if not count or int(number or 0) >= count:
        there = ["cpu", *(f"{name}:{n}" for name in _accelerators() for n in range(_count(name)))]
        raise DeviceError(f"device {device}: is not here; there is {', '.join(there)}")
    if dtype == "auto":
        dtype = "float32" if kind == "cpu" else "float16"
    if kind == "cpu":
        return kind, dtype
    return f"{kind}:{number or local_rank() % count}", dtype


def own() -> str:
    """The device of this process: an accelerator by its number where there is one, else `cpu`."""
    return settle("auto", "auto")[0]


def use_own() -> None:
    """Make this process's accelerator the one that torch takes where none is named."""
    import torch

    device = torch.device(own())
    if device.index and torch.accelerator.current_device_index() != device.index:
        torch.accelerator.set_device_index(device.index)


def trains_on_cpu() -> bool:
    """Whether a training has no accelerator: several processes cannot exchange what MPS holds."""
    kind = own().partition(":")[0]
    return kind == "cpu" or (kind == "mps" and world_size() > 1)


def check(device: str, dtype: str) -> None:
    """Compute a little. Raises DeviceError where the device does not know the precision."""
    import torch

    try:
        ones = torch.ones(2, 2, dtype=getattr(torch, dtype)).to(device)
        (ones @ ones).cpu()
    except (AssertionError, RuntimeError, TypeError) as error:
        reason = str(lacking(error) or str(error).strip().partition("\n")[0])
        problem = f"does not compute in {dtype} ({reason})"
        raise DeviceError(f"device {device}: {problem}; use another --dtype or --device") from None


def name_and_memory(device: str) -> tuple[str, int]:
    """What a device is called, and its memory in bytes."""
    import torch

    module: Any = torch.get_device_module(device)
    if hasattr(module, "get_device_properties"):
        properties = module.get_device_properties(device)
        return str(properties.name), int(properties.total_memory)
    if hasattr(module, "recommended_max_memory"):  # MPS: of the computer's memory
        return "Apple GPU", int(module.recommended_max_memory())
    return "CPU", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process has held: an accelerator's, where it counts them."""
    import torch

    module = torch.get_device_module(device)
    if hasattr(module, "max_memory_allocated"):
        return int(module.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def free_memory() -> None:
    """Give back what torch keeps of an accelerator's memory for later."""
    import torch

    if torch.accelerator.is_available():
        torch.get_device_module(torch.accelerator.current_accelerator()).empty_cache()


def lacking(error: BaseException) -> DeviceError | None:
    """What a device lacks, if that is what torch's error says, in one line."""
    text = str(error)
    if found := re.search(_LACKING_DTYPE, text):
        dtype = _DTYPES.get(found["dtype"], found["dtype"].lower())
        return DeviceError(
            f"the operation {found['what']} is not there in {dtype} on this device; "
            "use --dtype float32, or another --device"
        )
    for pattern in _LACKING:
        if found := re.search(pattern, text):
            kind = found["kind"].lower()
            ways = "use another --device"
            if kind == "mps":
                ways += ", or set PYTORCH_ENABLE_MPS_FALLBACK=1 to compute it on the CPU"
            return DeviceError(f"device {kind}: has no {found['what']}; {ways}")
    return None


def _accelerators() -> list[str]:
    import torch

    found = torch.accelerator.is_available() and torch.accelerator.current_accelerator()
    return [found.type] if found else []


def _count(kind: str) -> int:
    """How many devices of a kind there are."""
    import torch

    if kind == "cpu":
        return 1
    try:
        module: Any = torch.get_device_module(kind)
    except RuntimeError:  # no kind of torch's, or one that computes nothing, as meta
        return 0
    return int(module.device_count()) if module.is_available() else 0
