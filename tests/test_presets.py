"""Presets and the model's guidance interval: their values, the manifest, and contradictions."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from demo_t2v.checkpoints.resolve import ModelDefaults, load_pipeline, read_defaults, resolve
from demo_t2v.config import ConfigError, InferenceConfig
from demo_t2v.config.inference import PresetName
from demo_t2v.inference.outputs import read_manifest
from demo_t2v.inference.runner import Runner
from demo_t2v.pipeline import DemoPipeline
from helpers import in_process
from helpers.program import assert_one_line

MODEL = ModelDefaults(
    steps=50,
    guidance=9.0,
    guidance_interval=(0.2, 0.9),
    negative_prompt="",
    frames=16,
    side=256,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A folder with a model of 3 steps."""
    folder = tmp_path_factory.mktemp("presets")
    (folder / "model").symlink_to(tiny_folder)
    return folder


def settings_of(folder: Path) -> dict[str, Any]:
    """The settings of the only video in a folder."""
    (entry,) = read_manifest(folder).values()
    settings: dict[str, Any] = entry["settings"]
    return settings


@pytest.mark.parametrize(
    ("preset", "steps", "scheduler", "interval"),
    [
        (None, 50, None, (0.2, 0.9)),
        ("balanced", 50, None, (0.2, 0.9)),
        ("fast", 25, "dpm++", (0.5, 1.0)),
        ("best", 100, None, (0.0, 1.0)),
    ],
)
def test_a_preset_is_relative_to_the_model(
    preset: PresetName | None, steps: int, scheduler: str | None, interval: tuple[float, float]
) -> None:
    complete = MODEL.complete(InferenceConfig(preset=preset))
    assert complete.num_inference_steps == steps
    assert complete.scheduler == scheduler
    assert complete.guidance_interval == interval
    assert complete.guidance_scale == 9.0
    assert MODEL.complete(complete) == complete


def test_a_model_of_one_step_keeps_it() -> None:
    one_step = replace(MODEL, steps=1)
    assert one_step.complete(InferenceConfig(preset="fast")).num_inference_steps == 1


@pytest.mark.parametrize("preset", ["fast", "balanced", "best"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_inference_steps", 50),
        ("scheduler", "ddim"),
        ("guidance_interval", (0.0, 1.0)),
        ("content_guidance_interval", (0.0, 1.0)),
        ("motion_guidance_interval", (0.0, 1.0)),
    ],
)
def test_contradictions(preset: str, key: str, value: object) -> None:
    config = InferenceConfig.model_validate({"preset": preset, key: value})
    with pytest.raises(ConfigError, match=f"^preset {preset} and {key} are both given: give one"):
        MODEL.complete(config)


def test_a_model_without_guidance_has_no_other_speed() -> None:
    distilled = replace(MODEL, steps=4, guidance=1.0)
    for preset in ("fast", "best"):
        config = InferenceConfig.model_validate({"preset": preset})
        with pytest.raises(ConfigError, match=f"preset {preset}: sprites is made for 4 steps"):
            distilled.complete(config)
    assert distilled.complete(InferenceConfig(preset="balanced")).num_inference_steps == 4


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--preset", "fast", "--steps", "50"], ["preset fast and num_inference_steps"]),
        (["--preset", "best", "scheduler=ddim"], ["preset best and scheduler"]),
        (["--config", "both.yaml"], ["preset fast and num_inference_steps", "give one of them"]),
        (["--config", "steps.yaml", "--preset", "fast"], ["preset fast and num_inference_steps"]),
        (["--preset", "quick"], ["preset", "one of fast, balanced or best, not quick"]),
    ],
)
def test_bad_input(place: Path, words: list[str], parts: list[str]) -> None:
    (place / "both.yaml").write_text("preset: fast\nddim_timesteps: 50\n")
    (place / "steps.yaml").write_text("num_inference_steps: 50\n")
    done = in_process.run(place, "generate", "a car falls", "--model", "model", *words)
    assert_one_line(done, 2, *parts)


