"""The weighted sum of the losses, on outputs with known terms."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler

from demo_t2v.losses.objective import DenoiserBatch, DenoiserOutput, Objective

SHAPE = (2, 3, 4, 8, 8)
TIMESTEPS = torch.tensor([100, 700])


def objective(prediction_type: str = "v_prediction", **keys: Any) -> Objective:
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", prediction_type=prediction_type)
    return Objective(scheduler, **keys)


def make_batch() -> DenoiserBatch:
    torch.manual_seed(0)
    ids = torch.zeros(2, 5, dtype=torch.long)
    return DenoiserBatch(
        latents=torch.randn(SHAPE),
        noise=torch.randn(SHAPE),
        timesteps=TIMESTEPS,
        content_ids=ids,
        motion_ids=ids,
        has_motion_prompt=torch.tensor([True, True]),
        flow=torch.randn(2, 3, 2, 16, 16),
        image=torch.tensor([[1.0, 0.0], [0.0, 2.0]]),
    )


def noisy_and_velocity(batch: DenoiserBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noisy latents, the velocity a eps - s x0, and s (B, 1, 1, 1, 1), by the formulas."""
    kept = DDPMScheduler(beta_schedule="scaled_linear").alphas_cumprod[TIMESTEPS]
    a, s = kept.sqrt().view(-1, 1, 1, 1, 1), (1 - kept).sqrt().view(-1, 1, 1, 1, 1)
    return a * batch.latents + s * batch.noise, a * batch.noise - s * batch.latents, s


def test_the_loss_of_a_perfect_prediction_is_zero() -> None:
    batch = make_batch()
    noisy, velocity, _ = noisy_and_velocity(batch)
    loss, terms = objective(video_motion_weight=0.1)(batch, noisy, DenoiserOutput(velocity))
    assert terms.keys() == {"diffusion", "video_motion"}
    assert loss.item() < 1e-9


def test_an_equal_error_in_all_frames_is_no_motion_error() -> None:
    batch = make_batch()
    noisy, velocity, s = noisy_and_velocity(batch)
    same = DenoiserOutput(velocity + 0.5)
    loss, terms = objective(video_motion_weight=0.1)(batch, noisy, same)
    assert terms["diffusion"] == pytest.approx(0.25, rel=1e-4)
    assert terms["video_motion"] == pytest.approx(0, abs=1e-9)
    assert loss.item() == pytest.approx(0.25, rel=1e-4)
    # An error +0.5, -0.5, ... in v is one of -+0.5 s in x0: neighbours differ by s.
    sign = torch.tensor([1.0, -1.0, 1.0, -1.0]).view(1, 1, 4, 1, 1)
    loss, terms = objective(video_motion_weight=0.1)(
        batch, noisy, DenoiserOutput(velocity + 0.5 * sign)
    )
    wanted = s.square().mean().item()
    assert terms["video_motion"] == pytest.approx(wanted, rel=1e-4)
    assert loss.item() == pytest.approx(0.25 + 0.1 * wanted, rel=1e-4)


def test_the_published_space_compares_the_noise() -> None:
    batch = make_batch()
    noisy, _, _ = noisy_and_velocity(batch)
    run = objective(video_motion_weight=1.0, video_motion_space="eps", prediction_type="epsilon")
    # |differences| of minus the noise are those of the noise.
    _, terms = run(batch, noisy, DenoiserOutput(-batch.noise))
    assert terms["video_motion"] == pytest.approx(0, abs=1e-9)
    assert terms["diffusion"] == pytest.approx(4 * batch.noise.square().mean().item(), rel=1e-5)


def test_regularization_is_the_cosine_of_the_samples_with_a_motion_prompt() -> None:
    batch = make_batch()
    noisy, velocity, _ = noisy_and_velocity(batch)
    # The cosines are 1 and 0.6.
    output = DenoiserOutput(velocity, motion_state=torch.tensor([[3.0, 0.0], [4.0, 3.0]]))
    run = objective(regularization_weight=0.1)
    assert run(batch, noisy, output)[1]["regularization"] == pytest.approx(-0.8)
    dropped = dataclasses.replace(batch, has_motion_prompt=torch.tensor([False, True]))
    assert run(dropped, noisy, output)[1]["regularization"] == pytest.approx(-0.3)
    dropped = dataclasses.replace(batch, has_motion_prompt=torch.tensor([False, False]))
    assert run(dropped, noisy, output)[1]["regularization"] == 0


@pytest.mark.parametrize("prompted", [(True, True), (True, False), (False, False)])
def test_the_loss_of_a_batch_is_the_mean_over_its_halves(prompted: tuple[bool, bool]) -> None:
    """Also where samples have no motion prompt."""
    batch = dataclasses.replace(make_batch(), has_motion_prompt=torch.tensor(prompted))
    noisy, velocity, _ = noisy_and_velocity(batch)
    output = DenoiserOutput(velocity + 0.1, (torch.rand(2, 8, 8, 4),), torch.rand(2, 2))
    weights = {f"{name}_weight": 0.1 for name in ("video_motion", "text_motion", "regularization")}
    halves = []
    for row in (slice(0, 1), slice(1, 2)):
        half = {
            name: value[row] if value is not None else None for name, value in vars(batch).items()
        }
        half_output = DenoiserOutput(
            output.prediction[row], (output.attention_maps[0][row],), output.motion_state[row]
        )
        halves.append(
            objective(**weights)(DenoiserBatch(**half), noisy[row], half_output)[0].item()
        )
    whole = objective(**weights)(batch, noisy, output)[0].item()
    assert whole == pytest.approx(sum(halves) / 2, rel=1e-5)


def test_text_motion_has_gradients_for_samples_with_a_motion_prompt() -> None:
    batch = dataclasses.replace(make_batch(), has_motion_prompt=torch.tensor([False, True]))
    noisy, velocity, _ = noisy_and_velocity(batch)
    maps = tuple(torch.rand(2, 8, 8, 4, requires_grad=True) for _ in range(2))
    loss, terms = objective(text_motion_weight=0.1)(batch, noisy, DenoiserOutput(velocity, maps))
    assert -1 <= terms["text_motion"] <= 1
    assert loss.item() == pytest.approx(0.1 * terms["text_motion"], abs=1e-6)
    loss.backward()
    for attention in maps:
        assert (attention.grad[0] == 0).all()
        assert attention.grad[1].abs().sum() > 0


def test_min_snr_weighs_each_sample() -> None:
    batch = make_batch()
    noisy, velocity, s = noisy_and_velocity(batch)
    _, terms = objective(min_snr_gamma=5)(batch, noisy, DenoiserOutput(velocity + 1))
    kept = 1 - s.flatten().square()
    snr = kept / (1 - kept)
    wanted = (snr.clamp(max=5) / (snr + 1)).mean().item()
    assert terms["diffusion"] == pytest.approx(wanted, rel=1e-4)
