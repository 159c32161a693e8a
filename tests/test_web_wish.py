"""What a visitor may ask for, and the command line that says the same."""

from __future__ import annotations

import shlex
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demo_t2v.config import InferenceConfig
from demo_t2v.pipeline import DemoPipeline
from demo_t2v.web.request import Limits, Wish, WishError


@pytest.fixture(scope="module")
def limits(tiny_pipeline: DemoPipeline) -> Limits:
    return Limits.of(tiny_pipeline)


def numbers(limits: Limits, **others: object) -> list[object]:
    """A form's numbers, in order."""
    return [others.get(field.name, getattr(limits, field.name).start) for field in fields(limits)]


WISH = Wish("generate", "a car falls", "", 7, 2, 3, 4, 32, 32, 8, 2.5, 1.0)


def test_limits_are_the_models_own(limits: Limits) -> None:
    assert (limits.frames.low, limits.frames.high, limits.frames.start) == (2, 8, 4)
    assert (limits.width.low, limits.width.high, limits.width.step) == (32, 64, 16)
    assert (limits.steps.start, limits.guidance.start) == (3, 3.0)


def test_a_form_becomes_a_wish(limits: Limits) -> None:
    form = numbers(limits, seed=7.0, videos=2, motion_strength=0.5)
    wish = limits.wish("apart", "  a car\nfalls ", "spins", *form)
    assert (wish.prompt, wish.motion_prompt, wish.motion_strength) == ("a car falls", "spins", 0.5)
    assert (wish.seed, wish.videos) == (7, 1)  # one video at a time is taken apart
    assert isinstance(wish.seed, int)
    assert limits.wish("apart", *wish.form) == wish
    plain = limits.wish("generate", "a car falls", "spins", *form)
    assert (plain.motion_prompt, plain.motion_strength, plain.videos) == ("", 1.0, 2)
    assert limits.wish("compare", "a car", "", *form).strengths == [0.0, 1.0]


@pytest.mark.parametrize(
    ("prompt", "others", "message"),
    [
        ("", {}, "Write what the video should show"),
        (" \n ", {}, "Write what the video should show"),
        (None, {}, "Write what the video should show"),
        ("x" * 301, {}, "longer than 300"),
        ("<script>alert(1)</script>", {}, "tag"),
        ("a car <IMG src=x>", {}, "tag"),
        ("a \x00 car", {}, "printed"),
        ("a \ud800 car", {}, "printed"),
        ("a car", {"steps": 0}, "steps: choose from 1 to 100"),
        ("a car", {"steps": 10**9}, "steps"),
        ("a car", {"steps": 2.5}, "steps: choose a multiple of 1"),
        ("a car", {"frames": 9}, "frames"),
        ("a car", {"width": 40}, "width: choose a multiple of 16"),
        ("a car", {"seed": None}, "seed"),
        ("a car", {"seed": "1; rm"}, "seed"),
        ("a car", {"videos": 5}, "videos"),
        ("a car", {"motion_strength": float("nan")}, "motion strength"),
        ("a car", {"guidance": float("inf")}, "guidance"),
    ],
)
def test_what_is_out_of_bounds_is_said(
    limits: Limits, prompt: str | None, others: dict[str, object], message: str
) -> None:
    with pytest.raises(WishError, match=message) as error:
        limits.wish("generate", prompt, "", *numbers(limits, **others))
    assert "\n" not in str(error.value)


def test_less_than_is_no_tag(limits: Limits) -> None:
    assert limits.wish("generate", "a cat <3 > 2 dogs", "", *numbers(limits)).prompt


def test_a_motion_prompt_is_checked_too(limits: Limits) -> None:
    with pytest.raises(WishError, match="motion prompt has a tag"):
        limits.wish("apart", "a car", "<b>spins", *numbers(limits))


def test_a_command_names_what_is_not_the_default() -> None:
    line = WISH.command(InferenceConfig())
    assert line == (
        "demo-t2v generate 'a car falls' --seed 7 --repeat 2 --steps 3 --guidance 2.5 "
        "--frames 4 --width 32 --height 32 --fps 8"
    )
    base = InferenceConfig(pretrained="a model", lora="x.safetensors", dtype="bfloat16")
    apart = replace(WISH, tab="apart", motion_prompt="it's -spinning", motion_strength=0.25)
    words = shlex.split(apart.command(base))
    assert words[-6:] == [
        "--motion-prompt=it's -spinning",
        *("--motion-strength", "0.25"),
        *("--model=a model", "--lora=x.safetensors", "--dtype=bfloat16"),
    ]
    off, on = replace(WISH, tab="compare").command(InferenceConfig()).splitlines()
    assert "--motion-strength 0 --out outputs/motion-0" in off
    assert on.endswith("--out outputs/motion-1")


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1))
def test_any_prompt_survives_the_shell(prompt: str) -> None:
    line = replace(WISH, prompt=prompt).command(InferenceConfig())
    word = shlex.split(line)[2]
    assert word.removeprefix(" ") == prompt.removeprefix(" ")
    assert not word.startswith("-")
