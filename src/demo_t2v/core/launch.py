"""What a launcher (torchrun, accelerate, DeepSpeed) tells each process that it starts."""

from __future__ import annotations

import os
from typing import Final

_ALONE: Final = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


def rank() -> int:
    """This process's number among all; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """This process's number among those of its machine; 0 without a launcher."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_launched() -> bool:
    """Whether a launcher started this process."""
    return "RANK" in os.environ


def world_size() -> int:
    """How many processes the launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def as_if_launched() -> None:
    """Where no launcher did, say what one says to a single process: DeepSpeed wants to hear it."""
    for name, value in _ALONE.items():
        os.environ.setdefault(name, value)
