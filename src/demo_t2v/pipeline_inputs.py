"""Checks of the inputs of a call of DemoPipeline, as pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from demo_t2v.conditioning.timeline import MotionPrompts, as_motion_prompts
from demo_t2v.models.text import TextStates

NO_MOTION_BRANCH: Final = (
    "motion_guidance_scale, bypass_guidance_scale: the model has no motion branch; use "
    "guidance_scale"
)


def as_list(prompt: str | Sequence[str]) -> list[str]:
    """One or several prompts as a list."""
    return [prompt] if isinstance(prompt, str) else list(prompt)


def default_to(value: Any, default: Any) -> Any:
    """`value`, or `default` where it is None."""
    return default if value is None else value


def check_choices(name: str, values: Sequence[str], choices: list[str]) -> None:
    """Raise ValueError for a value that is not one of the choices."""
    for value in values:
        if value not in choices:
            raise ValueError(f"{name} {value!r}: must be {' or '.join(choices)}")


def check_at_least_one(**counts: int) -> None:
    """Raise ValueError for a number below 1."""
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} {value}: must be at least 1")


def check_length(count: int, name: str, values: Any, what: str = "prompts") -> None:
    """Raise ValueError for a list that does not have one value for each of `count` `what`."""
    if isinstance(values, list | tuple) and len(values) != count:
        raise ValueError(f"{name}: {len(values)} given for {count} {what}")


def count_prompts(
    prompt: str | Sequence[str] | None,
    motion_prompt: MotionPrompts | None,
    negative_prompt: str | Sequence[str] | None,
    prompt_embeds: TextStates | None,
    negative_prompt_embeds: TextStates | None,
    guided: bool,
) -> int:
    """The number of prompts, which are given as texts or as the results of `encode_prompt`.

    Raises ValueError for no prompt, for lists of different lengths and for prompts in both forms.
    """
    if prompt_embeds is None:
        prompts = [] if prompt is None else as_list(prompt)
        if not prompts:
            raise ValueError("prompt: none given")
        if negative_prompt_embeds is not None:
            raise ValueError("negative_prompt_embeds: must come with prompt_embeds")
        if motion_prompt is not None:
            check_length(len(prompts), "motion_prompt", as_motion_prompts(motion_prompt))
        if negative_prompt is not None and not isinstance(negative_prompt, str):
            check_length(len(prompts), "negative_prompt", as_list(negative_prompt))
        return len(prompts)
    if prompt is not None or motion_prompt is not None or negative_prompt:
        raise ValueError("prompt_embeds: must come without prompt, motion_prompt, negative_prompt")
    count = len(prompt_embeds.content)
    if guided and negative_prompt_embeds is None:
        raise ValueError("prompt_embeds: guidance needs negative_prompt_embeds too")
    if negative_prompt_embeds is not None and len(negative_prompt_embeds.content) != count:
        raise ValueError(
            f"negative_prompt_embeds: {len(negative_prompt_embeds.content)} given for "
            f"{count} prompts"
        )
    return count
