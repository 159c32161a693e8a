"""torch.compile for the repeated blocks of a network, and what it needs on this machine."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from demo_t2v.core.errors import UserError

_RECOMPILE_LIMIT: Final = 64
"""Versions of one block: its widths and sides, with and without guidance, of a smaller batch."""


class CompilerError(UserError):
    """A compiler that is missing; the message is one line."""


def check_compiler(device: str) -> None:
    """Raise CompilerError unless torch.compile has what it needs for `device` (`cpu`, `cuda:0`)."""
    kind = device.partition(":")[0]
    if kind in ("cuda", "xpu"):
        if find_spec("triton") is None:
            raise CompilerError(f"compile: needs triton on {kind}; run `pip install triton`")
    elif kind == "cpu":
        _check_cpp()
    else:
        raise CompilerError(f"compile: has no compiler for {kind}; use cpu, cuda or xpu")


def compile_blocks(network: Any) -> None:
    """Compile each repeated block of a diffusers network, for static shapes, at its first call.

    Blocks of one class share their code, so one compilation serves all blocks with equal shapes
    ("regional compilation" in the documents of torch and diffusers).
    """
    import torch._dynamo

    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, _RECOMPILE_LIMIT)
    network.compile_repeated_blocks(dynamic=False)


def _check_cpp() -> None:
    default = {"win32": "cl", "darwin": "clang++"}.get(sys.platform, "g++")
    compiler = os.environ.get("CXX", default)  # as torch._inductor.cpp_builder
    if shutil.which(compiler) is None:
        raise CompilerError(
            f"compile: needs a C++ compiler, and there is no {compiler}; install it, or name "
            "another in the variable CXX"
        )
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.is_file():
        raise CompilerError(
            f"compile: needs Python's headers, and there is no {header}; install python3-dev"
        )
