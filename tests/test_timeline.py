"""Motion timelines: texts to frames, weights of prompts in frames, and what is refused."""

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
from demo_t2v.conditioning.timeline import (
    Timeline,
    TimelineError,
    parse_motion,
    parse_timeline,
)
from demo_t2v.config import InferenceConfig, load
from demo_t2v.inference.jobs import PromptError, make_jobs, read_prompts
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


def latents(pipeline: DemoPipeline, motion_prompt: Any, **options: Any) -> torch.Tensor:
    """Two videos of one batch, both with this motion prompt or the two of a list."""
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    result: torch.Tensor = pipeline(
        ["a car", "a pear"],
        motion_prompt=motion_prompt,
        generator=generators,
        num_inference_steps=2,
        output_type="latent",
        **options,
    ).frames
    return result


def test_entries_are_frames_or_seconds() -> None:
    timeline = parse_timeline(["0: rises", "0.5s: spins: fast", " 9 :falls "], fps=8)
    assert timeline == Timeline((0, 4, 9), ("rises", "spins: fast", "falls"))
    assert parse_motion("0: rises; 8: spins;", fps=8) == Timeline((0, 8), ("rises", "spins"))
    assert parse_motion("it spins: fast; then falls", fps=8) == "it spins: fast; then falls"


def test_without_a_cross_fade_each_frame_has_one_prompt() -> None:
    weights = Timeline((0, 2, 5), ("a", "b", "c")).frame_weights(6)
    expected = [[1, 0, 0]] * 2 + [[0, 1, 0]] * 3 + [[0, 0, 1]]
    assert weights.tolist() == expected
    assert Timeline((0, 2, 5), ("a", "b", "c")).frame_weights(6, crossfade=1).tolist() == expected


def test_a_cross_fade_is_linear_and_centred() -> None:
    weights = Timeline((0, 4), ("a", "b")).frame_weights(8, crossfade=4)
    second = [0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1]
    assert weights[:, 1].tolist() == second
    assert weights[:, 0].tolist() == [1 - share for share in second]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.floats(0, 9))
def test_weights_are_shares(lengths: list[int], width: float) -> None:
    starts = [sum(lengths[:number]) for number in range(len(lengths))]
    crossfade = min(width, *lengths) if len(lengths) > 1 else width
    weights = Timeline(tuple(starts), ("x",) * len(starts)).frame_weights(sum(lengths), crossfade)
    assert weights.shape == (sum(lengths), len(lengths))
    assert torch.allclose(weights.sum(dim=1), torch.ones(sum(lengths)))
    assert weights.min() >= -1e-6


@pytest.mark.parametrize(
    ("entries", "line"),
    [
        ([], "is empty"),
        (["rises"], "'rises' has no frame"),
        (["x: rises"], "'x: rises' has no frame"),
        (["1.5: rises"], "'1.5: rises' has no frame"),
        (["infs: rises"], "'infs: rises' has no frame"),
        (["-1: rises"], "'-1: rises' begins before the clip"),
        (["2: rises"], "begins at frame 2; it must begin at frame 0"),
        (["0: rises", "0: falls"], "frame 0 follows frame 0"),
        (["0: rises", "9: falls", "8: spins"], "frame 8 follows frame 9"),
        (["0: rises", "8:  "], "the motion prompt at frame 8 is empty"),
    ],
)
def test_bad_timelines(entries: list[str], line: str) -> None:
    with pytest.raises(TimelineError, match="timeline: ") as error:
        parse_timeline(entries, fps=8)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_a_timeline_fits_its_clip() -> None:
    timeline = Timeline((0, 16), ("rises", "falls"))
    with pytest.raises(TimelineError, match="frame 16 is beyond the clip; its last frame is 15"):
        timeline.frame_weights(16)
    with pytest.raises(TimelineError, match="the segment at frame 16 has 4 frames, fewer than"):
        timeline.frame_weights(20, crossfade=5)


