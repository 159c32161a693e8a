"""What a prediction says about the clean latents, and the weights and noise of training."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from demo_t2v.diffusion.noise import latents_and_noise, min_snr_weights, offset_noise

SCHEDULE = torch.tensor([0.96, 0.64, 0.36, 0.04])  # a = 0.98, 0.8, 0.6, 0.2


def test_latents_and_noise_of_an_epsilon_by_hand() -> None:
    # a = 0.8, s = 0.6: 0.8 * 2 + 0.6 * 5 = 4.6.
    noisy, epsilon = torch.full((1, 1), 4.6), torch.full((1, 1), 5.0)
    latents, noise = latents_and_noise(epsilon, noisy, torch.tensor([1]), SCHEDULE, "epsilon")
    assert_close(latents, torch.full((1, 1), 2.0))
    assert_close(noise, epsilon)


def test_latents_and_noise_of_a_velocity_by_hand() -> None:
    # v = a epsilon - s x0 = 0.8 * 5 - 0.6 * 2 = 2.8.
    noisy, velocity = torch.full((1, 1), 4.6), torch.full((1, 1), 2.8)
    latents, noise = latents_and_noise(velocity, noisy, torch.tensor([1]), SCHEDULE, "v_prediction")
    assert_close(latents, torch.full((1, 1), 2.0))
    assert_close(noise, torch.full((1, 1), 5.0))


@given(
    seed=st.integers(0, 2**31),
    kind=st.sampled_from(["epsilon", "v_prediction"]),
    timestep=st.integers(0, 600),
)
def test_the_scheduler_s_targets_give_back_what_went_in(
    seed: int, kind: str, timestep: int
) -> None:
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", prediction_type=kind)
    draws = torch.Generator().manual_seed(seed)
    latents, noise = torch.randn(2, 2, 3, 2, 4, 4, generator=draws, dtype=torch.float64)
    timesteps = torch.tensor([timestep, timestep // 2, 7])[:2]
    noisy = scheduler.add_noise(latents, noise, timesteps)
    target = noise if kind == "epsilon" else scheduler.get_velocity(latents, noise, timesteps)
    kept = scheduler.alphas_cumprod.double()
    found = latents_and_noise(target, noisy, timesteps, kept, kind)  # type: ignore[arg-type]
    for got, wanted in zip(found, (latents, noise), strict=True):
        assert_close(got, wanted, atol=1e-4, rtol=1e-4)


def test_min_snr_weights_by_hand() -> None:
    # The signal-to-noise ratios are 24, 16/9, 9/16 and 1/24.
    every = torch.arange(4)
    epsilon = min_snr_weights(every, SCHEDULE, "epsilon", gamma=5.0)
    assert_close(epsilon, torch.tensor([5 / 24, 1.0, 1.0, 1.0]))
    velocity = min_snr_weights(every, SCHEDULE, "v_prediction", gamma=5.0)
    assert_close(velocity, torch.tensor([5 / 25, 16 / 25, 9 / 25, 1 / 25]))


def test_another_prediction_type_is_refused() -> None:
    with pytest.raises(ValueError, match="'sample': should be epsilon or v_prediction"):
        min_snr_weights(torch.tensor([0]), SCHEDULE, "sample")  # type: ignore[arg-type]
    ones = torch.ones(1, 1)
    with pytest.raises(ValueError, match="'sample': should be epsilon or v_prediction"):
        latents_and_noise(ones, ones, torch.tensor([0]), SCHEDULE, "sample")  # type: ignore[arg-type]


def test_offset_noise_shifts_a_whole_frame_by_one_number() -> None:
    noise = torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    offset = torch.arange(24.0).view(2, 3, 4)
    shift = offset_noise(noise, offset, 0.1) - noise
    assert_close(shift, (0.1 * offset)[..., None, None].expand_as(noise))
    of_a_clip = offset_noise(noise, offset[..., :1], 0.1) - noise
    assert_close(of_a_clip, (0.1 * offset[..., :1])[..., None, None].expand_as(noise))
    assert offset_noise(noise, offset, 0.0).equal(noise)
