"""Windows in time: their frames, their fusion, their noise, and videos longer than a window."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from demo_t2v.diffusion.windows import (
    fuse_windows,
    reschedule_noise,
    split_windows,
    window_weights,
)

SIZES = st.tuples(st.integers(1, 20), st.integers(1, 20)).map(lambda pair: (max(pair), min(pair)))
"""A window's frames and the stride, which is at most as long."""


@given(st.integers(1, 300), SIZES)
def test_windows_cover_all_frames(num_frames: int, sizes: tuple[int, int]) -> None:
    windows = split_windows(num_frames, *sizes)
    assert windows[0].start == 0
    assert windows[-1].stop == num_frames
    assert {window.stop - window.start for window in windows} == {min(num_frames, sizes[0])}
    for first, second in pairwise(windows):
        assert 0 < second.start - first.start <= sizes[1]
        assert second.start <= first.stop


def test_windows_by_hand() -> None:
    assert split_windows(4, 4, 2) == [slice(0, 4)]
    assert split_windows(8, 4, 2) == [slice(0, 4), slice(2, 6), slice(4, 8)]
    assert split_windows(9, 4, 3) == [slice(0, 4), slice(3, 7), slice(5, 9)]


@pytest.mark.parametrize("stride", [0, 5])
def test_a_stride_that_is_no_part_of_a_window(stride: int) -> None:
    with pytest.raises(ValueError, match=f"window_stride {stride}: must be .* at most .* 4 frames"):
        split_windows(8, 4, stride)


def test_weights_by_hand() -> None:
    """Windows of 1, 2, 2, 1, two apart: frame 2 has 2 of the first and 1 of the second."""
    first, second = window_weights([slice(0, 4), slice(2, 6)])
    torch.testing.assert_close(first, torch.tensor([1, 1, 2 / 3, 1 / 3]))
    torch.testing.assert_close(second, torch.tensor([1 / 3, 2 / 3, 1, 1]))


@given(st.integers(1, 100), SIZES)
def test_the_weights_of_a_frame_sum_to_one(num_frames: int, sizes: tuple[int, int]) -> None:
    windows, total = split_windows(num_frames, *sizes), torch.zeros(num_frames)
    for window, weight in zip(windows, window_weights(windows), strict=True):
        assert weight.min() > 0
        total[window] += weight
    torch.testing.assert_close(total, torch.ones(num_frames))


def test_equal_predictions_fuse_to_themselves() -> None:
    latents, timestep = torch.randn(2, 3, 11, 4, 4), torch.tensor(7)
    seen: list[slice] = []

    def denoiser_of(window: slice):  # type: ignore[no-untyped-def]
        seen.append(window)
        return lambda part, step: part.sin() * step

    windows = split_windows(11, 4, 3)
    fused = fuse_windows(denoiser_of, windows)(latents, timestep)
    torch.testing.assert_close(fused, latents.sin() * 7)
    assert seen == windows


def test_predictions_are_averaged_with_the_weights() -> None:
    windows = [slice(0, 4), slice(2, 6)]
    fused = fuse_windows(
        lambda window: lambda part, _: torch.full_like(part, window.start), windows
    )(torch.zeros(1, 1, 6, 1, 1), torch.tensor(0))
    expected = torch.tensor([0, 0, 2 / 3, 4 / 3, 2, 2])
    torch.testing.assert_close(fused.flatten(), expected)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_each_unit_of_noise_has_the_frames_of_one_of_the_first_window() -> None:
    noise = torch.randn(2, 3, 8, 2, 2)
    long = reschedule_noise(noise, 30, 4, generators(1, 2))
    assert long.shape == (2, 3, 30, 2, 2)
    assert torch.equal(long[:, :, :8], noise)
    for video, first in zip(long, noise, strict=True):
        frames = [
            next(n for n in range(8) if torch.equal(frame, first[:, n]))
            for frame in video.unbind(1)
        ]
        units = [frames[start : start + 4] for start in range(0, 30, 4)]
        assert [sorted(unit) for unit in units[:-1]] == [[0, 1, 2, 3], [4, 5, 6, 7]] * 3 + [
            [0, 1, 2, 3]
        ]
        assert len(set(units[-1])) == 2
        assert set(units[-1]) <= {4, 5, 6, 7}
        assert len({tuple(unit) for unit in units}) > 2


@pytest.mark.parametrize("stride", [1, 3, 5, 8])
def test_rescheduled_noise_is_standard_normal(stride: int) -> None:
    noise = torch.randn(2, 4, 8, 32, 32, generator=torch.Generator().manual_seed(0))
    long = reschedule_noise(noise, 61, stride, generators(1, 2))
    assert long.shape[2] == 61
    means, deviations = long.mean((1, 3, 4)), long.std((1, 3, 4))  # of 4096 numbers a frame
    assert means.abs().max() < 5 / 64
    assert (deviations - 1).abs().max() < 0.06
    between = (long[:, :, 1:] * long[:, :, :-1]).mean((1, 3, 4))
    if stride > 1:  # neighbours differ, but where a unit's last frame is the next one's first
        assert between.abs().median() < 5 / 64


def test_no_noise_depends_on_its_batch() -> None:
    noise = torch.randn(3, 2, 4, 2, 2)
    together = reschedule_noise(noise, 13, 2, generators(5, 6, 7))
    alone = reschedule_noise(noise[1:2], 13, 2, generators(6))
    assert torch.equal(together[1:2], alone)
    one = reschedule_noise(noise, 13, 2, torch.Generator().manual_seed(1))
    assert torch.equal(one, reschedule_noise(noise, 13, 2, torch.Generator().manual_seed(1)))
