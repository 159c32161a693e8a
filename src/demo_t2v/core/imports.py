"""Imports of large libraries."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Import in this context without garbage collection, and exclude its objects from later ones.

    torch, diffusers and transformers make over a million objects that live as long as the process.
    The collector would traverse them many times: during the imports, while videos are made, and
    when the interpreter ends. For programs, not for libraries: `gc.freeze` excludes all objects of
    the process, so garbage in cycles that is there by then stays.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
