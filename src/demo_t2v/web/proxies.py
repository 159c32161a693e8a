"""Requests without the proxies of the environment, for those of Gradio to its own page."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_proxies(*hosts: str) -> Iterator[None]:
    """Inside the block, requests to these hosts use no proxy; `*` is all hosts."""
    variables = ("NO_PROXY", "no_proxy")
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(dict.fromkeys(variables, ",".join([*filter(None, before.values()), *hosts])))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
