"""The four losses, on cases counted by hand and on the published implementation's figures."""

from __future__ import annotations

import math

import pytest
import torch
from einops import rearrange
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from demo_t2v.checkpoints.original.importer import modelscope_scheduler
from demo_t2v.losses.motion import diffusion, regularization, text_motion, video_motion
from demo_t2v.losses.optical_flow import lucas_kanade, video_flow
from helpers.golden import make_input, recorded


def toy_prediction() -> tuple[Tensor, Tensor]:
    """The recorded figures' denoiser 0.8 sin(0.7 x + 0.001 t), and the noise."""
    shape = (2, 4, 8, 16, 16)
    latents, noise = make_input("x0", shape), make_input("eps", shape)
    timesteps = torch.tensor([3, 700])
    noisy = modelscope_scheduler().add_noise(latents, noise, timesteps)
    assert_close(noisy, recorded("losses.safetensors")["xt"], atol=1e-5, rtol=1e-5)
    return 0.8 * torch.sin(0.7 * noisy + 0.001 * timesteps.view(2, 1, 1, 1, 1)), noise


def test_diffusion_and_video_motion_agree_with_the_published_code() -> None:
    prediction, noise = toy_prediction()
    wanted = recorded("losses.safetensors")
    for sample in range(2):
        one = prediction[sample : sample + 1], noise[sample : sample + 1]
        assert_close(diffusion(*one), wanted["diffusion_loss"][sample], atol=0, rtol=1e-5)
        loss = video_motion(*one, space="eps")
        assert_close(loss, wanted["video_motion_loss_eps"][sample], atol=0, rtol=1e-5)


def test_diffusion_by_hand_with_and_without_weights() -> None:
    prediction = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    target = torch.tensor([[0.0, 0.0], [3.0, 1.0]])
    # The samples' errors are (1 + 4) / 2 = 2.5 and (9 + 1) / 2 = 5.
    assert diffusion(prediction, target).item() == pytest.approx(3.75)
    assert diffusion(prediction, target, torch.tensor([2.0, 0.0])).item() == pytest.approx(2.5)


def test_diffusion_refuses_shapes_that_would_be_broadcast() -> None:
    with pytest.raises(ValueError, match=r"\(2, 1\): should be that of target, \(2, 3\)"):
        diffusion(torch.zeros(2, 1), torch.zeros(2, 3))


def frames(*values: float) -> Tensor:
    """A clip (1, 1, F, 1, 1) of one number a frame."""
    return torch.tensor(values).view(1, 1, -1, 1, 1)


def test_video_motion_by_hand() -> None:
    predicted, real = frames(0.0, 1.0, -1.0), frames(5.0, 4.0, 4.0)
    # Differences 1, -2 against -1, 0: errors 4, 4; of absolute values: 0, 4.
    assert video_motion(predicted, real).item() == pytest.approx(4.0)
    assert video_motion(predicted, real, space="eps").item() == pytest.approx(2.0)


@given(st.floats(-5, 5), st.integers(0, 1000))
def test_video_motion_does_not_see_what_all_frames_share(shift: float, seed: int) -> None:
    clip = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(seed))
    assert video_motion(clip + shift, clip).item() == pytest.approx(0.0, abs=1e-10)


def test_one_frame_has_no_motion() -> None:
    with pytest.raises(ValueError, match="a clip of 1 frames has no motion"):
        video_motion(frames(1.0), frames(2.0))


def test_regularization_is_minus_the_cosine() -> None:
    motion = torch.tensor([[2.0, 0.0], [1.0, 1.0]])
    image = torch.tensor([[0.0, 3.0], [4.0, 0.0]])
    assert regularization(motion, image).item() == pytest.approx(-math.sqrt(0.5) / 2)
    assert regularization(motion, 7 * motion).item() == pytest.approx(-1.0)
    with pytest.raises(ValueError, match=r"image embedding, \(2, 2\)"):
        regularization(motion[:, :1], image)