def test_a_timeline_of_one_prompt_changes_nothing(pipeline: DemoPipeline) -> None:
    plain = latents(pipeline, [RISES, FALLS])
    assert torch.equal(latents(pipeline, [[(0, RISES)], Timeline((0,), (FALLS,))]), plain)
    same = latents(pipeline, [[(0, RISES), (2, RISES)], [(0, FALLS), (3, FALLS)]])
    torch.testing.assert_close(same, plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_a_timeline_changes_its_own_video_only(
    pipeline: DemoPipeline, guidance_scale: float
) -> None:
    options = {"guidance_scale": guidance_scale, "negative_prompt": "snow"}
    plain = latents(pipeline, [RISES, FALLS], **options)
    changed = latents(pipeline, [[(0, RISES), (2, FALLS)], FALLS], **options)
    assert (changed[0] - plain[0]).abs().max() > 1e-3
    torch.testing.assert_close(changed[1], plain[1], atol=1e-4, rtol=1e-4)
    faded = latents(pipeline, [[(0, RISES), (2, FALLS)], FALLS], motion_crossfade=2, **options)
    assert (faded[0] - changed[0]).abs().max() > 1e-4


def test_states_are_encoded_for_each_frame(pipeline: DemoPipeline) -> None:
    timeline = [(0, RISES), (2, FALLS)]
    states, negatives = pipeline.encode_prompt("a car", [timeline], "snow", num_frames=4)
    alone, _ = pipeline.encode_prompt(["a car", "a car"], [RISES, FALLS])
    assert states.motion.shape == (1, 4, *alone.motion.shape[1:])
    assert torch.allclose(states.motion[0, 1], alone.motion[0], atol=1e-5)
    assert torch.allclose(states.motion[0, 2], alone.motion[1], atol=1e-5)
    assert states.eot_index[0].tolist() == alone.eot_index[[0, 0, 1, 1]].tolist()
    assert negatives.motion.ndim == 3
    maps = pipeline.unet(
        torch.zeros(1, 4, 4, 4, 4), 500, states.content, states.motion, eot_index=states.eot_index
    ).eot_attention
    assert {each.shape[0] for each in maps} == {1}
    assert {each.shape[-1] for each in maps} == {4}


@pytest.mark.parametrize(
    ("motion_prompt", "line"),
    [
        ([[(1, RISES)], FALLS], "begins at frame 1"),
        ([[(0, RISES), (9, FALLS)], FALLS], "frame 9 is beyond the clip; its last frame is 3"),
        ([[(0, RISES), (2, "")], FALLS], "the motion prompt at frame 2 is empty"),
        ([[(0, RISES), (2, FALLS)]], "motion_prompt: 1 given for 2 prompts"),
    ],
)
def test_what_a_call_refuses(pipeline: DemoPipeline, motion_prompt: Any, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        latents(pipeline, motion_prompt)


def test_a_model_without_a_motion_branch(tiny_pipeline: DemoPipeline) -> None:
    parts = {**tiny_pipeline.components, "motion_encoder": None}
    torch.manual_seed(0)
    parts["unet"] = DemoUNet.from_config({**tiny_pipeline.unet.config, "motion": False})
    with pytest.raises(TimelineError, match="the model has no motion encoder; give one prompt"):
        latents(DemoPipeline(**parts), [[(0, RISES), (2, FALLS)], FALLS])


def test_prompts_encoded_beforehand_have_their_timelines(tiny_folder: Path) -> None:
    model = resolve(str(tiny_folder))
    config = InferenceConfig(
        device="cpu", num_inference_steps=2, motion=(f"0: {RISES}", f"2: {FALLS}")
    )
    jobs = make_jobs([("a", "a car"), ("b", "a pear", "it grows")], repeat=1, seed=1)
    complete = Runner.load(model, config)
    lean = Runner.load(model, config, Plan(16, drop_text=True), jobs)
    for first, second in zip(complete.videos(jobs), lean.videos(jobs), strict=True):
        assert np.abs(first.frames.astype(int) - second.frames).max() <= 1


def test_the_column_motion(tmp_path: Path) -> None:
    file = tmp_path / "prompts.csv"
    file.write_text(
        "id,motion,prompt\n1,0: rises; 8: falls,a car, red\n2,,a fish\n3,spins,a bell\n"
    )
    rows = [("1", "a car, red", "0: rises; 8: falls"), ("2", "a fish"), ("3", "a bell", "spins")]
    assert read_prompts(file) == rows
    first, second, third = make_jobs(rows, 1, 0)
    assert (first.motion, second.motion, third.motion) == ("0: rises; 8: falls", "", "spins")
    assert "motion" in first.entry
    assert "motion" not in second.entry
    lines = tmp_path / "prompts.jsonl"
    lines.write_text('{"prompt": "a car", "motion": 3}\n')
    with pytest.raises(PromptError, match="row 1: column `motion` should be text, not int"):
        read_prompts(lines)


@pytest.mark.parametrize(
    "text",
    [
        "motion: '0: rises; 8: falls'",
        "motion: ['0: rises', '8: falls']",
        "motion: {0: rises, 8: falls}",
        "motion:\n- 0: rises\n- 8: falls",
    ],
)
def test_a_timeline_in_yaml(tmp_path: Path, text: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    assert load(InferenceConfig, file).motion == ("0: rises", "8: falls")
    override = "motion='0: rises; 8: falls'"
    assert load(InferenceConfig, None, [override]).motion == ("0: rises", "8: falls")


@pytest.fixture
def place(tmp_path: Path, tiny_folder: Path) -> Path:
    (tmp_path / "model").symlink_to(tiny_folder)
    (tmp_path / "bad.csv").write_text("id,motion,prompt\nx,0: rises; 9: falls,a car\n")
    return tmp_path


WORDS = ("generate", "a car", "--model", "model", "--steps", "1")


def test_the_command_line(place: Path) -> None:
    words = (*WORDS, "--motion", "0: rises", "--motion", "0.25s: falls", "--motion-crossfade", "2")
    done = in_process.run(place, *words)
    assert done.returncode == 0, done.stderr
    (entry,) = read_manifest(place / "outputs").values()
    assert entry["settings"]["motion"] == ["0: rises", "0.25s: falls"]
    again = in_process.run(place, *words)
    assert (again.returncode, "1 were there already" in again.stderr) == (0, True)
    other = in_process.run(place, *WORDS, "--motion", "0: rises", "--motion", "3: falls")
    assert other.returncode == 2
    assert "made with motion" in other.stderr


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--motion", "1: rises"), "timeline: begins at frame 1; it must begin at frame 0"),
        (
            ("--motion", "0: a", "--motion", "4: b"),
            "frame 4 is beyond the clip; its last frame is 3",
        ),
        (("--motion", "0: a", "--motion", "0: b"), "frame 0 follows frame 0; frames must rise"),
        (("--motion", "rises"), "timeline: 'rises' has no frame; write FRAME: PROMPT"),
        (
            ("--motion", "0: a", "--motion", "2: "),
            "the motion prompt at frame 2 is empty",
        ),
        (("--motion", "0: a", "--motion-prompt", "b"), "motion and motion_prompt are both given"),
        (("--motion-crossfade", "-1"), "motion_crossfade: should be at least 0, not -1"),
        (("--motion-crossfade", "nan"), "motion_crossfade: should be a finite number, not nan"),
        (
            ("--motion", "0: a", "--motion", "2: b", "--motion-crossfade", "3"),
            "the segment at frame 0 has 2 frames, fewer than the cross-fade of 3",
        ),
    ],
)
def test_bad_input(place: Path, words: tuple[str, ...], line: str) -> None:
    in_process.assert_refused(place, line, *WORDS, *words)


def test_a_bad_row_is_named(place: Path) -> None:
    line = "id 'x': timeline: frame 9 is beyond the clip; its last frame is 3"
    words = ("generate", "--model", "model", "--prompts", "bad.csv")
    in_process.assert_refused(place, line, *words)
