"""Schedulers of diffusers for the noise of a saved one; those of other processes are refused."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from demo_t2v.checkpoints.original.importer import modelscope_scheduler
from demo_t2v.checkpoints.resolve import BUILT_IN
from demo_t2v.config import SchedulerName
from demo_t2v.diffusion.schedulers import (
    check_scheduler,
    make_scheduler,
    save_unclipped,
)
from demo_t2v.pipeline import DemoPipeline

NEEDS = {"LMSDiscreteScheduler": "scipy", "DPMSolverSDEScheduler": "torchsde"}
COMPATIBLE = [name for name in DDIMScheduler._compatibles if name != "EDMEulerScheduler"]
OTHERS = ["DDIMParallelScheduler", "DDPMParallelScheduler", "LCMScheduler", "TCDScheduler"]


def saved(scheduler: Any, folder: Path) -> Any:
    """The scheduler, saved and loaded."""
    scheduler.save_pretrained(folder)
    return type(scheduler).from_pretrained(folder)


def sources(folder: Path) -> dict[str, Any]:
    """The schedulers of the built-in model and of converted models, as loaded from files."""
    built_in = BUILT_IN["sprites"] / "scheduler"
    known = diffusers.DPMSolverMultistepScheduler.from_pretrained(built_in)
    return {"sprites": known, "converted": saved(modelscope_scheduler(), folder / "converted")}


Denoise = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(noisy latents a x0 + a sigma epsilon, a, sigma) -> the clean latents x0."""


def sampled(
    scheduler: Any, denoise: Denoise, shape: tuple[int, ...] = (1, 4, 4, 8, 8), steps: int = 20
) -> Tensor:
    """Latents of a network whose predictions mean what `denoise` returns."""
    scheduler.set_timesteps(steps)
    rng = torch.Generator().manual_seed(1)
    latents = torch.randn(shape, generator=rng) * scheduler.init_noise_sigma
    takes = inspect.signature(scheduler.step).parameters
    extra = {"generator": rng} if "generator" in takes else {}
    sigmas = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt().log()
    for timestep in scheduler.timesteps:
        noisy = scheduler.scale_model_input(latents, timestep)
        whole, rest = divmod(float(timestep), 1)  # some schedulers evaluate between two timesteps
        after = sigmas[min(int(whole) + 1, 999)]
        sigma = (sigmas[int(whole)] * (1 - rest) + after * rest).exp()
        a = 1 / (1 + sigma**2).sqrt()
        clean = denoise(noisy, a, sigma)
        epsilon = (noisy - a * clean) / (sigma * a)
        velocity = scheduler.config.prediction_type == "v_prediction"
        prediction = a * epsilon - sigma * a * clean if velocity else epsilon
        latents = scheduler.step(prediction, timestep, latents, **extra).prev_sample
    return latents


