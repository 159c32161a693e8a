"""A small data set of every kind, and training configurations for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from diffusers import AutoencoderKL
from transformers import CLIPConfig, CLIPModel, CLIPTextModel

from demo_t2v import config as configs
from demo_t2v.data.clips import VideoClips, write_sprite_dataset
from demo_t2v.data.shards import write_shards
from demo_t2v.data.sprites import draw_clip
from demo_t2v.training.config import AnyTraining, DenoiserTraining
from demo_t2v.training.tasks.clip import train_tokenizer

CLIPS = 12
PARTS = ["content", "flow", "image", "latents", "tokens"]
SPRITES = {"type": "sprites", "clips": CLIPS}
OWN = '''
import numpy as np
from demo_t2v.data.clips import CaptionedClip
from demo_t2v.data.sprites import draw_clip


class Rows:
    """Sprites in grey; `wrong` is a clip of another size."""

    def __init__(self, sampling, videos, wrong=-1):
        self.sampling, self.videos, self.wrong = sampling, videos, wrong

    def __len__(self):
        return self.videos

    def clip(self, index, seed):
        side = self.sampling.resolution // (2 if index == self.wrong else 1)
        clip = draw_clip(np.random.default_rng(index), side, self.sampling.frames)
        grey = clip.frames.mean(-1, keepdims=True).astype(np.uint8).repeat(3, -1)
        return CaptionedClip(grey, clip.caption, str(index))
'''


def make_world(folder: Path) -> Path:
    """Random networks, a data set of real videos, its shards, and a custom data-set class."""
    torch.manual_seed(0)
    AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=[8, 8, 8],
        norm_num_groups=4,
        layers_per_block=1,
        scaling_factor=0.7,
    ).save_pretrained(folder / "vae")
    captions = [draw_clip(np.random.default_rng(n), 8, 1).caption for n in range(200)]
    tokenizer = train_tokenizer(captions, 560, 24)
    tokenizer.save_pretrained(folder / "tokenizer")
    tower = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2}
    tower |= {"num_attention_heads": 2}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 24}
    text |= {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos")}
    vision = {"image_size": 32, "patch_size": 8}
    sizes = {"text_config": tower | text, "vision_config": tower | vision, "projection_dim": 24}
    CLIPModel(CLIPConfig(**sizes)).save_pretrained(folder / "clip")
    CLIPTextModel.from_pretrained(folder / "clip").save_pretrained(folder / "content_encoder")
    csv = write_sprite_dataset(folder / "data", CLIPS, resolution=32, frames=30, fps=10)
    write_shards(VideoClips(csv, folder / "data/videos"), folder / "shards", megabytes=0.008)
    (folder / "own_clips.py").write_text(OWN)
    return folder


def dataset(world: Path, kind: str) -> dict[str, Any]:
    data = world / "data"
    return {
        "sprites": SPRITES,
        "webvid": {
            "type": "webvid",
            "csv_path": str(data / "captions.csv"),
            "video_dir": str(data / "videos"),
        },
        "shards": {"type": "shards", "folder": str(world / "shards")},
        "custom": {"type": "custom", "class": "own_clips:Rows", "args": {"videos": CLIPS}},
    }[kind]


def settings(world: Path, folder: Path, kind: str | dict[str, Any] = "sprites") -> dict[str, Any]:
    return {
        "task": "denoiser", "log_dir": str(folder / "run"), "autoencoder": str(world),
        "clip": str(world), "latents": str(folder / "latents"), "encode_text": True,
        "num_steps": 2, "batch_size": 2, "lr": 1e-3, "resolution": 32, "num_frames": 4,
        "threads": 1, "log_interval": 1, "warmup_steps": 1,
        "train_dataset": dataset(world, kind) if isinstance(kind, str) else kind,
        "model": {
            "block_out_channels": [8, 16], "attention": [True, True], "layers_per_block": 1,
            "cross_attention_dim": 24, "attention_head_dim": 8, "num_input_heads": 1,
            "norm_num_groups": 4,
        },
    }  # fmt: skip


def configure(
    world: Path, folder: Path, kind: str | dict[str, Any] = "sprites", *overrides: str
) -> DenoiserTraining:
    file = folder / "train.yaml"
    file.write_text(yaml.safe_dump(settings(world, folder, kind)))
    config: DenoiserTraining = configs.load(AnyTraining, file, overrides)
    return config
