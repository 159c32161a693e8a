"""Limits and checks of the page's form, and the command line of a request."""

from __future__ import annotations

import shlex
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demo_t2v.config import InferenceConfig
from demo_t2v.pipeline import DemoPipeline
from demo_t2v.web.request import GenerationRequest, Limits, RequestError


@pytest.fixture(scope="module")
def limits(tiny_pipeline: DemoPipeline) -> Limits:
    return Limits.of(tiny_pipeline)


def numbers(limits: Limits, **others: object) -> list[object]:
    """A form's numbers, in order."""
    return [others.get(field.name, getattr(limits, field.name).start) for field in fields(limits)]


REQUEST = GenerationRequest("generate", "a car falls", "", 7, 2, 3, 4, 32, 32, 8, 2.5, 1.0)


def test_limits_follow_from_the_model(limits: Limits) -> None:
    assert (limits.num_frames.low, limits.num_frames.high, limits.num_frames.start) == (2, 8, 4)
    assert (limits.width.low, limits.width.high, limits.width.step) == (32, 64, 16)
    assert (limits.num_inference_steps.start, limits.guidance_scale.start) == (3, 3.0)


def test_a_form_becomes_a_request(limits: Limits) -> None:
    form = numbers(limits, seed=7.0, repeat_times=2, motion_strength=0.5)
    request = limits.read_form("decompose", "  a car\nfalls ", "spins", *form)
    assert (request.prompt, request.motion_prompt) == ("a car falls", "spins")
    assert request.motion_strength == 0.5
    assert (request.seed, request.repeat_times) == (7, 1)
    assert isinstance(request.seed, int)
    assert limits.read_form("decompose", *request.form) == request
    plain = limits.read_form("generate", "a car falls", "spins", *form)
    assert (plain.motion_prompt, plain.motion_strength, plain.repeat_times) == ("", 1.0, 2)
    assert limits.read_form("compare", "a car", "", *form).strengths == [0.0, 1.0]


@pytest.mark.parametrize(
    ("prompt", "others", "message"),
    [
        ("", {}, "Describe what the video should show"),
        (" \n ", {}, "Describe what the video should show"),
        (None, {}, "Describe what the video should show"),
        ("x" * 301, {}, "longer than 300"),
        ("<script>alert(1)</script>", {}, "tag"),
        ("a car <IMG src=x>", {}, "tag"),
        ("a \x00 car", {}, "printed"),
        ("a \ud800 car", {}, "printed"),
        ("a car", {"num_inference_steps": 0}, "Steps: choose from 1 to 100"),
        ("a car", {"num_inference_steps": 10**9}, "Steps"),
        ("a car", {"num_inference_steps": 2.5}, "Steps: choose a multiple of 1"),
        ("a car", {"num_frames": 9}, "Frames"),
        ("a car", {"width": 40}, "Width: choose a multiple of 16"),
        ("a car", {"seed": None}, "Seed"),
        ("a car", {"seed": "1; rm"}, "Seed"),
        ("a car", {"repeat_times": 5}, "Videos"),
        ("a car", {"motion_strength": float("nan")}, "Motion strength"),
        ("a car", {"guidance_scale": float("inf")}, "Guidance"),
    ],
)
def test_values_outside_their_limits_are_refused(
    limits: Limits, prompt: str | None, others: dict[str, object], message: str
) -> None:
    with pytest.raises(RequestError, match=message) as error:
        limits.read_form("generate", prompt, "", *numbers(limits, **others))
    assert "\n" not in str(error.value)


def test_loaded_motion_words_are_no_tags(limits: Limits) -> None:
    words = {"motion_words": ("hop", "b")}
    request = limits.read_form("decompose", "a car", "it <hop>", *numbers(limits), **words)
    assert request.motion_prompt == "it <hop>"
    base = InferenceConfig(motion_word=("hop.safetensors",))
    assert "'--motion-prompt=it <hop>'" in request.command(base)
    assert request.command(base).endswith("--motion-word=hop.safetensors")
    for prompts in (("a car <hop>", ""), ("a car", "<hop> <i>")):
        with pytest.raises(RequestError, match="contains a tag"):
            limits.read_form("decompose", *prompts, *numbers(limits), **words)


def test_a_less_than_sign_is_no_tag(limits: Limits) -> None:
    assert limits.read_form("generate", "a cat <3 > 2 dogs", "", *numbers(limits)).prompt


def test_a_motion_prompt_is_checked_too(limits: Limits) -> None:
    with pytest.raises(RequestError, match="motion prompt contains a tag"):
        limits.read_form("decompose", "a car", "<b>spins", *numbers(limits))


def test_a_command_has_what_differs_from_the_defaults() -> None:
    line = REQUEST.command(InferenceConfig())
    assert line == (
        "demo-t2v generate 'a car falls' --seed 7 --repeat 2 --steps 3 "
        "--frames 4 --width 32 --height 32 --fps 8 --guidance 2.5"
    )
    base = InferenceConfig(model="a model", lora="x.safetensors", dtype="bfloat16")
    request = replace(
        REQUEST, tab="decompose", motion_prompt="it's -spinning", motion_strength=0.25
    )
    words = shlex.split(request.command(base))
    assert words[-6:] == [
        "--motion-prompt=it's -spinning",
        *("--motion-strength", "0.25"),
        *("--model=a model", "--lora=x.safetensors", "--dtype=bfloat16"),
    ]
    timeline = replace(REQUEST, tab="decompose", motion_prompt="0: it rises; 0.25s: falls")
    words = shlex.split(timeline.command(base))
    assert words[-5:-3] == ["--motion=0: it rises", "--motion=2: falls"]
    assert REQUEST.command(InferenceConfig(scheduler="ddim")).endswith("--scheduler=ddim")
    off, on = replace(REQUEST, tab="compare").command(InferenceConfig()).splitlines()
    assert "--motion-strength 0 --out outputs/motion-0" in off
    assert on.endswith("--out outputs/motion-1")


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1))
def test_any_prompt_survives_the_shell(prompt: str) -> None:
    line = replace(REQUEST, prompt=prompt).command(InferenceConfig())
    word = shlex.split(line)[2]
    assert word.removeprefix(" ") == prompt.removeprefix(" ")
    assert not word.startswith("-")


@pytest.mark.parametrize(
    ("motion_prompt", "line"),
    [
        ("1: rises", "timeline: begins at frame 1; it must begin at frame 0"),
        ("0: rises; 4: falls", "timeline: frame 4 is beyond the clip; its last frame is 3"),
        ("0: rises; 2:", "timeline: the motion prompt at frame 2 is empty"),
    ],
)
def test_bad_timelines_are_refused(limits: Limits, motion_prompt: str, line: str) -> None:
    with pytest.raises(RequestError, match=line):
        limits.read_form("decompose", "a car", motion_prompt, *numbers(limits))
    assert limits.read_form("generate", "a car", motion_prompt, *numbers(limits)).timeline is None