def moving_blob(step_x: float, step_y: float, side: int = 32, count: int = 4) -> Tensor:
    """A soft spot that moves by so many pixels a frame: maps (1, side, side, count) in [0, 1]."""
    place = torch.arange(side, dtype=torch.float32)
    spots = [
        torch.exp(-((place - side / 2 - step_x * (f - 1.5)) ** 2) / 40)[None, :]
        * torch.exp(-((place - side / 2 - step_y * (f - 1.5)) ** 2) / 40)[:, None]
        for f in range(count)
    ]
    return torch.stack(spots, dim=-1)[None]


def clip_flow(maps: Tensor) -> Tensor:
    """The flow of a clip that looks like the maps."""
    return video_flow(lucas_kanade, rearrange(2 * maps - 1, "b h w f -> b 1 f h w"))


def test_attention_that_moves_as_the_clip_does_has_the_least_loss() -> None:
    right, left, down = (moving_blob(*step) for step in ((1.5, 0.0), (-1.5, 0.0), (0.0, 1.5)))
    flow = clip_flow(right)
    assert text_motion([right], lucas_kanade, flow).item() == pytest.approx(-1.0, abs=0.01)
    assert text_motion([left], lucas_kanade, flow).item() > 0.6
    assert abs(text_motion([down], lucas_kanade, flow).item()) < 0.3


def test_maps_of_one_resolution_are_averaged_and_resolutions_count_alike() -> None:
    right, left = moving_blob(1.5, 0.0), moving_blob(-1.5, 0.0)
    flow = clip_flow(right)
    fits = text_motion([right], lucas_kanade, flow)
    assert_close(text_motion([right, right, right], lucas_kanade, flow), fits)
    small = moving_blob(-0.75, 0.0, side=16)
    differs = text_motion([small], lucas_kanade, flow)
    both = text_motion([right, small, right], lucas_kanade, flow)
    assert_close(both, (fits + differs) / 2)
    # Two maps whose motions cancel are one map that goes nowhere in particular.
    assert abs(text_motion([right, left], lucas_kanade, flow).item()) < 0.5


def test_a_clip_or_a_map_that_stands_still_has_no_say() -> None:
    moving, still = moving_blob(1.5, 0.0), moving_blob(0.0, 0.0)
    assert text_motion([moving], lucas_kanade, clip_flow(still)).item() == pytest.approx(
        0, abs=0.01
    )
    blank = torch.full((1, 32, 32, 4), 0.3, requires_grad=True)
    loss = text_motion([blank], lucas_kanade, clip_flow(moving))
    assert loss.item() == pytest.approx(0, abs=1e-3)
    loss.backward()
    assert blank.grad is not None
    assert blank.grad.isfinite().all()


def test_gradients_reach_the_maps_through_the_estimator_but_not_the_real_flow() -> None:
    maps = moving_blob(0.0, 1.5, side=8).requires_grad_()
    flow = clip_flow(moving_blob(1.5, 0.0)).requires_grad_()
    text_motion([maps], lucas_kanade, flow).backward()
    assert maps.grad is not None
    assert maps.grad.isfinite().all()
    assert maps.grad.abs().sum() > 0
    assert flow.grad is None


def test_following_the_gradient_makes_the_maps_move_as_the_clip() -> None:
    flow = clip_flow(moving_blob(1.5, 0.0))
    shift = torch.tensor(0.3, requires_grad=True)
    place = torch.arange(32, dtype=torch.float32)

    def maps() -> Tensor:
        centre = 16 + shift * torch.arange(-1.5, 2.0)
        line = torch.exp(-((place[:, None] - centre) ** 2) / 40)  # (W, F)
        return (line * torch.exp(-((place - 16) ** 2) / 40)[:, None, None])[None]

    before = text_motion([maps()], lucas_kanade, flow)
    before.backward()
    assert shift.grad is not None
    assert shift.grad < 0


def test_maps_and_flow_of_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="no attention maps"):
        text_motion([], lucas_kanade, torch.zeros(1, 3, 2, 8, 8))
    with pytest.raises(ValueError, match="1 clips of 4 frames and a real flow of 1 clips of 6"):
        text_motion([moving_blob(1, 0)], lucas_kanade, torch.zeros(1, 5, 2, 8, 8))
