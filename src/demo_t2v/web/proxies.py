"""Gradio's requests to its own page, kept from the proxies that the environment names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def direct(*hosts: str) -> Iterator[None]:
    """Requests to these hosts use no proxy meanwhile; `*` stands for all."""
    names = ("NO_PROXY", "no_proxy")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, ",".join([*filter(None, before.values()), *hosts])))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
