"""Clips of the sprite world, encoded once: latents and captions on disk, in shards."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator

import numpy as np
import torch
from diffusers import AutoencoderKL
from einops import rearrange
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from demo_t2v.config import ConfigError
from demo_t2v.data.sprites import draw_clip
from demo_t2v.training.config import DenoiserTraining

SHARD = 500
"""Clips in one file."""


def encoded_clips(config: DenoiserTraining) -> tuple[Tensor, list[str]]:
    """The first `config.clips` clips of the training set: float16 (N, C, F, h, w), and captions.

    Shards that exist already are read, the others are made, so an interrupted run goes on.
    Raises ConfigError when they were made by another autoencoder.
    """
    vae = AutoencoderKL.from_pretrained(config.autoencoder / "vae", dtype=torch.float32).eval()
    config.latents.mkdir(parents=True, exist_ok=True)
    shards = [_shard(config, vae, number) for number in range(-(-config.clips // SHARD))]
    latents = torch.cat([shard[0] for shard in shards])[: config.clips]
    captions = [caption for shard in shards for caption in shard[1]][: config.clips]
    return latents, captions


def _shard(config: DenoiserTraining, vae: AutoencoderKL, number: int) -> tuple[Tensor, list[str]]:
    file = config.latents / f"{number:05d}.safetensors"
    made_by = fingerprint(config, vae)
    if not file.exists():
        indices = range(number * SHARD, (number + 1) * SHARD)
        latents, captions = zip(*_encode(config, vae, indices), strict=True)
        words = {"made_by": made_by, "captions": json.dumps(captions)}
        # A name of this process's own: several may encode at once.
        partial = file.with_suffix(f".{os.getpid()}.partial")
        save_file({"latents": torch.stack(latents)}, partial, metadata=words)
        partial.replace(file)
    with safe_open(file, framework="pt") as stored:
        metadata = stored.metadata()
        if metadata["made_by"] != made_by:
            raise ConfigError(f"{file}: made by another autoencoder; delete {config.latents}")
        return stored.get_tensor("latents"), json.loads(metadata["captions"])


@torch.no_grad()
def _encode(
    config: DenoiserTraining, vae: AutoencoderKL, indices: range
) -> Iterator[tuple[Tensor, str]]:
    """Each clip's scaled posterior means (C, F, h, w), and its caption."""
    for index in indices:
        rng = np.random.default_rng([config.data_seed, index])
        clip = draw_clip(rng, config.resolution, config.max_frames)
        pixels = rearrange(torch.from_numpy(clip.frames), "f h w c -> f c h w").float() / 127.5 - 1
        means = vae.encode(pixels).latent_dist.mean * vae.config.scaling_factor
        yield rearrange(means, "f c h w -> c f h w").half().contiguous(), clip.caption


def fingerprint(config: DenoiserTraining, vae: AutoencoderKL) -> str:
    """What the latents depend on, as a short hash."""
    weights = hashlib.sha256()
    for tensor in vae.state_dict().values():
        weights.update(tensor.contiguous().numpy().tobytes())
    sizes = (config.data_seed, config.resolution, config.max_frames, vae.config.scaling_factor)
    weights.update(repr(sizes).encode())
    return weights.hexdigest()[:16]