CLEAN = torch.randn(1, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * 1.5 + 0.5
"""Latents that go far beyond [-1, 1]."""


def assert_samples(name: str, config: Any) -> None:
    """A scheduler from another one's configuration samples the clean latents."""
    scheduler = getattr(diffusers, name).from_config(config)
    check_scheduler(scheduler)
    error = sampled(scheduler, lambda *_: CLEAN) - CLEAN
    assert abs(float(error.mean())) < 0.05
    assert float(error.abs().mean()) < 0.05


@pytest.mark.parametrize("source", ["sprites", "converted"])
@pytest.mark.parametrize("name", COMPATIBLE + OTHERS)
def test_each_from_what_is_saved(name: str, source: str, tmp_path: Path) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    assert_samples(name, sources(tmp_path)[source].config)


MEAN, SPREAD = 2.0, 0.5


def posterior_mean(noisy: Tensor, a: Tensor, sigma: Tensor) -> Tensor:
    """The exact denoiser of latents from a Gaussian: E[x0 | noisy]."""
    variance = (a * SPREAD) ** 2 + (a * sigma) ** 2
    return MEAN + a * SPREAD**2 / variance * (noisy - a * MEAN)


def consistency(noisy: Tensor, a: Tensor, sigma: Tensor) -> Tensor:
    """The end of the probability-flow path through `noisy`, as a consistency model predicts it."""
    variance = (a * SPREAD) ** 2 + (a * sigma) ** 2
    return MEAN + SPREAD / variance.sqrt() * (noisy - a * MEAN)


@pytest.mark.parametrize("source", ["sprites", "converted"])
@pytest.mark.parametrize("name", get_args(SchedulerName))
def test_each_by_name_samples_a_gaussian(name: SchedulerName, source: str, tmp_path: Path) -> None:
    saved_config = sources(tmp_path)[source].config
    scheduler = make_scheduler(name, saved_config)
    for key in ("beta_start", "beta_end", "prediction_type", "timestep_spacing"):
        assert scheduler.config[key] == saved_config[key]
    denoise = consistency if name == "lcm" else posterior_mean
    latents = sampled(scheduler, denoise, (1, 4, 4, 32, 32), steps=50)
    assert float(latents.mean()) == pytest.approx(MEAN, abs=0.1)
    assert float(latents.std()) == pytest.approx(SPREAD, abs=0.08)


def test_options_of_a_saved_scheduler_that_would_change_the_result_are_not_taken_over() -> None:
    """From a saved configuration that clips, leaves noise and divides by zero."""
    config = {
        **DDIMScheduler(clip_sample=True, thresholding=True).config,
        "final_sigmas_type": "sigma_min",
        "lower_order_final": False,
        "algorithm_type": "sde-dpmsolver++",
    }
    for name in get_args(SchedulerName):
        made = make_scheduler(name, config).config
        assert not made.get("clip_sample")
        assert not made.get("thresholding")
        assert made["final_sigmas_type"] == "zero"
    assert make_scheduler("unipc", config).config["lower_order_final"]
    assert make_scheduler("dpm++", config).config["algorithm_type"] == "dpmsolver++"


@pytest.mark.parametrize(
    ("name", "config", "line"),
    [
        ("dpm", DDIMScheduler().config, r"^scheduler 'dpm': must be one of dpm\+\+, ddim, unipc"),
        ("ddim", diffusers.FlowMatchEulerDiscreteScheduler().config, "does not sample a network"),
        ("euler", diffusers.EDMEulerScheduler().config, "does not sample a network"),
        ("unipc", DDIMScheduler(prediction_type="sample").config, "does not sample a network"),
        (
            "dpm++",
            diffusers.UniPCMultistepScheduler(
                use_flow_sigmas=True, prediction_type="flow_prediction"
            ).config,
            "does not sample a network",
        ),
        ("heun", {}, "does not sample a network"),
    ],
)
def test_configurations_of_other_processes_are_refused(name: Any, config: Any, line: str) -> None:
    with pytest.raises(ValueError, match=line) as error:
        make_scheduler(name, config)
    assert "\n" not in str(error.value)


# These two do not convert in diffusers: its error says which option would be right.
REFUSED = {
    ("DEISMultistepScheduler", "DPMSolverMultistepScheduler"),
    ("DEISMultistepScheduler", "DPMSolverSinglestepScheduler"),
}


@pytest.mark.parametrize("first", COMPATIBLE)
def test_each_from_each(first: str, tmp_path: Path) -> None:
    """Of the built-in model's, saved as any other and turned into any other."""
    if first in NEEDS:
        pytest.importorskip(NEEDS[first])
    scheduler = getattr(diffusers, first).from_config(sources(tmp_path)["sprites"].config)
    config = saved(scheduler, tmp_path).config
    for second in set(COMPATIBLE) - NEEDS.keys():
        if (first, second) in REFUSED:
            with pytest.raises(ValueError, match="Please choose `sigma_min` instead"):
                getattr(diffusers, second).from_config(config)
        else:
            assert_samples(second, config)


def test_a_pipeline_saves_its_scheduler_so_that_others_do_not_clip(
    tiny_pipeline: DemoPipeline, tmp_path: Path
) -> None:
    """Also where an older folder has no such option."""
    bare = diffusers.EulerDiscreteScheduler(beta_start=0.001, beta_end=0.02)
    assert DDIMScheduler.from_config(bare.config).config.clip_sample
    DemoPipeline(**{**tiny_pipeline.components, "scheduler": bare}).save_pretrained(tmp_path)
    loaded = DemoPipeline.from_pretrained(tmp_path)
    assert not DDIMScheduler.from_config(loaded.scheduler.config).config.clip_sample
    known = diffusers.EulerDiscreteScheduler.from_pretrained(tmp_path / "scheduler")
    assert not DDIMScheduler.from_config(known.config).config.clip_sample


def test_the_option_of_a_scheduler_that_has_it_is_left_as_it_is() -> None:
    scheduler = DDIMScheduler()
    save_unclipped(scheduler)
    assert scheduler.config.clip_sample


@pytest.mark.parametrize(
    "name",
    [
        "EDMEulerScheduler",
        "EDMDPMSolverMultistepScheduler",
        "FlowMatchEulerDiscreteScheduler",
        "FlowMatchHeunDiscreteScheduler",
        "IPNDMScheduler",
        "DDIMInverseScheduler",
        "CogVideoXDPMScheduler",
        "RePaintScheduler",
    ],
)
def test_other_processes_are_refused(name: str, tiny_pipeline: DemoPipeline) -> None:
    scheduler = getattr(diffusers, name).from_config(tiny_pipeline.scheduler.config)
    pipeline = DemoPipeline(**{**tiny_pipeline.components, "scheduler": scheduler})
    with pytest.raises(ValueError, match=f"^scheduler {name}: does not sample a network") as error:
        pipeline("a car")
    assert "pipe.scheduler.compatibles" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("scheduler", "line"),
    [
        (
            diffusers.DPMSolverMultistepScheduler(
                use_flow_sigmas=True, prediction_type="flow_prediction"
            ),
            "does not sample",
        ),
        (
            DDIMScheduler(),
            "clip_sample=True would clip the latents; make it with clip_sample=False",
        ),
        (diffusers.UniPCMultistepScheduler(thresholding=True), "thresholding=True would clip"),
        (
            diffusers.UniPCMultistepScheduler(lower_order_final=False),
            "lower_order_final=False divides by zero",
        ),
        (DDIMScheduler(prediction_type="sample", clip_sample=False), "does not sample"),
    ],
)
def test_options_that_change_the_result_are_refused(
    scheduler: Any, line: str, tiny_pipeline: DemoPipeline
) -> None:
    pipeline = DemoPipeline(**{**tiny_pipeline.components, "scheduler": scheduler})
    with pytest.raises(ValueError, match=line):
        pipeline("a car")


def mean_of(pipeline: DemoPipeline, **options: Any) -> float:
    """The mean of a video's pixels."""
    frames = pipeline(
        "a bell swings in the snow", generator=torch.Generator().manual_seed(0), **options
    ).frames
    return float(frames.mean())


@pytest.fixture(scope="module")
def built_in() -> DemoPipeline:
    pipeline = DemoPipeline.from_pretrained(BUILT_IN["sprites"], dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_the_built_in_model_by_ddim(
    built_in: DemoPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = mean_of(built_in)
    scheduler = DDIMScheduler.from_config(built_in.scheduler.config)
    monkeypatch.setattr(built_in, "scheduler", scheduler)
    assert abs(mean_of(built_in) - right) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPATIBLE + OTHERS)
def test_the_built_in_model_by_each(
    name: str, built_in: DemoPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    right = mean_of(built_in)
    scheduler = getattr(diffusers, name).from_config(built_in.scheduler.config)
    monkeypatch.setattr(built_in, "scheduler", scheduler)
    # Eight steps are too few for KDPM2AncestralDiscreteScheduler.
    assert abs(mean_of(built_in, num_inference_steps=16) - right) < 0.05
