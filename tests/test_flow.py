"""Flow estimators on pictures that were moved by a known amount."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from demo_t2v.losses.optical_flow import Raft, lucas_kanade, resize, resize_flow, video_flow, warp


def texture(x: Tensor, y: Tensor) -> Tensor:
    """A smooth pattern that is known at every real-numbered place."""
    waves = torch.sin(x / 3.1 + 0.4) + torch.cos(y / 2.7) + torch.sin((x + 2 * y) / 6.3)
    return waves / 3


def picture(shift_x: float = 0.0, shift_y: float = 0.0, side: int = 32) -> Tensor:
    """(1, 1, side, side): the texture moved right and down by so many pixels."""
    place = torch.arange(side, dtype=torch.float32)
    return texture(place[None, :] - shift_x, place[:, None] - shift_y)[None, None]


@settings(max_examples=25, deadline=None)
@given(x=st.floats(-2.5, 2.5), y=st.floats(-2.5, 2.5))
def test_lucas_kanade_finds_how_far_a_picture_was_moved(x: float, y: float) -> None:
    flow = lucas_kanade(picture(), picture(x, y))
    inner = flow[0, :, 6:-6, 6:-6]
    assert (inner[0] - x).abs().mean() < 0.25
    assert (inner[1] - y).abs().mean() < 0.25


def test_lucas_kanade_finds_a_small_thing_that_moves_alone() -> None:
    place = torch.arange(32, dtype=torch.float32)

    def spot(x: float) -> Tensor:
        across, down = -((place - x) ** 2) / 12, -((place - 16) ** 2) / 12
        return (across.exp()[None, :] * down.exp()[:, None])[None, None]

    flow = lucas_kanade(spot(14), spot(16))
    assert flow[0, 0, 16, 15].item() == pytest.approx(2.0, abs=0.3)
    assert flow[0, :, 16, 15][1].abs() < 0.2
    assert flow[0, :, 2, 2].abs().max() < 0.05  # the far corner is blank: it stays


def test_frames_of_one_colour_do_not_move_and_pass_finite_gradients() -> None:
    first = torch.zeros(2, 3, 16, 16, requires_grad=True)
    second = torch.full((2, 3, 16, 16), 0.5, requires_grad=True)
    flow = lucas_kanade(first, second)
    assert_close(flow, torch.zeros(2, 2, 16, 16))
    flow.square().sum().backward()
    for frame in (first, second):
        assert frame.grad is not None
        assert frame.grad.isfinite().all()


def test_the_gradient_of_the_flow_is_the_one_measured() -> None:
    first, second = picture(side=10).double(), picture(0.4, -0.2, side=10).double()
    assert torch.autograd.gradcheck(
        lambda f, s: lucas_kanade(f, s)[..., 3:7, 3:7].mean(),
        (first.requires_grad_(), second.requires_grad_()),
        atol=1e-4,
        fast_mode=True,
    )


def test_a_clip_s_pairs_go_through_in_one_call_and_come_back_in_order() -> None:
    calls = []

    def estimator(first: Tensor, second: Tensor) -> Tensor:
        calls.append(len(first))
        return torch.cat([first, second - first], dim=1)

    number = torch.arange(6.0).view(2, 1, 3, 1, 1) ** 2  # clips 0, 1, 4 and 9, 16, 25
    flow = video_flow(estimator, number.expand(2, 1, 3, 4, 4))
    assert calls == [4]
    assert flow[:, :, :, 0, 0].tolist() == [[[0, 1], [1, 3]], [[9, 7], [16, 9]]]
    with pytest.raises(ValueError, match="a clip of 1 frames has no flow"):
        video_flow(estimator, number[:, :, :1])


def test_resizing_a_flow_resizes_its_numbers_too() -> None:
    flow = torch.tensor([3.0, -1.0]).view(1, 2, 1, 1).expand(1, 2, 4, 6)
    wider = resize_flow(flow, (8, 18))
    assert_close(wider, torch.tensor([9.0, -2.0]).view(1, 2, 1, 1).expand(1, 2, 8, 18))


def test_a_smaller_picture_shows_the_mean_of_what_it_covers() -> None:
    stripes = torch.tensor([1.0, -1.0] * 8).expand(1, 1, 16, 16)
    assert resize(stripes, (4, 4))[..., 1:3, 1:3].abs().max() < 0.2


def test_warp_follows_the_flow_and_repeats_the_edge() -> None:
    ramp = torch.arange(6.0).expand(1, 1, 4, 6)
    flow = torch.zeros(1, 2, 4, 6)
    flow[:, 0] = 1.5
    assert_close(warp(ramp, flow)[0, 0, 0], torch.tensor([1.5, 2.5, 3.5, 4.5, 5.0, 5.0]))
    assert_close(warp(picture(2.0, 0.0), flow.new_zeros(1, 2, 32, 32)), picture(2.0, 0.0))


class Doubling(nn.Module):
    """In RAFT's place: its flow is the difference of the frames' means in pixels of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.sizes: list[tuple[int, ...]] = []

    def forward(self, first: Tensor, second: Tensor) -> list[Tensor]:
        self.sizes.append(tuple(first.shape))
        step = self.weight * (second - first).mean((1, 2, 3))
        flow = step.view(-1, 1, 1, 1).expand(-1, 2, *first.shape[2:])
        return [0 * flow, flow]


def test_raft_gets_sizes_that_it_takes_and_gives_the_last_flow_in_the_callers_pixels() -> None:
    network = Doubling()
    first = torch.zeros(3, 1, 36, 60, requires_grad=True)
    flow = Raft(network=network)(first, torch.ones(3, 1, 36, 60))
    assert network.sizes == [(3, 3, 128, 216)]
    # One pixel of a frame of 128 x 216 is 36/128 and 60/216 of one here.
    assert_close(flow[:, 0], torch.full((3, 36, 60), 60 / 216))
    assert_close(flow[:, 1], torch.full((3, 36, 60), 36 / 128))
    flow.sum().backward()
    assert first.grad is not None
    assert first.grad.abs().sum() > 0
    assert network.weight.grad is None  # frozen


def test_raft_weights_are_read_from_a_file(tmp_path: Path) -> None:
    torch.save({"weight": torch.tensor(2.0)}, tmp_path / "raft.pth")
    raft = Raft(tmp_path / "raft.pth", network=Doubling())
    flow = raft(torch.zeros(1, 3, 128, 128), torch.ones(1, 3, 128, 128))
    assert_close(flow, torch.full((1, 2, 128, 128), 2.0))


def test_a_file_that_holds_other_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.pth: cannot be read"):
        Raft(tmp_path / "none.pth", network=Doubling())
    torch.save({"other": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth: does not hold this RAFT"):
        Raft(tmp_path / "other.pth", network=Doubling())
    (tmp_path / "text.pth").write_text("no weights at all")
    with pytest.raises(ValueError, match=r"text\.pth: does not hold this RAFT"):
        Raft(tmp_path / "text.pth", network=Doubling())


@pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is not None, reason="torchvision is installed"
)
def test_without_torchvision_raft_says_what_to_install() -> None:
    with pytest.raises(ValueError, match=r"pip install 'demo-t2v\[raft\]'"):
        Raft()
