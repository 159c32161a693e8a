"""A blend of motion prompts: the weighted sum of their motion states.

DEMO (arXiv 2410.24219) reads motion from the states of one prompt. A sum of several prompts'
states, as compel (github.com/damian0815/compel) has for images, mixes their motions. A weight may
change linearly from the first to the last frame, which interpolates along the clip. Weights are
used as they are written: a sum of 1 keeps the scale of the states, and a negative weight moves away
from a prompt.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from demo_t2v.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

Weight = float | tuple[float, float]
"""A weight, or those of the first and of the last frame; between them it is linear."""

_PLUS: Final = re.compile(r"(?:^|\s+|(?<=\d))\+(?=\s|\w|$)")
_PART: Final = re.compile(
    r"(?P<prompt>.*):\s*(?P<first>[^\s:]+?)(?:\s*->\s*(?P<last>\S*))?", re.DOTALL
)
_ALONE: Final = re.compile(r".*(?:[^\W\d]|>):[^\s:]+(\s*->\s*\S+)?", re.DOTALL)
_WEIGHT_LIKE: Final = re.compile(r"\S:\S+$")
_EXAMPLE: Final = "write PROMPT:WEIGHT + PROMPT:WEIGHT, as in `falls:0.7 + spins:0.3`"


class MotionPromptError(UserError):
    """A motion prompt that cannot be used; the message is one line."""


@dataclass(frozen=True)
class Blend:
    """Motion prompts and the weights of their states.

    Raises MotionPromptError for an empty prompt, weights that are not finite or all zero, and
    another number of weights than of prompts.
    """

    prompts: tuple[str, ...]
    weights: tuple[Weight, ...]

    def __post_init__(self) -> None:
        if not self.prompts or len(self.prompts) != len(self.weights):
            raise MotionPromptError(
                f"blend: {len(self.weights)} weights for {len(self.prompts)} prompts; "
                "give one weight for each prompt"
            )
        for prompt, weight in zip(self.prompts, self.weights, strict=True):
            if len(self.prompts) > 1 and not prompt.strip():
                raise MotionPromptError(f"blend: a prompt is empty; {_EXAMPLE}")
            if len(_ends(weight)) != 2 or not all(map(_is_finite, _ends(weight))):
                raise MotionPromptError(
                    f"blend: the weight {weight!r} of {prompt!r} is not a finite number; {_EXAMPLE}"
                )
        if not any(map(any, self.ends)):
            raise MotionPromptError("blend: all weights are 0; give at least one other weight")

    @property
    def ends(self) -> tuple[tuple[float, float], ...]:
        """Each prompt's weights in the first and in the last frame."""
        return tuple(map(_ends, self.weights))

    @property
    def is_plain(self) -> bool:
        """Whether it is one prompt with weight 1, which is the prompt itself."""
        return self.ends == ((1, 1),)

    def __str__(self) -> str:
        """The text that `parse_blend` reads."""
        parts = zip(self.prompts, self.ends, strict=True)
        return " + ".join(
            f"{prompt}:{first!r}" + (f"->{last!r}" if last != first else "")
            for prompt, (first, last) in parts
        )

    def weights_at(self, times: Tensor) -> Tensor:
        """The weights (T, P) at times (T,) from 0, the first frame, to 1, the last frame."""
        ends = times.new_tensor(self.ends)  # (P, 2)
        return ends[:, 0] + times[:, None] * (ends[:, 1] - ends[:, 0])


def parse_blend(text: str) -> Blend:
    """The blend of a text such as `falls:0.7 + rises:0.3` or `falls:1->0 + rises:0->1`.

    A text is a blend if plus signs separate its parts and one of them ends with a colon and a
    number, or all of them with a colon and a word. A single part is a blend if its weight follows
    the colon at once and a letter precedes it: `falls:0.5`, but not `it is 10:30` or `a score: 3`.
    Any other text is one prompt with weight 1. Raises MotionPromptError.
    """
    parts = [part.strip() for part in _PLUS.split(text.strip())]
    found = [_PART.fullmatch(part) for part in parts]
    weighted = [match is not None and _is_weight(match) for match in found]
    if len(parts) == 1:
        is_blend = weighted[0] and _ALONE.fullmatch(parts[0]) is not None
    else:
        is_blend = any(weighted) or all(_WEIGHT_LIKE.search(part) for part in parts)
    if not is_blend:
        return Blend((text,), (1.0,))
    prompts: list[str] = []
    weights: list[Weight] = []
    for part, match in zip(parts, found, strict=True):
        if match is None:
            problem = f"{part!r} has no weight" if part else "a part is empty"
            raise MotionPromptError(f"blend: {problem}; {_EXAMPLE}")
        first, last = _number(match["first"], part), match["last"]
        prompts.append(match["prompt"].strip())
        weights.append(first if last is None else (first, _number(last, part)))
    return Blend(tuple(prompts), tuple(weights))


def _ends(weight: Weight) -> tuple[float, float]:
    """The weights of the first and of the last frame."""
    return weight if isinstance(weight, tuple) else (weight, weight)


def _is_finite(number: object) -> bool:
    return isinstance(number, int | float) and math.isfinite(number)


def _is_weight(match: re.Match[str]) -> bool:
    try:
        float(match["first"])
    except ValueError:
        return False
    return True


def _number(text: str, part: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise MotionPromptError(
            f"blend: {text!r} in {part!r} is not a number; {_EXAMPLE}"
        ) from None
