"""Imports without garbage collection."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from demo_t2v.core.imports import uncollected


@pytest.fixture(autouse=True)
def collected_again() -> Iterator[None]:
    yield
    gc.unfreeze()
    gc.enable()


class Node:
    """An object that refers to itself: only the collector can free it."""

    def __init__(self) -> None:
        self.itself = self


def test_nothing_is_collected_meanwhile_and_new_objects_are_excluded_after():
    with uncollected():
        assert not gc.isenabled()
        node = Node()
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0
    assert not any(each is node for each in gc.get_objects())


def test_the_collector_is_on_again_after_an_error():
    with pytest.raises(ModuleNotFoundError), uncollected():
        raise ModuleNotFoundError
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    with uncollected():
        pass
    assert not gc.isenabled()
