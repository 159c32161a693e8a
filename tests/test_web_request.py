"""Limits and checks of the page's form, and the command line of a request."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demo_t2v.checkpoints.resolve import resolve
from demo_t2v.conditioning.speed import SpeedCalibration, SpeedWords
from demo_t2v.config import InferenceConfig
from demo_t2v.config.inference import PRESETS, PresetName, inference_options
from demo_t2v.inference.grid import Grid
from demo_t2v.pipeline import DemoPipeline
from demo_t2v.web.examples import EXAMPLES, EXAMPLES_FOLDER, example_prompts, example_videos
from demo_t2v.web.fields import Bound, RequestError
from demo_t2v.web.request import SAMPLING, GenerationRequest, Limits
from demo_t2v.web.timeline_editor import row_error


@pytest.fixture(scope="module")
def limits(tiny_pipeline: DemoPipeline) -> Limits:
    return Limits.of(tiny_pipeline, InferenceConfig())


REQUEST = GenerationRequest("generate", "a car falls", "", 7, 2, 3, 4, 32, 32, 8, 2.5)


def test_limits_follow_from_the_model(limits: Limits) -> None:
    assert (limits.num_frames.low, limits.num_frames.high, limits.num_frames.start) == (2, 8, 4)
    assert (limits.width.low, limits.width.high, limits.width.step) == (32, 64, 16)
    assert (limits.num_inference_steps.start, limits.guidance_scale.start) == (3, 3.0)


def test_a_form_becomes_a_request(limits: Limits) -> None:
    form = limits.values(seed=7.0, repeat_times=2, motion_strength=0.5, motion_crossfade=0)
    request = limits.read_form("decompose", "  a car\nfalls ", "spins", *form)
    assert (request.prompt, request.motion_prompt) == ("a car falls", "spins")
    assert request.handles == {"motion_strength": 0.5}  # a handle at its start is not set
    assert request.strengths == [0.5]
    assert (request.seed, request.repeat_times) == (7, 1)
    assert isinstance(request.seed, int)
    assert limits.read_form("decompose", *limits.form(request)) == request
    plain = limits.read_form("generate", "a car falls", "spins", *form)
    assert (plain.motion_prompt, plain.handles, plain.repeat_times) == ("", {}, 2)
    assert limits.read_form("compare", "a car", "", *form).strengths == [0.0, 1.0]


def test_a_handle_that_is_not_set_leaves_the_option_alone(limits: Limits) -> None:
    assert set(limits.handles) <= set(inference_options())
    base = InferenceConfig()
    untouched = limits.read_form("decompose", "a car", "", *limits.values(guidance_scale=5.0))
    config = untouched.config(base, 1.0)
    assert {name: getattr(config, name) for name in limits.handles} == {
        name: getattr(base, name) for name in limits.handles
    }
    form = limits.values(content_guidance_scale=0.5)
    moved = limits.read_form("decompose", "a car", "", *form)
    assert moved.config(base, 1.0).content_guidance_scale == 0.5
    assert "--content-guidance 0.5" in moved.command(base)


def test_speed_is_a_factor_within_the_model_s_calibration(
    tiny_pipeline: DemoPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "speed" not in Limits.of(tiny_pipeline, InferenceConfig()).handles
    words = SpeedWords("slowly", "quickly", ())
    factors = (0.68, 1.0, 1.42)
    calibration = SpeedCalibration(words, (-1.0, 0.0, 1.0), (0.01, 0.02, 0.03), factors)
    monkeypatch.setattr(tiny_pipeline, "speed_calibration", calibration)
    limits = Limits.of(tiny_pipeline, InferenceConfig())
    bound = limits.handles["speed"]
    assert (bound.low, bound.start, bound.high) == pytest.approx((0.7, 1.0, 1.4))
    request = limits.read_form("decompose", "a car", "", *limits.values(speed=1.2))
    assert request.config(InferenceConfig(), 1.0).speed == "1.2x"
    assert shlex.split(request.command(InferenceConfig()))[-2:] == ["--speed", "1.2x"]


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
        ("a car", {"cache_interval": 0}, "Cache interval: choose from 1 to 8"),
    ],
)
def test_values_outside_their_limits_are_refused(
    limits: Limits, prompt: str | None, others: dict[str, object], message: str
) -> None:
    with pytest.raises(RequestError, match=message) as error:
        limits.read_form("generate", prompt, "", *limits.values(**others))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("scheduler", "flow", "Scheduler: choose one of model's own, dpm\\+\\+, ddim"),
        ("scheduler", None, "Scheduler: choose one of"),
        ("cache", ["deep"], "Cache: choose one of none, deep, forecast"),
        ("guidance_interval", "", "Guidance interval: should be two noise levels, as in 0.3-1"),
        ("guidance_interval", None, "Guidance interval: should be two noise levels"),
        ("guidance_interval", "1-0.3", "Guidance interval: should have the lower noise level"),
        ("guidance_interval", "0-nan", "Guidance interval: "),
        ("guidance_interval", "0-2\n", "Guidance interval: "),
    ],
)
def test_advanced_settings_are_checked(
    limits: Limits, name: str, text: object, message: str
) -> None:
    values = dict(zip(limits.fields, limits.values(), strict=True)) | {name: text}
    with pytest.raises(RequestError, match=f"^{message}") as error:
        limits.read_form("generate", "a car", "", *values.values())
    assert "\n" not in str(error.value)


def test_advanced_settings_apply_to_all_tabs(limits: Limits) -> None:
    settings = {
        "scheduler": "ddim",
        "guidance_interval": (0.25, 1.0),
        "cache": "deep",
        "cache_interval": 3,
    }
    values = limits.values(**settings)
    base = InferenceConfig(scheduler="heun", cache="forecast")
    for tab in ("generate", "compare", "decompose", "grid"):
        request = limits.read_form(tab, "a car", "it falls" if tab == "grid" else "", *values)
        assert request.advanced == settings
        config = request.config(base, 1.0)
        assert {key: getattr(config, key) for key in settings} == settings
        assert limits.read_form(tab, *limits.form(request)) == request
        for line in request.command(base).splitlines():
            assert shlex.split(line)[-4:] == [
                *("--scheduler=ddim", "--guidance-interval=0.25-1"),
                *("--cache=deep", "--cache-interval=3"),
            ]


def test_the_form_begins_with_the_servers_options(tiny_pipeline: DemoPipeline) -> None:
    base = InferenceConfig(scheduler="ddim", cache="deep", cache_interval=12)
    limits = Limits.of(tiny_pipeline, base)
    shown = dict(zip(limits.fields, limits.values(), strict=True))
    assert (shown["scheduler"], shown["cache"], shown["cache_interval"]) == ("ddim", "deep", 12)
    unchanged = limits.read_form("generate", "a car", "", *limits.values())
    assert unchanged.advanced == {}
    assert "--scheduler=ddim --cache=deep --cache-interval=12" in unchanged.command(base)
    values = limits.values(scheduler=None, cache=None)
    without = limits.read_form("generate", "a car", "", *values)
    assert without.config(base, 1.0).scheduler is None
    assert without.config(base, 1.0).cache is None
    assert "--scheduler" not in without.command(base)
    assert "--cache=" not in without.command(base)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_sets_what_it_sets_on_the_command_line(
    limits: Limits, tiny_folder: Path, preset: PresetName
) -> None:
    values = dict(zip(limits.fields, limits.values(), strict=True))
    values |= zip(SAMPLING, limits.preset_values(preset), strict=True)
    request = limits.read_form("generate", "a car", "", *values.values())
    defaults = resolve(str(tiny_folder)).defaults
    expected = defaults.complete(InferenceConfig(preset=preset))
    assert defaults.complete(request.config(InferenceConfig(), 1.0)) == expected.model_copy(
        update={"seed": request.seed}
    )
    assert limits.preset(*limits.preset_values(preset)) == preset


def test_no_preset_is_selected_where_none_fits(limits: Limits) -> None:
    steps, *others = limits.preset_values("fast")
    assert limits.preset(steps + 1, *others) is None
    assert limits.preset(steps, "ddim", "0.") is None


def test_a_model_without_guidance_has_no_presets(
    tiny_pipeline: DemoPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_pipeline.config
    without = type(config)({**config, "guidance_scale": 1.0})
    monkeypatch.setattr(tiny_pipeline, "_internal_dict", without)
    assert Limits.of(tiny_pipeline, InferenceConfig()).presets == {}


def test_loaded_motion_words_are_no_tags(limits: Limits) -> None:
    words = {"motion_words": ("hop", "b")}
    request = limits.read_form("decompose", "a car", "it <hop>", *limits.values(), **words)
    assert request.motion_prompt == "it <hop>"
    base = InferenceConfig(motion_word=("hop.safetensors",))
    assert "'--motion-prompt=it <hop>'" in request.command(base)
    assert request.command(base).endswith("--motion-word=hop.safetensors")
    for prompts in (("a car <hop>", ""), ("a car", "<hop> <i>")):
        with pytest.raises(RequestError, match="contains a tag"):
            limits.read_form("decompose", *prompts, *limits.values(), **words)


def test_a_less_than_sign_is_no_tag(limits: Limits) -> None:
    assert limits.read_form("generate", "a cat <3 > 2 dogs", "", *limits.values()).prompt


def test_a_grid_has_a_prompt_a_line(limits: Limits) -> None:
    texts = (" a frog\n\n-a = b  car \n", "0: rises; 0.25s: falls\r\nrises:0.5 + falls:0.5")
    form = limits.values(seed=7, repeat_times=2, motion_strength=0.5)
    request = limits.read_form("grid", *texts, *form)
    assert request.grid == Grid(
        [("1", "a frog"), ("2", "-a = b car")],
        [("1", "0: rises; 0.25s: falls"), ("2", "rises:0.5 + falls:0.5")],
    )
    assert (request.repeat_times, request.handles) == (1, {})
    assert limits.read_form("grid", *limits.form(request)) == request
    words = shlex.split(request.command(InferenceConfig(model="a model")))
    assert words == [
        *("demo-t2v", "grid", "--content=a frog", "--content=-a = b car"),
        *("--motion=0: rises; 0.25s: falls", "--motion=rises:0.5 + falls:0.5"),
        *("--seed", "7", "--steps", "3", "--frames", "4", "--width", "32", "--height", "32"),
        *("--fps", "8", "--guidance", "3", "--model=a model"),
    ]


@pytest.mark.parametrize(
    ("contents", "motions", "line"),
    [
        ("", "falls", "0 content prompts: write 1 to 3, one a line."),
        ("a car", " \n ", "0 motion prompts: write 1 to 3, one a line."),
        ("a car", None, "0 motion prompts: write 1 to 3, one a line."),
        ("a\nb\nc\nd", "falls", "4 content prompts: write 1 to 3, one a line."),
        ("a car", "falls\n" * 1000, "1000 motion prompts: write 1 to 3, one a line."),
        ("a car\n" + "x" * 301, "falls", "The content prompt 2 is longer than 300 characters"),
        ("a car <hop>", "falls", "The content prompt 1 contains a tag"),
        ("a car", "falls\n<b>spins", "The motion prompt 2 contains a tag"),
        ("a \x00 car", "falls", "The content prompt 1 contains characters"),
        ("a car", "falls\n0: falls; 4: rises", "motion prompt 2: timeline: frame 4 is beyond"),
        ("a car", "falls:x + rises:1", "motion prompt 1: blend"),
    ],
)
def test_bad_grids_are_refused(
    limits: Limits, contents: str, motions: str | None, line: str
) -> None:
    with pytest.raises(RequestError, match=re.escape(line)) as error:
        limits.read_form("grid", contents, motions, *limits.values(), motion_words=("hop",))
    assert "\n" not in str(error.value)


def test_a_motion_prompt_is_checked_too(limits: Limits) -> None:
    with pytest.raises(RequestError, match="motion prompt contains a tag"):
        limits.read_form("decompose", "a car", "<b>spins", *limits.values())


def test_a_command_has_what_differs_from_the_defaults() -> None:
    line = REQUEST.command(InferenceConfig())
    assert line == (
        "demo-t2v generate 'a car falls' --seed 7 --repeat 2 --steps 3 "
        "--frames 4 --width 32 --height 32 --fps 8 --guidance 2.5"
    )
    base = InferenceConfig(model="a model", lora="x.safetensors", dtype="bfloat16")
    request = replace(
        REQUEST,
        tab="decompose",
        motion_prompt="it's -spinning",
        handles={"motion_strength": 0.25, "motion_crossfade": 2},
    )
    words = shlex.split(request.command(base))
    assert words[-8:] == [
        "--motion-prompt=it's -spinning",
        *("--motion-strength", "0.25", "--motion-crossfade", "2"),
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
        ("0: rises; 3: falls", "has 1 frames, fewer than the cross-fade of 2"),
    ],
)
def test_bad_timelines_are_refused(limits: Limits, motion_prompt: str, line: str) -> None:
    with pytest.raises(RequestError, match=line):
        limits.read_form("decompose", "a car", motion_prompt, *limits.values(motion_crossfade=2))
    assert limits.read_form("generate", "a car", motion_prompt, *limits.values()).timeline is None


@pytest.mark.parametrize(
    ("rows", "crossfade", "error"),
    [
        ([], 0, None),
        ([(0, "rises"), (8, "falls"), (None, "")], 0, None),
        ([(0, "rises"), (8, "falls")], 8, None),
        ([(1, "rises"), (0, "falls")], 0, (0, "begins at frame 1; it must begin at frame 0")),
        ([(0, "rises"), (None, ""), (8, " ")], 0, (2, "the motion prompt at frame 8 is empty")),
        ([(0, "rises"), (8, "falls"), (8, "grows")], 0, (2, "frame 8 follows frame 8")),
        ([(0, "rises"), (None, "falls")], 0, (1, "this motion has no frame")),
        (
            [(0, "rises"), (16, "falls")],
            0,
            (1, "frame 16 is beyond the clip; its last frame is 15"),
        ),
        ([(0, "rises"), (8, "falls; 9: grows")], 0, (1, "a semicolon ends a motion")),
        (
            [(0, "rises"), (8, "falls"), (12, "grows")],
            5,
            (2, "the segment at frame 8 has 4 frames"),
        ),
    ],
)
def test_the_first_wrong_row_of_a_timeline_is_named(
    rows: list[tuple[int | None, str]], crossfade: float, error: tuple[int, str] | None
) -> None:
    found = row_error(rows, 16, crossfade)
    if error is None:
        assert found is None
    else:
        assert found is not None
        assert found[0] == error[0]
        assert found[1].startswith(f"timeline: {error[1]}")


def test_examples_are_small_and_have_their_videos() -> None:
    assert 6 <= len(EXAMPLES) <= 8
    assert {example.file for example in EXAMPLES} == set(EXAMPLES_FOLDER.iterdir())
    assert sum(example.file.stat().st_size for example in EXAMPLES) <= 600_000
    assert EXAMPLES[0].tab == "generate"  # the page opens with it


def test_examples_are_requests_of_the_form(limits: Limits) -> None:
    for example in EXAMPLES:
        request = example.request(replace(limits, num_frames=Bound(2, 32, 16)))
        assert (request.prompt, request.seed, request.tab) == (
            example.prompt,
            example.seed,
            example.tab,
        )


def test_only_the_shipped_model_has_example_videos() -> None:
    assert example_videos(InferenceConfig()) == EXAMPLES
    for other in (
        {"model": "sprites-base"},
        {"lora": "x.safetensors"},
        {"scheduler": "ddim"},
        {"cache": "deep"},
    ):
        config = InferenceConfig(**other)
        assert example_videos(config) == ()
        assert example_prompts(config)
