"""Blends of motion prompts: texts to weights, weights to motion states, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from demo_t2v.checkpoints.memory import Plan
from demo_t2v.checkpoints.resolve import resolve
from demo_t2v.conditioning.blend import Blend, MotionPromptError, parse_blend
from demo_t2v.conditioning.timeline import Timeline, TimelineError, as_motion_prompts
from demo_t2v.config import InferenceConfig
from demo_t2v.inference.jobs import make_jobs
from demo_t2v.inference.outputs import read_manifest
from demo_t2v.inference.runner import Runner
from demo_t2v.models.unet import DemoUNet
from demo_t2v.pipeline import DemoPipeline
from helpers import in_process
from helpers.pipelines import with_effective_motion

RISES, FALLS = "a car moves up", "a fish falls"


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline: DemoPipeline) -> DemoPipeline:
    return with_effective_motion(tiny_pipeline)


def latents(pipeline: DemoPipeline, motion_prompt: Any) -> torch.Tensor:
    """Two videos of one batch, with the two motion prompts of a list."""
    result: torch.Tensor = pipeline(
        ["a car", "a pear"],
        motion_prompt=motion_prompt,
        generator=[torch.Generator().manual_seed(seed) for seed in (1, 2)],
        num_inference_steps=2,
        output_type="latent",
    ).frames
    return result


@pytest.mark.parametrize(
    ("text", "prompts", "weights"),
    [
        ("falls:0.7 + spins clockwise:0.3", ("falls", "spins clockwise"), (0.7, 0.3)),
        ("falls:1->0 + rises:0->1", ("falls", "rises"), ((1, 0), (0, 1))),
        (" falls: 1 -> 0+rises:-.5 ", ("falls", "rises"), ((1, 0), -0.5)),
        ("it is 10:30:0.5 + b:2e-1 + c:3", ("it is 10:30", "b", "c"), (0.5, 0.2, 3)),
        ("falls:0.5", ("falls",), (0.5,)),
        ("falls:0->1", ("falls",), ((0, 1),)),
    ],
)
def test_a_text_has_parts_and_weights(
    text: str, prompts: tuple[str, ...], weights: tuple[Any, ...]
) -> None:
    blend = parse_blend(text)
    assert blend == Blend(prompts, weights)
    assert parse_blend(str(blend)).ends == blend.ends


@pytest.mark.parametrize(
    "text",
    [
        "a car falls",
        "",
        "a cat + a dog",
        "2+3 fish",
        "a C++ book falls",
        "a sign says: it falls",
        "a clock shows 10:30",
        "countdown: 3",
        "a game: a cat + a dog",
        "a dog says: hello + a cat says: goodbye",
    ],
)
def test_sentences_stay_prompts(text: str) -> None:
    assert parse_blend(text) == Blend((text,), (1.0,))
    assert as_motion_prompts(text) == [text]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("falls:x + rises:y", "'x' in 'falls:x' is not a number"),
        ("falls:0.5 + rises:half", "'half' in 'rises:half' is not a number"),
        ("falls:0.5->z + rises:1", "'z' in 'falls:0.5->z' is not a number"),
        ("falls:0.5-> + rises:1", "'' in 'falls:0.5->' is not a number"),
        ("falls:nan + rises:1", "the weight nan of 'falls' is not a finite number"),
        ("falls:1 + rises:0->inf", "the weight (0.0, inf) of 'rises' is not a finite number"),
        ("falls:0 + rises:0->0", "all weights are 0"),
        ("falls:0.5 + ", "a part is empty"),
        ("+ falls:0.5", "a part is empty"),
        ("falls:0.5 + + rises:0.5", "a part is empty"),
        (":0.5 + rises:0.5", "a prompt is empty"),
        ("falls:0.5 + rises", "'rises' has no weight"),
    ],
)
def test_bad_texts(text: str, line: str) -> None:
    with pytest.raises(MotionPromptError, match="blend: ") as error:
        parse_blend(text)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("prompts", "weights", "line"),
    [
        ((), (), "0 weights for 0 prompts"),
        (("a", "b"), (1,), "1 weights for 2 prompts"),
        (("a",), ("1",), "the weight '1' of 'a' is not a finite number"),
        (("a",), ((1, 2, 3),), "the weight (1, 2, 3) of 'a' is not a finite number"),
    ],
)
def test_bad_blends(prompts: Any, weights: Any, line: str) -> None:
    with pytest.raises(MotionPromptError) as error:
        Blend(prompts, weights)
    assert line in str(error.value)


def test_weights_change_linearly() -> None:
    blend = Blend(("a", "b"), ((1, 0), 0.5))
    times = torch.tensor([0, 0.25, 1])
    assert blend.weights_at(times).tolist() == [[1, 0.5], [0.75, 0.5], [0, 0.5]]


def test_a_segment_of_a_timeline_has_its_own_blend() -> None:
    timeline = Timeline((0, 3), ("a", "b:1->0 + c:0->1"))
    texts, weights = timeline.text_weights(6)
    assert texts == ["a", "b", "c"]
    assert weights.tolist() == [[1, 0, 0]] * 3 + [[0, 1, 0], [0, 0.5, 0.5], [0, 0, 1]]
    _, faded = timeline.text_weights(6, crossfade=2)
    assert faded[2].tolist() == [0.75, 0.25, 0]
    assert faded[3].tolist() == [0.25, 0.75, 0]
    with pytest.raises(MotionPromptError, match="'b' has no weight"):
        Timeline((0,), ("a:1 + b",))


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=4),
    st.lists(st.tuples(st.floats(-2, 2), st.floats(-2, 2)), min_size=1, max_size=3),
)
def test_weights_of_equal_segments_are_those_of_the_blend(
    lengths: list[int], ends: list[tuple[float, float]]
) -> None:
    blend = Blend(("x",) * len(ends), (*((a, a) for a, _ in ends[:-1]), (1, ends[-1][1])))
    starts = tuple(sum(lengths[:number]) for number in range(len(lengths)))
    _, weights = Timeline(starts, (blend,) * len(starts)).text_weights(sum(lengths))
    summed = weights.reshape(sum(lengths), len(starts), len(ends)).sum(1)
    for start, length in zip(starts, lengths, strict=True):
        times = torch.linspace(0, 1, length)
        own = blend.weights_at(times)
        assert torch.allclose(summed[start : start + length], own, atol=1e-5)


def test_one_prompt_with_weight_1_is_the_prompt(pipeline: DemoPipeline) -> None:
    assert as_motion_prompts([f"{FALLS}:1", Blend((FALLS,), (1,))]) == [FALLS, FALLS]
    assert as_motion_prompts([(0, f"{FALLS}:1")]) == [FALLS]
    assert as_motion_prompts(Blend(("a:0.5",), (1.0,))) == ["a:0.5"]
    plain = latents(pipeline, [RISES, FALLS])
    assert torch.equal(latents(pipeline, [f"{RISES}:1", [(0, Blend((FALLS,), (1.0,)))]]), plain)


def test_constant_weights_have_no_states_for_each_frame(pipeline: DemoPipeline) -> None:
    alone, _ = pipeline.encode_prompt(["a car", "a car"], [RISES, FALLS])
    texts = [f"{RISES}:0.25 + {FALLS}:0.75", RISES, Blend((FALLS, RISES), (2, -1))]
    states, _ = pipeline.encode_prompt(["a car"] * 3, texts)
    assert states.motion.shape == (3, *alone.motion.shape[1:])
    rises, falls = alone.motion
    torch.testing.assert_close(states.motion[0], 0.25 * rises + 0.75 * falls)
    torch.testing.assert_close(states.motion[1], rises)
    torch.testing.assert_close(states.motion[2], 2 * falls - rises)
    assert states.eot_index.tolist() == alone.eot_index[[1, 0, 1]].tolist()


def test_weights_that_change_interpolate_along_the_clip(pipeline: DemoPipeline) -> None:
    alone, _ = pipeline.encode_prompt(["a car", "a car"], [RISES, FALLS])
    ramp = f"{FALLS}:1->0 + {RISES}:0->1"
    states, _ = pipeline.encode_prompt("a car", ramp, num_frames=4)
    rises, falls = alone.motion
    expected = torch.stack([(1 - t) * falls + t * rises for t in (0, 1 / 3, 2 / 3, 1)])
    torch.testing.assert_close(states.motion[0], expected)
    plain = latents(pipeline, [FALLS, RISES])
    changed = latents(pipeline, [ramp, RISES])
    assert (changed[0] - plain[0]).abs().max() > 1e-3
    torch.testing.assert_close(changed[1], plain[1], atol=1e-4, rtol=1e-4)


def test_a_model_without_a_motion_branch(tiny_pipeline: DemoPipeline) -> None:
    parts = {**tiny_pipeline.components, "motion_encoder": None}
    parts["unet"] = DemoUNet.from_config({**tiny_pipeline.unet.config, "motion": False})
    with pytest.raises(TimelineError, match="the model has no motion encoder; give one prompt"):
        latents(DemoPipeline(**parts), [f"{RISES}:0.5 + {FALLS}:0.5", FALLS])


def test_prompts_encoded_beforehand_have_their_blends(tiny_folder: Path) -> None:
    model = resolve(str(tiny_folder))
    config = InferenceConfig(
        device="cpu", num_inference_steps=1, motion_prompt=f"{RISES}:0.5 + {FALLS}:0.5"
    )
    # A content prompt is not read as a blend, also beside a job that has a motion prompt.
    prompts = [("a", "a car"), ("b", "a pear", "it falls:1->0 + it rises:0->1")]
    jobs = make_jobs(prompts, repeat=1, seed=1)
    complete = Runner.load(model, config)
    lean = Runner.load(model, config, Plan(16, drop_text=True), jobs)
    for first, second in zip(complete.videos(jobs), lean.videos(jobs), strict=True):
        assert np.abs(first.frames.astype(int) - second.frames).max() <= 1


@pytest.fixture
def place(tmp_path: Path, tiny_folder: Path) -> Path:
    (tmp_path / "model").symlink_to(tiny_folder)
    (tmp_path / "bad.csv").write_text("id,motion,prompt\nx,falls:0 + rises:0,a car\n")
    return tmp_path


WORDS = ("generate", "a car", "--model", "model", "--steps", "1")


def test_the_command_line(place: Path) -> None:
    words = ("--motion", "0: falls:1->0 + rises:0->1", "--motion", "2: falls:0.5 + spins:0.5")
    done = in_process.run(place, *WORDS, *words)
    assert done.returncode == 0, done.stderr
    (entry,) = read_manifest(place / "outputs").values()
    assert entry["settings"]["motion"] == [words[1], words[3]]
    blend = ("--motion-prompt", "falls:0.7 + rises:0.3", "--out", "blend")
    done = in_process.run(place, *WORDS, *blend)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((*WORDS, "--motion-prompt", "a:x + b:1"), "blend: 'x' in 'a:x' is not a number"),
        ((*WORDS, "--motion", "0: a:nan + b:1"), "blend: the weight nan of 'a' is not a finite"),
        ((*WORDS, "motion_prompt=a:0 + b:0"), "blend: all weights are 0"),
        (
            ("generate", "--model", "model", "--prompts", "bad.csv"),
            "id 'x': blend: all weights are 0",
        ),
    ],
)
def test_bad_input(place: Path, words: tuple[str, ...], line: str) -> None:
    in_process.assert_refused(place, line, *words)
