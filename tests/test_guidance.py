"""Guidance and the published sampler, against recorded figures and by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from demo_t2v.checkpoints.original.importer import modelscope_scheduler
from demo_t2v.diffusion.guidance import Condition, ContentMotionGuidance, make_guidance
from helpers.golden import make_input, recorded, relative_error


def toy_predictions(
    latents: Tensor, timestep: Tensor, conditions: Sequence[Condition]
) -> list[Tensor]:
    """The denoiser of the recorded figures; the unconditional prediction is 0.6 of the other."""
    sine = torch.sin(0.7 * latents + 0.001 * timestep)
    return [sine * (1.0 if condition.content else 0.6) for condition in conditions]


def sample(steps: int) -> Tensor:
    """The published sampler's latents from the recorded noise, under guidance 9."""
    sampler = modelscope_scheduler()
    sampler.set_timesteps(steps)
    guider = make_guidance(9.0)
    latents = make_input("noise", (2, 4, 8, 16, 16))
    for timestep in sampler.timesteps:
        guided = guider(partial(toy_predictions, latents, timestep), 0.5)
        latents = sampler.step(guided, timestep, latents).prev_sample
    return latents


def test_the_published_noise_schedule() -> None:
    torch.testing.assert_close(
        modelscope_scheduler().alphas_cumprod.double(),
        recorded("ddim.safetensors")["alphas_cumprod"],
        rtol=1e-5,
        atol=0,
    )


def test_the_published_timesteps() -> None:
    sampler = modelscope_scheduler()
    sampler.set_timesteps(50)
    assert sampler.timesteps.tolist() == list(range(981, 0, -20))
    assert sampler.final_alpha_cumprod == sampler.alphas_cumprod[0]


