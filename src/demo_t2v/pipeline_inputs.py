"""What a call of DemoPipeline is given, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from demo_t2v.models.text import TextStates


def as_list(prompt: str | Sequence[str]) -> list[str]:
    """One prompt or several, as a list."""
    return [prompt] if isinstance(prompt, str) else list(prompt)


def default_to(value: Any, default: Any) -> Any:
    """What was given, or the default where that is None."""
    return default if value is None else value


def check_known(name: str, given: Sequence[str], known: list[str]) -> None:
    """Raise ValueError for a value that is none of the known ones."""
    for value in given:
        if value not in known:
            raise ValueError(f"{name} {value!r}: must be {' or '.join(known)}")


def check_counts(**counts: int) -> None:
    """Raise ValueError for a number below 1."""
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} {value}: must be at least 1")


def check_length(count: int, name: str, values: Any, what: str = "prompts") -> None:
    """Raise ValueError for a list that has not one value for each prompt, or video."""
    if isinstance(values, list | tuple) and len(values) != count:
        raise ValueError(f"{name}: {len(values)} given for {count} {what}")


def count_prompts(
    prompt: str | Sequence[str] | None,
    motion_prompt: str | Sequence[str] | None,
    negative_prompt: str | Sequence[str] | None,
    states: TextStates | None,
    negatives: TextStates | None,
    guided: bool,
) -> int:
    """How many prompts there are: by their texts, or by what `encode_prompt` made of them.

    Raises ValueError for none, for lists whose lengths disagree and for prompts given twice.
    """
    if states is None:
        prompts = [] if prompt is None else as_list(prompt)
        if not prompts:
            raise ValueError("prompt: none given")
        if negatives is not None:
            raise ValueError("negative_prompt_embeds: must come with prompt_embeds")
        if motion_prompt is not None:
            check_length(len(prompts), "motion_prompt", as_list(motion_prompt))
        if negative_prompt is not None and not isinstance(negative_prompt, str):
            check_length(len(prompts), "negative_prompt", as_list(negative_prompt))
        return len(prompts)
    if prompt is not None or motion_prompt is not None or negative_prompt:
        raise ValueError("prompt_embeds: must come without prompt, motion_prompt, negative_prompt")
    count = len(states.content)
    if guided and negatives is None:
        raise ValueError("prompt_embeds: guidance needs negative_prompt_embeds beside them")
    if negatives is not None and len(negatives.content) != count:
        raise ValueError(
            f"negative_prompt_embeds: {len(negatives.content)} given for {count} prompts"
        )
    return count
