"""Guidance and the published sampler, against recorded figures and by hand."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from demo_t2v.checkpoints.original.importer import modelscope_scheduler
from demo_t2v.diffusion.guidance import classifier_free_guidance
from helpers.golden import make_input, recorded, relative_error


def toy_denoiser(latents: Tensor, timestep: Tensor) -> Tensor:
    """The denoiser of the recorded figures; it answers the first half, unconditional, with 0.6."""
    answer = torch.sin(0.7 * latents + 0.001 * timestep)
    gain = torch.tensor([0.6, 1.0]).repeat_interleave(len(latents) // 2)
    return gain.view(-1, 1, 1, 1, 1) * answer


def sample(steps: int) -> Tensor:
    """The published sampler's latents from the recorded noise, under guidance 9."""
    sampler = modelscope_scheduler()
    sampler.set_timesteps(steps)
    denoise = classifier_free_guidance(toy_denoiser, 9.0)
    latents = make_input("noise", (2, 4, 8, 16, 16))
    for timestep in sampler.timesteps:
        latents = sampler.step(denoise(latents, timestep), timestep, latents).prev_sample
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


def test_guidance_by_hand() -> None:
    """Unconditional 1 and 2, conditional 4 and -2: 1 + 3 (4 - 1) = 10, 2 + 3 (-2 - 2) = -10."""
    answers = torch.tensor([1.0, 2.0, 4.0, -2.0]).view(4, 1, 1, 1, 1)
    heard: list[Tensor] = []

    def denoise(latents: Tensor, timestep: Tensor) -> Tensor:
        assert timestep == 7
        heard.append(latents)
        return answers

    latents = torch.tensor([5.0, 6.0]).view(2, 1, 1, 1, 1)
    guided = classifier_free_guidance(denoise, 3.0)(latents, torch.tensor(7))
    assert guided.flatten().tolist() == [10.0, -10.0]
    assert [batch.flatten().tolist() for batch in heard] == [[5.0, 6.0, 5.0, 6.0]]


def test_scale_one_is_the_conditional_prediction_and_zero_the_unconditional() -> None:
    latents, timestep = make_input("latents", (3, 4, 2, 4, 4)), torch.tensor(300)
    answer = torch.sin(0.7 * latents + 0.3)
    for scale, expected in ((1.0, answer), (0.0, 0.6 * answer)):
        guided = classifier_free_guidance(toy_denoiser, scale)(latents, timestep)
        torch.testing.assert_close(guided, expected)
