"""The weighted sum of the losses, on answers whose terms are known by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler

from demo_t2v.training.config import DenoiserTraining
from demo_t2v.training.objective import Answer, Objective, Samples

SHAPE = (2, 3, 4, 8, 8)
TIMESTEPS = torch.tensor([100, 700])


def objective(motion: bool = True, **keys: Any) -> Objective:
    none = dict.fromkeys(
        ("video_motion_weight", "text_motion_weight", "regularization_weight"), 0.0
    )
    folders = {"log_dir": Path("a"), "autoencoder": Path("a"), "clip": Path("a")}
    config = DenoiserTraining(
        task="denoiser", train_dataset={"type": "sprites", "clips": 1},
        num_steps=1, batch_size=2, lr=1e-3,
        **{**folders, **none, **keys},
    )  # fmt: skip
    kind = config.prediction_type or "v_prediction"
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", prediction_type=kind)
    return Objective(config, scheduler, motion)


def samples() -> Samples:
    torch.manual_seed(0)
    ids = torch.zeros(2, 5, dtype=torch.long)
    return Samples(
        latents=torch.randn(SHAPE),
        noise=torch.randn(SHAPE),
        timesteps=TIMESTEPS,
        content_ids=ids,
        motion_ids=ids,
        heard=torch.tensor([True, True]),
        flow=torch.randn(2, 3, 2, 16, 16),
        image=torch.tensor([[1.0, 0.0], [0.0, 2.0]]),
    )


def noisy_and_velocity(batch: Samples) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noisy latents, the velocity a eps - s x0, and s (B, 1, 1, 1, 1), by the formulas."""
    kept = DDPMScheduler(beta_schedule="scaled_linear").alphas_cumprod[TIMESTEPS]
    a, s = kept.sqrt().view(-1, 1, 1, 1, 1), (1 - kept).sqrt().view(-1, 1, 1, 1, 1)
    return a * batch.latents + s * batch.noise, a * batch.noise - s * batch.latents, s


def test_the_perfect_answer_costs_nothing() -> None:
    batch = samples()
    noisy, velocity, _ = noisy_and_velocity(batch)
    loss, terms = objective(video_motion_weight=0.1)(batch, noisy, Answer(velocity))
    assert terms.keys() == {"diffusion", "video_motion"}
    assert loss.item() < 1e-9


def test_an_error_that_all_frames_share_is_none_of_motion() -> None:
    batch = samples()
    noisy, velocity, s = noisy_and_velocity(batch)
    same = Answer(velocity + 0.5)
    loss, terms = objective(video_motion_weight=0.1)(batch, noisy, same)
    assert terms["diffusion"] == pytest.approx(0.25, rel=1e-4)
    assert terms["video_motion"] == pytest.approx(0, abs=1e-9)
    assert loss.item() == pytest.approx(0.25, rel=1e-4)
    # An error +0.5, -0.5, ... in v is one of -+0.5 s in x0: neighbours differ by s.
    sign = torch.tensor([1.0, -1.0, 1.0, -1.0]).view(1, 1, 4, 1, 1)
    loss, terms = objective(video_motion_weight=0.1)(batch, noisy, Answer(velocity + 0.5 * sign))
    wanted = s.square().mean().item()
    assert terms["video_motion"] == pytest.approx(wanted, rel=1e-4)
    assert loss.item() == pytest.approx(0.25 + 0.1 * wanted, rel=1e-4)


def test_the_published_space_compares_the_noise() -> None:
    batch = samples()
    noisy, _, _ = noisy_and_velocity(batch)
    run = objective(video_motion_weight=1.0, video_motion_space="eps", prediction_type="epsilon")
    # |differences| of minus the noise are those of the noise.
    _, terms = run(batch, noisy, Answer(-batch.noise))
    assert terms["video_motion"] == pytest.approx(0, abs=1e-9)
    assert terms["diffusion"] == pytest.approx(4 * batch.noise.square().mean().item(), rel=1e-5)


def test_regularization_is_the_cosine_of_those_who_heard_the_caption() -> None:
    batch = samples()
    noisy, velocity, _ = noisy_and_velocity(batch)
    # The cosines are 1 and 0.6.
    answer = Answer(velocity, motion_state=torch.tensor([[3.0, 0.0], [4.0, 3.0]]))
    run = objective(regularization_weight=0.1)
    assert run(batch, noisy, answer)[1]["regularization"] == pytest.approx(-0.8)
    deaf = dataclasses.replace(batch, heard=torch.tensor([False, True]))
    assert run(deaf, noisy, answer)[1]["regularization"] == pytest.approx(-0.3)
    deaf = dataclasses.replace(batch, heard=torch.tensor([False, False]))
    assert run(deaf, noisy, answer)[1]["regularization"] == 0


@pytest.mark.parametrize("heard", [(True, True), (True, False), (False, False)])
def test_the_loss_of_a_batch_is_the_mean_of_its_parts(heard: tuple[bool, bool]) -> None:
    """However many processes share it out, whoever of them hears a caption."""
    batch = dataclasses.replace(samples(), heard=torch.tensor(heard))
    noisy, velocity, _ = noisy_and_velocity(batch)
    answer = Answer(velocity + 0.1, (torch.rand(2, 8, 8, 4),), torch.rand(2, 2))
    weights = {f"{name}_weight": 0.1 for name in ("video_motion", "text_motion", "regularization")}
    halves = []
    for row in (slice(0, 1), slice(1, 2)):
        half = {
            name: value[row] if value is not None else None for name, value in vars(batch).items()
        }
        part = Answer(answer.prediction[row], (answer.maps[0][row],), answer.motion_state[row])
        halves.append(objective(**weights)(Samples(**half), noisy[row], part)[0].item())
    whole = objective(**weights)(batch, noisy, answer)[0].item()
    assert whole == pytest.approx(sum(halves) / 2, rel=1e-5)


def test_text_motion_sends_gradients_to_the_attention_of_those_who_heard() -> None:
    batch = dataclasses.replace(samples(), heard=torch.tensor([False, True]))
    noisy, velocity, _ = noisy_and_velocity(batch)
    maps = tuple(torch.rand(2, 8, 8, 4, requires_grad=True) for _ in range(2))
    loss, terms = objective(text_motion_weight=0.1)(batch, noisy, Answer(velocity, maps))
    assert -1 <= terms["text_motion"] <= 1
    assert loss.item() == pytest.approx(0.1 * terms["text_motion"], abs=1e-6)
    loss.backward()
    for attention in maps:
        assert (attention.grad[0] == 0).all()
        assert attention.grad[1].abs().sum() > 0


def test_min_snr_weighs_each_sample() -> None:
    batch = samples()
    noisy, velocity, s = noisy_and_velocity(batch)
    _, terms = objective(min_snr_gamma=5)(batch, noisy, Answer(velocity + 1))
    kept = 1 - s.flatten().square()
    snr = kept / (1 - kept)
    wanted = (snr.clamp(max=5) / (snr + 1)).mean().item()
    assert terms["diffusion"] == pytest.approx(wanted, rel=1e-4)


def test_without_a_motion_branch_there_are_no_motion_losses() -> None:
    batch = samples()
    noisy, velocity, _ = noisy_and_velocity(batch)
    keys = {"video_motion_weight": 0.1, "text_motion_weight": 0.1, "regularization_weight": 0.1}
    _, terms = objective(motion=False, **keys)(batch, noisy, Answer(velocity))
    assert terms.keys() == {"diffusion"}
