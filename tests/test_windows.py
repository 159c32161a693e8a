"""Windows in time: their frames, their fusion, their noise, and videos longer than a window."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from demo_t2v.data.video import read_video
from demo_t2v.diffusion.windows import (
    average_windows,
    fuse_windows,
    reschedule_noise,
    split_windows,
    window_weights,
)
from demo_t2v.inference.outputs import read_manifest
from demo_t2v.pipeline import DemoPipeline
from helpers import in_process
from helpers.pipelines import with_effective_motion
from helpers.program import assert_one_line

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


def test_an_average_by_hand() -> None:
    """Of maps (B, F, h, w), as those of attention."""
    windows = [slice(0, 2), slice(1, 3)]
    parts = [torch.full((1, 2, 3, 3), 4.0), torch.full((1, 2, 3, 3), 6.0)]
    average = average_windows(parts, windows, dim=1)
    assert average.shape == (1, 3, 3, 3)
    assert average[0, :, 0, 0].tolist() == [4, 5, 6]


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


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline: DemoPipeline) -> DemoPipeline:
    return with_effective_motion(tiny_pipeline)


def latents(pipeline: DemoPipeline, num_frames: int, **options: Any) -> Tensor:
    """Two videos of one batch; the network is trained for 4 frames."""
    result: Tensor = pipeline(
        **{"prompt": ["a car", "a pear"], "generator": generators(1, 2)} | options,
        num_frames=num_frames,
        num_inference_steps=2,
        output_type="latent",
    ).frames
    return result


@pytest.fixture
def seen(pipeline: DemoPipeline) -> Iterator[list[int]]:
    """The numbers of frames that the network gets."""
    frames: list[int] = []
    hook = pipeline.unet.register_forward_pre_hook(
        lambda _, given: frames.append(given[0].shape[2])
    )
    yield frames
    hook.remove()


@pytest.fixture
def prepared(pipeline: DemoPipeline, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the motion states whose keys and values are computed."""
    shapes: list[tuple[int, ...]] = []
    prepare = pipeline.unet.prepare_conditioning

    def record(content: Tensor, motion: Tensor) -> Any:
        shapes.append(tuple(motion.shape))
        return prepare(content, motion)

    monkeypatch.setattr(pipeline.unet, "prepare_conditioning", record)
    return shapes


def test_a_clip_of_one_window_is_the_same(pipeline: DemoPipeline, seen: list[int]) -> None:
    plain = latents(pipeline, 4)
    assert seen == [4, 4]
    assert torch.equal(latents(pipeline, 4, window_frames=9, window_stride=1), plain)


def test_a_long_video_is_denoised_in_windows(
    pipeline: DemoPipeline, seen: list[int], prepared: list[tuple[int, ...]]
) -> None:
    video = latents(pipeline, 9)
    assert video.shape == (2, 4, 9, 4, 4)
    assert seen == [4] * 4 * 2  # windows from 0, 2, 4, 5; two steps
    assert len(prepared) == 1
    seen.clear()
    latents(pipeline, 9, window_frames=6, window_stride=3)
    assert seen == [6] * 2 * 2


def test_no_long_video_depends_on_its_batch(pipeline: DemoPipeline) -> None:
    together = latents(pipeline, 9)
    alone = latents(pipeline, 9, prompt="a pear", generator=generators(2))
    torch.testing.assert_close(together[1:], alone, atol=1e-4, rtol=1e-4)


def test_a_timeline_runs_over_all_windows(
    pipeline: DemoPipeline, seen: list[int], prepared: list[tuple[int, ...]]
) -> None:
    rises, falls = "a car moves up", "a fish falls"
    plain = latents(pipeline, 40, motion_prompt=[rises, falls])
    seen.clear()
    prepared.clear()
    changed = latents(pipeline, 40, motion_prompt=[[(0, rises), (36, falls)], falls])
    assert seen == [4] * 19 * 2
    assert {shape[1] for shape in prepared} == {4}  # of the frames of one window
    assert (changed[0] - plain[0])[:, 36:].abs().max() > 1e-3
    torch.testing.assert_close(changed[0, :, :32], plain[0, :, :32], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(changed[1], plain[1], atol=1e-4, rtol=1e-4)


def test_a_callback_gets_all_frames(pipeline: DemoPipeline) -> None:
    shapes = []

    def look(_: Any, _step: int, _timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        shapes.append((tensors["latents"].shape, tensors["clean"].shape))
        return tensors

    video = latents(
        pipeline,
        9,
        callback_on_step_end=look,
        callback_on_step_end_tensor_inputs=["latents", "clean"],
    )
    assert shapes == [(video.shape, video.shape)] * 2


def test_the_attention_of_all_frames(pipeline: DemoPipeline) -> None:
    """The first two frames are in one window alone."""

    def maps(num_frames: int) -> Tensor:
        attention: Tensor = pipeline(
            ["a car", "a pear"],
            num_frames=num_frames,
            num_inference_steps=1,
            latents=noise[:, :, :num_frames],
            output_attention=True,
            output_type="latent",
        ).attention
        return attention

    noise = torch.randn(2, 4, 8, 4, 4)
    long = maps(8)
    assert long.shape == (2, 1, 8, 4, 4)
    torch.testing.assert_close(long[:, :, :2], maps(4)[:, :, :2])


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"window_frames": 0}, "window_frames 0: must be at least 1"),
        ({"window_stride": 5}, "window_stride 5: must be at least 1, and at most"),
    ],
)
def test_what_a_call_refuses(pipeline: DemoPipeline, options: dict[str, int], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        latents(pipeline, 9, **options)


def test_the_command_line(tmp_path: Path, tiny_folder: Path) -> None:
    words = ("generate", "a car", "--model", tiny_folder, "--steps", "1", "--frames", "9")
    done = in_process.run(tmp_path, *words, "--window-frames", "5", "--window-stride", "3")
    assert done.returncode == 0, done.stderr
    (entry,) = read_manifest(tmp_path / "outputs").values()
    settings = entry["settings"]
    assert (settings["window_frames"], settings["window_stride"]) == (5, 3)
    assert len(read_video(tmp_path / "outputs" / entry["file"])[0]) == 9
    other = in_process.run(tmp_path, *words)
    assert other.returncode == 2
    assert "made with window_frames 5, not None" in other.stderr


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--window-stride", "5"), "window_stride: should be at most the window's 4 frames, not 5"),
        (("--window-frames", "3", "--window-stride", "4"), "at most the window's 3 frames, not 4"),
        (("--window-frames", "0"), "window_frames: should be at least 1, not 0"),
        (("--window-stride", "0"), "window_stride: should be at least 1, not 0"),
        (("--frames", "257"), "num_frames: should be at most 256, not 257"),
    ],
)
def test_bad_input(tmp_path: Path, tiny_folder: Path, words: tuple[str, ...], line: str) -> None:
    done = in_process.run(tmp_path, "generate", "a car", "--model", tiny_folder, *words)
    assert_one_line(done, 2, line)
    assert not (tmp_path / "outputs").exists()