def test_the_manifest_has_the_values_of_the_preset(place: Path) -> None:
    command = ("generate", "a car falls", "--model", "model", "--preset", "fast", "--out", "fast")
    done = in_process.run(place, *command)
    assert done.returncode == 0, done.stderr
    settings = settings_of(place / "fast")
    assert settings["num_inference_steps"] == 2
    assert settings["scheduler"] == "dpm++"
    assert settings["content_guidance_interval"] == [0.5, 1.0]
    assert settings["motion_guidance_interval"] == [0.5, 1.0]
    assert settings.keys().isdisjoint({"preset", "guidance_interval"})
    same = ("--steps", 2, "--scheduler", "dpm++", "--guidance-interval", "0.5-1", "--out", "fast")
    done = in_process.run(place, "generate", "a car falls", "--model", "model", *same)
    assert done.stderr == "0 made, 1 were there already\n"


def test_a_runner_has_the_scheduler_of_the_preset(place: Path) -> None:
    config = InferenceConfig(preset="fast", device="cpu")
    runner = Runner.load(resolve(str(place / "model")), config)
    assert isinstance(runner.pipeline.scheduler, DPMSolverMultistepScheduler)
    assert runner.config.num_inference_steps == 2


def test_without_an_interval_the_manifest_is_that_of_before(place: Path) -> None:
    """Entries of both intervals are lists, as when each had its own default."""
    done = in_process.run(
        place, "generate", "a car falls", "--model", "model", "--steps", "1", "--out", "plain"
    )
    assert done.returncode == 0, done.stderr
    settings = settings_of(place / "plain")
    for key in ("content", "motion", "bypass"):
        assert settings[f"{key}_guidance_interval"] == [0.0, 1.0]


def latents_of(pipeline: DemoPipeline, **options: Any) -> tuple[Tensor, list[int]]:
    """Latents of a call, and the samples through the network in each step."""
    samples: list[int] = []
    hook = pipeline.unet.register_forward_pre_hook(lambda _, inputs: samples.append(len(inputs[0])))
    with hook:
        latents: Tensor = pipeline(
            "a car falls",
            guidance_scale=3.0,
            num_inference_steps=10,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
            **options,
        ).frames
    return latents, samples


def test_steps_outside_the_interval_need_one_prediction(tiny_pipeline: DemoPipeline) -> None:
    timesteps = tiny_pipeline.scheduler
    timesteps.set_timesteps(10)
    levels = [float(each) / timesteps.config.num_train_timesteps for each in timesteps.timesteps]
    _, samples = latents_of(tiny_pipeline, guidance_interval=(0.35, 0.75))
    assert samples == [2 if 0.35 <= level <= 0.75 else 1 for level in levels]
    assert set(samples) == {1, 2}
    whole, samples = latents_of(tiny_pipeline, guidance_interval=(0.0, 1.0))
    assert set(samples) == {2}
    assert torch.equal(whole, latents_of(tiny_pipeline)[0])


def test_the_saved_interval_is_the_default(
    tiny_pipeline: DemoPipeline, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given, _ = latents_of(tiny_pipeline, guidance_interval=(0.5, 1.0))
    saved = DemoPipeline(
        **tiny_pipeline.components, num_inference_steps=3, guidance_interval=(0.5, 1.0)
    )
    saved.save_pretrained(tmp_path)
    capfd.readouterr()
    assert read_defaults(tmp_path).guidance_interval == (0.5, 1.0)
    loaded = load_pipeline(str(tmp_path), "cpu")
    assert ModelDefaults.of(loaded) == read_defaults(tmp_path)
    assert capfd.readouterr().err == ""
    whole, _ = latents_of(tiny_pipeline)
    for interval, latents in ((None, given), ((0.0, 1.0), whole)):
        loaded_latents, _ = latents_of(loaded, guidance_interval=interval)
        torch.testing.assert_close(loaded_latents, latents, rtol=1e-4, atol=1e-4)


def test_a_folder_without_an_interval_guides_at_all_levels(
    tiny_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_folder, tmp_path / "before")
    file = tmp_path / "before/model_index.json"
    index = json.loads(file.read_text())
    del index["guidance_interval"]
    file.write_text(json.dumps(index))
    assert read_defaults(tmp_path / "before").guidance_interval == (0.0, 1.0)
    assert ModelDefaults.of(load_pipeline(str(tmp_path / "before"), "cpu")).guidance_interval == (
        0.0,
        1.0,
    )
