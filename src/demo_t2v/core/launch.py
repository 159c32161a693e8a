"""Processes of a launcher (torchrun, accelerate, DeepSpeed): its variables, and their end."""

from __future__ import annotations

import logging
import os
import sys
from typing import Final, NoReturn

_SINGLE_PROCESS: Final = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


def rank() -> int:
    """Index of this process among all; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Index of this process on its machine; 0 without a launcher."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_launched() -> bool:
    """Whether a launcher started this process."""
    return "RANK" in os.environ


def world_size() -> int:
    """Number of processes of the launcher; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def set_default_environment() -> None:
    """Set missing variables to those of a single process; DeepSpeed requires them."""
    for name, value in _SINGLE_PROCESS.items():
        os.environ.setdefault(name, value)


def exit_process(code: int) -> NoReturn:
    """End this process, one of several at once.

    Threads of the process group may still hold tensors. When one releases a tensor while the
    interpreter ends, the program aborts (pytorch/pytorch#179291), and its launcher reports a
    failure.
    """
    if world_size() == 1:
        sys.exit(code)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
