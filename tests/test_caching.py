"""Features that neighbouring steps share: by hand, in calls of a pipeline, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, HeunDiscreteScheduler
from torch import Tensor

from demo_t2v.diffusion.caching import CacheConfig, CacheName, PassCache, StepCache
from demo_t2v.diffusion.guidance import ContentMotionGuidance, Scale
from demo_t2v.inference.outputs import read_manifest
from demo_t2v.pipeline import DemoPipeline
from helpers import in_process
from helpers.pipelines import differ, latents_of, seeded, with_effective_motion, with_scheduler
from helpers.program import assert_one_line
from helpers.tiny_networks import tiny_unet

STEPS = 6
CASES = (("deep", 2, STEPS), ("deep", 3, STEPS), ("deep", STEPS, STEPS), ("forecast", 2, 16))
"""Name, interval and steps."""
each_case = pytest.mark.parametrize(("name", "interval", "steps"), CASES)


@pytest.fixture(scope="module")
def shared(tiny_pipeline: DemoPipeline) -> DemoPipeline:
    return with_effective_motion(tiny_pipeline)


@pytest.fixture
def pipeline(shared: DemoPipeline) -> Iterator[DemoPipeline]:
    """Its motion branch has an effect; the cache is off before and after each test."""
    yield shared
    shared.disable_cache()


@pytest.fixture
def calls(pipeline: DemoPipeline) -> Iterator[list[str]]:
    """The blocks that run, `first` or `last` of the network, or `deep`."""
    names: list[str] = []
    unet = pipeline.unet
    blocks = {"first": unet.conv_in, "deep": unet.mid_block, "last": unet.up_blocks[-1]}
    hooks = [
        block.register_forward_pre_hook(lambda *_, name=name: names.append(name))
        for name, block in blocks.items()
    ]
    yield names
    for hook in hooks:
        hook.remove()


def video(pipeline: DemoPipeline, prompt: Any = "a car falls", **options: Any) -> Tensor:
    return latents_of(pipeline, prompt, **{"num_inference_steps": STEPS, **options})


def cached(pipeline: DemoPipeline, name: CacheName = "deep", interval: int = 2) -> DemoPipeline:
    pipeline.enable_cache(CacheConfig(name, interval))
    return pipeline


def run(name: CacheName, interval: int, features: list[float]) -> list[float | None]:
    """What a pass loads in each step; None in steps that are complete and store `features`."""
    cache, loaded = PassCache(CacheConfig(name, interval)), []
    for step, value in enumerate(features):
        cache.begin(step)
        loaded.append(None if cache.complete else float(cache.load()))
        if cache.complete:
            cache.store(torch.tensor(value))
    return loaded


def test_deep_features_are_reused_as_they_are() -> None:
    assert run("deep", 2, [1, 2, 3, 4, 5]) == [None, 1, None, 3, None]
    assert run("deep", 3, [1, 2, 3, 4, 5]) == [None, 1, 1, None, 4]


def test_a_forecast_is_on_the_line_through_two_complete_steps() -> None:
    """Before there are two, it is the features of the first."""
    assert run("forecast", 2, [1, 0, 5, 0, 3, 0]) == [None, 1, None, 7, None, 2]
    assert run("forecast", 3, [0, 9, 9, 6, 9, 9]) == [None, 0, 0, None, 8, 10]


def test_each_pass_of_a_step_has_its_own_features() -> None:
    cache = StepCache(CacheConfig("deep", 2))
    for step in range(2):
        cache.next_step()
        for number, key in enumerate("aab"):  # two windows, and one without the motion branch
            one = cache.next_pass(key)
            assert one.complete == (step == 0)
            if one.complete:
                one.store(torch.tensor(number))
            else:
                assert one.load() == number


def test_a_pass_that_the_step_before_did_not_have_is_complete() -> None:
    cache, complete = StepCache(CacheConfig("deep", 4)), []
    for key in "aabba":
        cache.next_step()
        one = cache.next_pass(key)
        complete.append(one.complete)
        if one.complete:
            one.store(torch.tensor(0.0))
    assert complete == [True, False, True, False, True]


@pytest.mark.parametrize("name", ["deep", "forecast"])
def test_an_interval_of_one_step_changes_nothing(pipeline: DemoPipeline, name: CacheName) -> None:
    plain = video(pipeline, num_inference_steps=8)
    assert torch.equal(video(cached(pipeline, name, 1), num_inference_steps=8), plain)


@each_case
def test_the_steps_between_compute_the_outer_layers_only(
    pipeline: DemoPipeline, calls: list[str], name: CacheName, interval: int, steps: int
) -> None:
    video(cached(pipeline, name, interval), num_inference_steps=steps)
    complete, between = ["first", "deep", "last"], ["first", "last"]
    assert calls == (complete + between * (interval - 1)) * (steps // interval)


@each_case
def test_features_that_do_not_change_are_cached_without_loss(
    pipeline: DemoPipeline, name: CacheName, interval: int, steps: int
) -> None:
    """The input of the last layer is made the same in all steps."""
    pipeline = deepcopy(pipeline)
    resnet = pipeline.unet.up_blocks[-1].resnets[-2]
    for convolution in (resnet.conv2, resnet.conv_shortcut):
        torch.nn.init.zeros_(convolution.weight)
    plain = video(pipeline, num_inference_steps=steps)
    assert torch.equal(video(cached(pipeline, name, interval), num_inference_steps=steps), plain)


def test_a_cache_changes_the_video_until_it_is_disabled(pipeline: DemoPipeline) -> None:
    plain = video(pipeline, num_inference_steps=16)
    assert not pipeline.is_cache_enabled
    deep = video(cached(pipeline, "deep"), num_inference_steps=16)
    assert pipeline.is_cache_enabled
    assert differ(deep, plain)
    assert differ(video(cached(pipeline, "forecast"), num_inference_steps=16), deep)
    pipeline.disable_cache()
    assert torch.equal(video(pipeline, num_inference_steps=16), plain)


@pytest.mark.parametrize(("name", "steps"), [("deep", STEPS), ("forecast", 16)])
def test_no_video_depends_on_its_batch(pipeline: DemoPipeline, name: CacheName, steps: int) -> None:
    prompts = ["a car", "a fish falls"]
    together = video(cached(pipeline, name), prompts, num_inference_steps=steps)
    alone = video(pipeline, prompts[1], generator=seeded(1), num_inference_steps=steps)
    torch.testing.assert_close(together[1:], alone, atol=1e-4, rtol=1e-4)


def test_no_call_depends_on_the_call_before(pipeline: DemoPipeline) -> None:
    first = video(cached(pipeline))

    def stop(pipeline: DemoPipeline, step: int, _: Tensor, tensors: dict[str, Tensor]) -> dict:
        pipeline._interrupt = step == 2
        return tensors

    video(pipeline, "a pear grows", callback_on_step_end=stop)
    assert torch.equal(video(pipeline), first)


def test_each_window_has_its_own_features(pipeline: DemoPipeline) -> None:
    """Windows that do not overlap are videos of their own."""
    noise = torch.randn(1, 4, 8, 4, 4)
    windows = {"num_frames": 8, "window_frames": 4, "window_stride": 4}
    whole = video(cached(pipeline), latents=noise, **windows)
    for frames in (slice(0, 4), slice(4, 8)):
        part = video(pipeline, latents=noise[:, :, frames])
        torch.testing.assert_close(whole[:, :, frames], part, atol=1e-4, rtol=1e-4)


def test_a_timeline_over_windows(pipeline: DemoPipeline, calls: list[str]) -> None:
    timeline = [(0, "a car moves up"), (5, "a fish falls")]
    long = {"motion_prompt": timeline, "num_frames": 8, "num_inference_steps": 2}
    plain = video(pipeline, **long)
    calls.clear()
    assert not torch.equal(video(cached(pipeline), **long), plain)
    assert calls.count("deep") == 3  # windows
    assert calls.count("last") == 6


def test_a_step_in_which_guidance_begins_or_ends_is_complete(
    pipeline: DemoPipeline, calls: list[str]
) -> None:
    """Guidance acts in the steps 2 and 3 of 6, whose noise levels are about 0.67 and 0.5."""
    guider = ContentMotionGuidance(Scale(3.0, (0.4, 0.7)), Scale(3.0, (0.4, 0.7)))
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    video(cached(with_scheduler(pipeline, scheduler), interval=6), guider=guider)
    complete, between = ["first", "deep", "last"], ["first", "last"]
    assert calls == (complete + between) * 3


def test_guidance_with_three_scales(pipeline: DemoPipeline, calls: list[str]) -> None:
    scales = {
        "content_guidance_scale": 2.0,
        "motion_guidance_scale": 4.0,
        "bypass_guidance_scale": 1.0,
    }
    plain = video(pipeline, **scales)
    assert torch.equal(video(cached(pipeline, interval=1), **scales), plain)
    calls.clear()
    assert differ(video(cached(pipeline), **scales), plain)
    # A pass for all conditions, and one without the motion branch.
    assert calls.count("first") == 2 * STEPS
    assert calls.count("deep") == STEPS


def test_a_network_of_one_level(pipeline: DemoPipeline) -> None:
    pipeline = deepcopy(pipeline)
    pipeline.unet = tiny_unet(block_out_channels=(16,), attention=(True,))
    plain = video(pipeline)
    assert torch.equal(video(cached(pipeline, interval=1)), plain)
    assert differ(video(cached(pipeline)), plain)


def test_what_cannot_be_configured() -> None:
    name: Any = "shallow"
    with pytest.raises(ValueError, match="cache 'shallow': must be deep or forecast"):
        CacheConfig(name)
    with pytest.raises(ValueError, match="cache_interval 0: must be at least 1"):
        CacheConfig("deep", 0)


def test_what_a_call_refuses(pipeline: DemoPipeline) -> None:
    cached(pipeline, interval=3)
    with pytest.raises(ValueError, match="cache_interval 3: must be at most the number of steps"):
        video(pipeline, num_inference_steps=2)
    with pytest.raises(ValueError, match="output_attention: needs complete steps"):
        video(pipeline, output_attention=True)
    with pytest.raises(ValueError, match="needs 16 steps with the interval 2, not 15; take deep"):
        video(cached(pipeline, "forecast"), num_inference_steps=15)
    heun = with_scheduler(
        pipeline, HeunDiscreteScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    )
    with pytest.raises(ValueError, match="HeunDiscreteScheduler calls the network several times"):
        video(cached(heun))


@pytest.fixture
def place(tmp_path: Path, tiny_folder: Path) -> Path:
    (tmp_path / "model").symlink_to(tiny_folder)
    return tmp_path


WORDS = ("generate", "a car", "--model", "model", "--steps", "2")


def test_the_command_line(place: Path) -> None:
    assert in_process.run(place, *WORDS).returncode == 0
    (plain,) = read_manifest(place / "outputs").values()
    assert "cache_interval" not in plain["settings"]
    other = in_process.run(place, *WORDS, "--cache", "deep")
    assert_one_line(other, 2, "made with cache None, not 'deep'")
    done = in_process.run(place, *WORDS, "--cache", "deep", "--out", "cached")
    assert done.returncode == 0, done.stderr
    (entry,) = read_manifest(place / "cached").values()
    assert (entry["settings"]["cache"], entry["settings"]["cache_interval"]) == ("deep", 2)
    assert entry["sha256"] != plain["sha256"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--cache", "shallow"), "cache: should be one of deep or forecast, not shallow"),
        (("--cache", "deep", "--cache-interval", "0"), "cache_interval: should be at least 1"),
        (
            ("--cache", "deep", "--cache-interval", "3"),
            "cache_interval 3: must be at most the number of steps, 2",
        ),
        (("--cache", "forecast"), "cache forecast: needs 16 steps with the interval 2, not 2"),
        (
            ("--cache", "deep", "--scheduler", "heun"),
            "cache: HeunDiscreteScheduler calls the network several times a step",
        ),
    ],
)
def test_bad_input(place: Path, words: tuple[str, ...], line: str) -> None:
    assert_one_line(in_process.run(place, *WORDS, *words), 2, line)
    assert not list(place.glob("outputs/*.mp4"))


def test_an_explanation_needs_all_layers(place: Path) -> None:
    done = in_process.run(place, "explain", "a car", "--model", "model", "--cache", "deep")
    assert_one_line(done, 2, "--cache is not an option")
