"""Checks and selections on state dicts: tensors by parameter name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor

from demo_t2v.core.errors import UserError

Shape = tuple[int, ...]
_T = TypeVar("_T")


class StateDictError(UserError):
    """Tensors that do not belong to a network; the message lists them on one line."""


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, Shape]:
    """The shape of each tensor."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def check_state_dict(state: Mapping[str, Tensor], expected: Mapping[str, Shape]) -> None:
    """Raise StateDictError unless `state` has exactly the expected names and shapes.

    The message lists the first ten tensors of each kind: missing, surplus, misshapen.
    """
    shapes = shapes_of(state)
    problems = {
        "missing": [name for name in expected if name not in shapes],
        "surplus": [name for name in shapes if name not in expected],
        "misshapen": [
            f"{name} {shapes[name]} should be {shape}"
            for name, shape in expected.items()
            if shapes.get(name, shape) != shape
        ],
    }
    found = [
        f"{len(names)} {problem}: {_first_ten(names)}"
        for problem, names in problems.items()
        if names
    ]
    if found:
        raise StateDictError("these are not the network's tensors; " + "; ".join(found))


def select_component(component: str, entries: Mapping[str, _T]) -> dict[str, _T]:
    """The entries `component.name` as `name`: one network of a pipeline's state dict."""
    prefix = f"{component}."
    return {k.removeprefix(prefix): v for k, v in entries.items() if k.startswith(prefix)}


def _first_ten(names: list[str]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
