"""What the benchmarks of speed share: timing in turn, peak memory, FLOPs, ceiling, versions.

`in_turn({"ours": ours, "theirs": theirs, **ceiling.variants}, rounds=5)` measures each variant,
`ratio(results["ours"], results["theirs"])` is the median and the range of the rounds' ratios, and
`ceiling.rates(results)` the FLOP/s and bytes/s that the machine reaches in the same run.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch.utils.flop_counter import FlopCounterMode

from demo_t2v.models.linear import Linear

Variant = Callable[[], object]

MATRIX_PRODUCT, COPY = "matrix product", "copy"


@dataclass(frozen=True)
class Spread:
    """The median of some figures, the lowest and the highest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> Spread:
        return cls(statistics.median(figures), min(figures), max(figures))

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class Measurement:
    """The seconds of each round of one variant, and its peak memory above the memory before it."""

    seconds: tuple[float, ...]
    peak_bytes: int

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> Spread:
        return Spread.of(self.seconds)


def in_turn(
    variants: Mapping[str, Variant], rounds: int, warm_up: int = 1
) -> dict[str, Measurement]:
    """Run the variants one after another, `rounds` times (A B A B), after `warm_up` rounds.

    The peak memory is that of the first round of all.
    """
    peaks: dict[str, int] = {}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(warm_up + rounds):
        for name, run in variants.items():
            if name not in peaks:
                before = _reset_peak()
            synchronize()
            started = time.perf_counter()
            run()
            synchronize()
            took = time.perf_counter() - started
            if name not in peaks:
                peaks[name] = _read_peak() - before
            if number >= warm_up:
                seconds[name].append(took)
    return {name: Measurement(tuple(seconds[name]), peaks[name]) for name in variants}


def ratio(one: Measurement, other: Measurement) -> Spread:
    """The seconds of one variant divided by those of another, round by round."""
    return Spread.of([a / b for a, b in zip(one.seconds, other.seconds, strict=True)])


def count_flops(run: Variant) -> int:
    """FLOPs of matrix products, convolutions and attention; a product and a sum are two."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


class Ceiling:
    """What the machine reaches: a large matrix product, and a copy within memory.

    `variants` belong into the same `in_turn` as what is compared with them.
    """

    def __init__(self, dtype: torch.dtype, device: str = "cpu") -> None:
        side = 8192 if device == "cuda" else 2048
        self.flops = 2 * side**3
        layer = Linear(side, side, bias=False, device=device, dtype=dtype).requires_grad_(False)
        rows = torch.randn(side, side, device=device, dtype=dtype)
        source = torch.zeros(1 << 28, dtype=torch.uint8, device=device)
        target = torch.ones_like(source)
        self.bytes = 2 * source.numel()  # read and written
        self.variants: dict[str, Variant] = {
            MATRIX_PRODUCT: lambda: layer(rows),  # by the fastest library, as in the denoiser
            COPY: lambda: target.copy_(source),
        }

    def rates(self, results: Mapping[str, Measurement]) -> tuple[float, float]:
        """FLOP/s and bytes/s of the fastest round."""
        product, copy = (min(results[name].seconds) for name in (MATRIX_PRODUCT, COPY))
        return self.flops / product, self.bytes / copy


def environment() -> dict[str, Any]:
    """Device, threads and versions of a run."""
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else _cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def synchronize() -> None:
    """Wait until a GPU has finished all submitted work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _reset_peak() -> int:
    """Start a new measurement of the peak; returns the bytes in use."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak becomes the present memory
    return _status_bytes("VmRSS")


def _read_peak() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return _status_bytes("VmHWM")


def _status_bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status: no {name}")
