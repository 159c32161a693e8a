"""The curves and videos of a run, from real training lines to real event files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from demo_t2v.config import ConfigError
from demo_t2v.pipeline import DemoPipeline
from demo_t2v.training.config import AutoencoderTraining, DenoiserTraining
from demo_t2v.training.logging import RunLogger


class PipelineTask:
    """A task as far as it is watched."""

    def __init__(self, pipeline: DemoPipeline) -> None:
        self._pipeline = pipeline
        self.model = nn.ModuleDict({"unet": pipeline.unet})

    def pipeline(self) -> DemoPipeline:
        return self._pipeline


def denoiser(folder: Path, **keys: Any) -> DenoiserTraining:
    return DenoiserTraining(
        task="denoiser", log_dir=folder / "runs" / "demo", tensorboard=folder / "tensorboard_log",
        autoencoder=folder, clip=folder, train_dataset={"type": "sprites", "clips": 1},
        num_steps=9, batch_size=1, lr=1e-3, **keys,
    )  # fmt: skip


def events(config: Any) -> EventAccumulator:
    return EventAccumulator(str(config.tensorboard / config.log_dir.name)).Reload()


def test_each_figure_of_a_line_is_a_point_of_its_curve(tmp_path: Path) -> None:
    config = AutoencoderTraining(
        task="autoencoder", log_dir=tmp_path / "ae", tensorboard=tmp_path / "logs",
        num_steps=9, batch_size=1, lr=1e-3,
    )  # fmt: skip
    with RunLogger(None, config) as logger:  # type: ignore[arg-type]
        for step, loss in ((2, 0.5), (4, 0.25)):
            logger.log({"step": step, "loss": loss, "lr": 1e-3})
    shown = events(config)
    assert set(shown.Tags()["scalars"]) == {"train/loss", "train/lr"}
    assert [(p.step, p.value) for p in shown.Scalars("train/loss")] == [(2, 0.5), (4, 0.25)]


def test_previews_come_with_the_line_behind_their_step(
    tiny_pipeline: DemoPipeline, tmp_path: Path
) -> None:
    config = denoiser(tmp_path, preview_prompts=("a car falls",), preview_interval=3)
    task = PipelineTask(tiny_pipeline)
    task.model.train()
    state = torch.get_rng_state()
    with RunLogger(task, config) as logger:  # type: ignore[arg-type]
        for step in (2, 4, 5, 6):
            logger.log({"step": step, "loss": 1.0})
    assert torch.equal(torch.get_rng_state(), state)
    assert task.model.training
    shown = events(config)
    for name in ("motion", "base"):
        assert [p.step for p in shown.Images(f"video/a car falls/{name}")] == [4, 6]
        assert [p.step for p in shown.Scalars(f"flow/a car falls/{name}")] == [4, 6]
    tiny_pipeline.unet.eval()


def test_one_process_with_fsdp_has_previews(tiny_pipeline: DemoPipeline, tmp_path: Path) -> None:
    """It shards nothing."""
    config = denoiser(tmp_path, preview_prompts=("a car falls",), preview_interval=3, fsdp=True)
    with RunLogger(PipelineTask(tiny_pipeline), config) as logger:  # type: ignore[arg-type]
        logger.log({"step": 2, "loss": 1.0})
        logger.log({"step": 3, "loss": 1.0})
    assert [p.step for p in events(config).Images("video/a car falls/motion")] == [3]
    tiny_pipeline.unet.eval()


def test_a_run_that_goes_on_has_no_previews_that_are_not_due(
    tiny_pipeline: DemoPipeline, tmp_path: Path
) -> None:
    prompts = {"preview_prompts": ("a car falls",), "preview_interval": 3, "log_interval": 1}
    config = denoiser(tmp_path, **prompts)
    with RunLogger(PipelineTask(tiny_pipeline), config) as logger:  # type: ignore[arg-type]
        for step in (5, 6, 7):
            logger.log({"step": step, "loss": 1.0})
    shown = events(config)
    assert [p.step for p in shown.Images("video/a car falls/motion")] == [6]
    tiny_pipeline.unet.eval()


def test_nothing_is_opened_without_a_line_or_a_wish(tmp_path: Path) -> None:
    with RunLogger(None, denoiser(tmp_path)):  # type: ignore[arg-type]
        pass
    assert not (tmp_path / "tensorboard_log").exists()


def test_a_missing_package_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with (
        pytest.raises(ConfigError, match="wandb: is not installed; pip install wandb"),
        RunLogger(None, denoiser(tmp_path, wandb="videos")),  # type: ignore[arg-type]
    ):
        pass