@pytest.mark.parametrize(
    ("steps", "count", "first", "last"),
    [
        (1, 1, 1, 1),
        (3, 4, 999, 1),
        (7, 8, 995, 1),
        (30, 31, 991, 1),
        (150, 167, 997, 1),
        (600, 1000, 999, 1),
        (1000, 1000, 999, 1),
    ],
)
def test_steps_that_do_not_divide_the_training_s(
    steps: int, count: int, first: int, last: int
) -> None:
    sampler = modelscope_scheduler()
    sampler.set_timesteps(steps)
    timesteps = sampler.timesteps.tolist()
    assert (len(timesteps), timesteps[0], timesteps[-1]) == (count, first, last)
    strides = {before - after for before, after in pairwise(timesteps[1:])}
    assert strides <= {1000 // steps}


def test_more_steps_than_the_training_has_are_refused() -> None:
    with pytest.raises(ValueError, match="1001 cannot be larger than"):
        modelscope_scheduler().set_timesteps(1001)


@pytest.mark.parametrize("steps", [30, 150, 1000])
def test_guided_ddim_of_uneven_steps_matches_the_recorded_figures(steps: int) -> None:
    assert (
        relative_error(sample(steps), recorded("ddim_uneven.safetensors")[f"ddim_{steps}"]) < 1e-5
    )


@pytest.mark.parametrize("steps", [20, 50])
def test_guided_ddim_matches_the_recorded_figures(steps: int) -> None:
    assert relative_error(sample(steps), recorded("ddim.safetensors")[f"ddim_{steps}"]) < 1e-5


NEGATIVE, CONTENT, MOTION, POSITIVE = (
    Condition(content, motion)
    for content, motion in ((False, False), (True, False), (False, True), (True, True))
)
BYPASS = Condition(True, True, bypass=True)
PREDICTIONS = {NEGATIVE: 1.0, CONTENT: 4.0, MOTION: 3.0, POSITIVE: 6.0, BYPASS: 5.5}


def guide(guider: ContentMotionGuidance, noise_level: float = 0.5) -> tuple[float, list[Condition]]:
    """The guided value of PREDICTIONS, and the conditions that were predicted."""
    asked: list[Condition] = []

    def predict(conditions: Sequence[Condition]) -> list[Tensor]:
        asked.extend(conditions)
        return [torch.tensor(PREDICTIONS[condition]) for condition in conditions]

    return float(guider(predict, noise_level)), asked


@pytest.mark.parametrize(
    ("options", "expected", "conditions"),
    [
        ({"guidance_scale": 3}, 1 + 3 * 5, [NEGATIVE, POSITIVE]),
        ({"guidance_scale": 1}, 6, [POSITIVE]),
        ({"guidance_scale": 0.5}, 6, [POSITIVE]),  # as in diffusers: no guidance
        (
            {"guidance_scale": 2, "motion_guidance_scale": 4},
            1 + 2 * 3 + 4 * 2,
            [NEGATIVE, CONTENT, POSITIVE],
        ),
        (
            {"guidance_scale": 2, "motion_guidance_scale": 4, "guidance_order": "motion"},
            1 + 4 * 2 + 2 * 3,
            [NEGATIVE, MOTION, POSITIVE],
        ),
        ({"guidance_scale": 4, "content_guidance_scale": 1}, 4 + 4 * 2, [CONTENT, POSITIVE]),
        (
            {"guidance_scale": 3, "motion_guidance_scale": 0},
            1 + 3 * 3,
            [NEGATIVE, CONTENT, POSITIVE],
        ),
        (
            {"guidance_scale": 2, "bypass_guidance_scale": 0.5},
            1 + 2 * 5 + 0.5 * 0.5,
            [NEGATIVE, POSITIVE, BYPASS],
        ),
        ({"guidance_scale": 1, "bypass_guidance_scale": 2}, 6 + 2 * 0.5, [POSITIVE, BYPASS]),
    ],
)
def test_guidance_by_hand(
    options: dict[str, Any], expected: float, conditions: list[Condition]
) -> None:
    assert guide(make_guidance(**options)) == (expected, conditions)


def test_a_scale_acts_in_its_interval() -> None:
    guider = make_guidance(
        2.0,
        motion_guidance_scale=4.0,
        bypass_guidance_scale=1.0,
        content_guidance_interval=(0.0, 0.6),
        motion_guidance_interval=(0.3, 1.0),
        bypass_guidance_interval=(0.0, 0.1),
    )
    assert guide(guider, 0.05) == (1 + 2 * 3 + 2 + 0.5, [NEGATIVE, CONTENT, POSITIVE, BYPASS])
    assert guide(guider, 0.2)[0] == 1 + 2 * 3 + 2
    assert guide(guider, 0.3)[0] == guide(guider, 0.6)[0] == 1 + 2 * 3 + 4 * 2
    assert guide(guider, 0.7) == (4 + 4 * 2, [CONTENT, POSITIVE])


def test_one_interval_for_content_and_motion() -> None:
    guider = make_guidance(3.0, guidance_interval=(0.4, 0.8))
    assert guide(guider, 0.4) == guide(guider, 0.8) == (1 + 3 * 5, [NEGATIVE, POSITIVE])
    assert guide(guider, 0.3) == guide(guider, 0.9) == (6, [POSITIVE])


def test_the_interval_of_one_prompt_replaces_that_of_both() -> None:
    guider = make_guidance(3.0, guidance_interval=(0.4, 0.8), motion_guidance_interval=(0.0, 0.5))
    assert guide(guider, 0.5)[0] == 1 + 3 * 5
    assert guide(guider, 0.2)[0] == 4 + 3 * 2  # the motion prompt alone is guided
    assert guide(guider, 0.6)[0] == 1 + 3 * 3 + 2  # the content prompt alone


@given(st.floats(0, 20), st.floats(0, 20), st.sampled_from(["content", "motion"]))
def test_the_sum_is_that_of_the_equation(content: float, motion: float, order: Any) -> None:
    between = PREDICTIONS[CONTENT if order == "content" else MOTION]
    first, second = (content, motion) if order == "content" else (motion, content)
    expected = 1 + first * (between - 1) + second * (6 - between)
    guided, _ = guide(make_guidance(2.0, content, motion, guidance_order=order))
    assert guided == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("scale", [-1.0, math.nan, math.inf])
@pytest.mark.parametrize(
    "name",
    ["guidance_scale", "content_guidance_scale", "motion_guidance_scale", "bypass_guidance_scale"],
)
def test_scales_that_cannot_be(name: str, scale: float) -> None:
    with pytest.raises(ValueError, match=f"guidance scale {scale}: must be finite, and 0 or more"):
        make_guidance(**{"guidance_scale": 2.0, name: scale})


@pytest.mark.parametrize("interval", [(0.5, 0.2), (-0.1, 1.0), (0.0, 1.1), (math.nan, 1.0)])
def test_intervals_that_cannot_be(interval: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="must be two noise levels from 0 to 1"):
        make_guidance(2.0, motion_guidance_interval=interval)
    with pytest.raises(ValueError, match="must be two noise levels from 0 to 1"):
        make_guidance(2.0, guidance_interval=interval)
