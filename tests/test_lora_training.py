"""Training of an adapter alone, on a base that stays as it is."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from demo_t2v.config import ConfigError
from demo_t2v.lora import WEIGHT_NAME, LoraError
from demo_t2v.training.trainer import train
from helpers import in_process
from helpers.pipelines import latents_of, load_saved
from helpers.program import TIMEOUT, assert_one_line, free_port
from helpers.stages import (
    DENOISER,
    assert_resumes,
    load,
    metrics,
    prepared_task,
)
from helpers.stages import run as run_stage
from helpers.tiny_training import TORCHRUN


def adapter_stage(stages: Path, name: str, *overrides: str) -> Any:
    """Four steps of an adapter on the DEMO of `stages`, a checkpoint after two."""
    times = {"num_steps": 4, "save_ckp_interval": 2, "ema_decay": 0.5}
    base = {"base": str(stages / "demo/final"), "model": {"motion": True}}
    stage = {**DENOISER, **times, **base, "lora": {"rank": 2, "alpha": 4}}
    return load(stages, stage, name, *overrides)


@pytest.mark.usefixtures("small_chunks")
def test_training_changes_the_adapter_only_and_resumes_bit_exactly(
    stages: Path,
) -> None:
    whole = adapter_stage(stages, "adapter", "log_interval=1")
    task = prepared_task(whole)
    start = {name: weight.clone() for name, weight in task.model.state_dict().items()}
    list(train(task, whole))
    moved = {name for name, w in task.model.state_dict().items() if not torch.equal(start[name], w)}
    assert moved == {name for name in start if ".lora_" in name}
    assert {name.partition(".")[0] for name in moved} == {"unet", "motion_encoder"}
    assert [file.name for file in (whole.log_dir / "final").iterdir()] == [WEIGHT_NAME]
    kept = load_file(whole.log_dir / "checkpoints/00000004/weights.safetensors")
    assert kept.keys() == moved

    assert_resumes(adapter_stage(stages, "adapter-in-parts", "log_interval=1"), whole)

    pipeline = load_saved(stages / "demo/final")
    base = latents_of(pipeline)
    pipeline.load_lora_weights(whole.log_dir / "final")
    assert torch.equal(latents_of(pipeline), latents_of(task.pipeline()))
    assert not torch.equal(latents_of(pipeline), base)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("base=null", "lora: needs a trained denoiser to adapt: give base"),
        ("freeze_unet=true", "lora: .*leave out freeze_unet"),
        ("stop_grad_index=1", "lora: .*leave out stop_grad_index"),
        (
            "lora.target=content",
            "lora.target: should be one of motion, all or network, not content",
        ),
        ("lora.rank=0", "lora.rank: should be at least 1, not 0"),
    ],
)
def test_what_contradicts_an_adapter_is_refused(
    tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        adapter_stage(tmp_path, "adapter", override)


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["stills=true"], "video_motion_weight"),
        (["num_frames=1"], "video_motion_weight"),
        (["num_frames=1", "video_motion_weight=0"], "text_motion_weight"),
    ],
)
def test_an_adapter_of_single_frames_has_no_motion_losses(
    stages: Path, words: list[str], key: str
) -> None:
    adapter_stage(stages, "still")
    for command in (["train"], ["data", "encode"]):
        done = in_process.run(
            stages, *command, "--config", "still.yaml", f"latents={stages}/1", *words
        )
        assert_one_line(done, 2, f"{key}: single frames do not move; write 0")
    assert not (stages / "1").exists()


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("words", [["stills=true"], ["num_frames=1", "text_motion_weight=0"]])
def test_an_adapter_is_trained_on_single_frames(stages: Path, words: list[str]) -> None:
    single = [f"latents={stages}/{words[0]}", "video_motion_weight=0", "log_interval=1"]
    config = adapter_stage(stages, "single", *single, *words, f"log_dir={stages}/{words[0]}-run")
    lines = run_stage(config)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]


@pytest.mark.usefixtures("small_chunks")
def test_a_base_without_motion_is_adapted_as_a_whole_or_not(stages: Path) -> None:
    base = (f"base={stages}/base/final", "model={motion: false}")
    with pytest.raises(LoraError, match="has no motion transformers"):
        prepared_task(adapter_stage(stages, "no-motion", *base))
    task = prepared_task(adapter_stage(stages, "no-motion", *base, "lora={target: all}"))
    trained = [name for name, weight in task.model.named_parameters() if weight.requires_grad]
    assert trained
    assert all(name.startswith("unet.") and ".lora_" in name for name in trained)


@pytest.mark.slow
@pytest.mark.usefixtures("small_chunks")
def test_two_processes_train_the_adapter_that_one_does(stages: Path) -> None:
    same = ("model={motion: true, dropout: 0}", "text_motion_weight=0", f"latents={stages}/anew")
    one, two = (adapter_stage(stages, name, *same) for name in ("one", "two"))
    command = [*TORCHRUN, str(free_port()), "-m", "demo_t2v", "train", "--config"]
    done = subprocess.run(
        [*command, str(stages / "two.yaml"), *same],
        capture_output=True, text=True, timeout=TIMEOUT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shutil.rmtree(stages / "anew")  # that program's files are larger than this one's
    run_stage(one)
    for ours, theirs in zip(metrics(two.log_dir), metrics(one.log_dir), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)
