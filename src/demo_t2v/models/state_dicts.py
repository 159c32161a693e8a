"""Whether tensors that came from somewhere are the ones of a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor

from demo_t2v.core.errors import UserError

Shape = tuple[int, ...]
_T = TypeVar("_T")


class NamesError(UserError):
    """Tensors that are not the ones of the network; the message is one line for a person."""


def check(state: Mapping[str, Tensor], expected: Mapping[str, Shape]) -> None:
    """Raise NamesError, naming the first ten, unless `state` has exactly the expected tensors."""
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    problems = {
        "missing": [name for name in expected if name not in shapes],
        "surplus": [name for name in shapes if name not in expected],
        "misshapen": [
            f"{name} {shapes[name]} should be {shape}"
            for name, shape in expected.items()
            if shapes.get(name, shape) != shape
        ],
    }
    found = [f"{len(them)} {kind}: {_first_ten(them)}" for kind, them in problems.items() if them]
    if found:
        raise NamesError("these are not the network's tensors; " + "; ".join(found))


def below(part: str, names: Mapping[str, _T]) -> dict[str, _T]:
    """What belongs to a part of a model, `part.name`, without its prefix."""
    prefix = f"{part}."
    return {k.removeprefix(prefix): v for k, v in names.items() if k.startswith(prefix)}


def _first_ten(names: list[str]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
