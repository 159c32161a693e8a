"""Small configurations of the training stages, and readers of their results."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from demo_t2v import config as configs
from demo_t2v.training.config import AnyTraining
from demo_t2v.training.data.feature_cache import prepare
from demo_t2v.training.tasks import make_task
from demo_t2v.training.trainer import train

SHARED = {"resolution": 32, "num_frames": 4, "log_interval": 2, "save_ckp_interval": 4}
SHARED |= {"warmup_steps": 2, "threads": 1}
AUTOENCODER = {
    "task": "autoencoder", "num_steps": 40, "batch_size": 4, "lr": 3e-3,
    "model": {
        "down_block_types": ["DownEncoderBlock2D"] * 3, "layers_per_block": 1,
        "up_block_types": ["UpDecoderBlock2D"] * 3, "block_out_channels": [8, 8, 8],
        "latent_channels": 4, "norm_num_groups": 4,
    },
}  # fmt: skip
TOWER = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2}
TOWER |= {"num_attention_heads": 2}
CLIP = {
    "task": "clip", "num_steps": 8, "batch_size": 8, "lr": 1e-3, "vocab_size": 600,
    "model": {
        "projection_dim": 24,
        "text_config": {**TOWER, "max_position_embeddings": 24},
        "vision_config": {**TOWER, "image_size": 32, "patch_size": 8},
    },
}  # fmt: skip
DENOISER = {
    "task": "denoiser", "num_steps": 8, "batch_size": 2, "lr": 2e-3,
    "train_dataset": {"type": "sprites", "clips": 12},
    "model": {
        "block_out_channels": [8, 16], "attention": [True, True], "layers_per_block": 1,
        "cross_attention_dim": 24, "attention_head_dim": 8, "num_input_heads": 1,
        "norm_num_groups": 4, "dropout": 0.1, "motion": False,
    },
}  # fmt: skip


def load(folder: Path, stage: dict[str, Any], log_dir: str, *overrides: str) -> Any:
    """A configuration, written as YAML into `folder` and read back."""
    paths = {"log_dir": str(folder / log_dir)}
    if stage["task"] == "denoiser":
        paths |= {
            "autoencoder": str(folder / "autoencoder/final"),
            "clip": str(folder / "clip/final"),
        }
        paths |= {"latents": str(folder / "latents")}
    file = folder / f"{log_dir}.yaml"
    file.write_text(yaml.safe_dump({**SHARED, **stage, **paths}))
    return configs.load(AnyTraining, file, overrides)


def prepared_task(config: Any) -> Any:
    """The task, after its clips were encoded."""
    prepare(config)
    return make_task(config)


def run(config: Any) -> list[dict[str, float]]:
    return list(train(prepared_task(config), config))


def assert_resumes(parts: Any, whole: Any) -> None:
    """Train `parts` with a stop after its third step: as `whole`, which has been trained."""
    stopped = train(prepared_task(parts), parts)
    list(islice(stopped, 3))
    stopped.close()
    run(parts)  # from the checkpoint of step 2
    assert metrics(parts.log_dir) == metrics(whole.log_dir)
    assert_same_weights(parts.log_dir / "final", whole.log_dir / "final")


def metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of the log without figures of time and memory."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    pace = {"seconds_per_step", "clips_per_second", "data_wait", "memory"}
    return [{k: v for k, v in line.items() if k not in pace} for line in lines]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Every exported tensor below `folder`."""
    return {
        f"{file.relative_to(folder)}/{name}": tensor
        for file in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def assert_same_weights(first: Path, second: Path) -> None:
    ours, theirs = weights(first), weights(second)
    assert ours
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
