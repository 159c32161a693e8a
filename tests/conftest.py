"""Fixtures that several tests share: fixed seeds, one torch thread, small random networks."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from transformers import CLIPTextConfig, CLIPTextModel

from demo_t2v.checkpoints.original.importer import modelscope_scheduler
from demo_t2v.pipeline import DemoPipeline
from demo_t2v.training.data import sources
from demo_t2v.training.tasks.clip import train_tokenizer
from helpers.datasets import make_world
from helpers.stages import AUTOENCODER, CLIP, DENOISER, load, run
from helpers.tiny_networks import CAPTIONS, shake, tiny_unet

# Without a deadline: no test depends on the time that an example takes.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None)
hypothesis.settings.load_profile("fixed")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    """Networks that a test makes have the same random weights in every run."""
    torch.manual_seed(0)


@pytest.fixture
def forks() -> Iterator[None]:
    """Processes that the test forks do not finalize the garbage of the tests before."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def small_chunks() -> Iterator[None]:
    """Sets of files of five encoded clips."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "CHUNK", 5)
        yield


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the data sets of `kinds` need."""
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All four stages in order, of small chunks; the folder has a run for each."""
    folder = tmp_path_factory.mktemp("runs")
    base = f"base={folder}/base/final"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "CHUNK", 5)
        run(load(folder, AUTOENCODER, "autoencoder"))
        run(load(folder, CLIP, "clip"))
        run(load(folder, DENOISER, "base"))
        run(load(folder, DENOISER, "demo", base, "model={motion: true}", "motion_lr=1e-5"))
    return folder


@pytest.fixture(scope="session")
def tiny_pipeline() -> DemoPipeline:
    """A whole pipeline of random weights: 4 frames of 32x32 pixels."""
    tokenizer = train_tokenizer(CAPTIONS, vocab_size=600, length=16)
    sizes = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=32,
    )
    content, motion = CLIPTextModel(sizes), CLIPTextModel(sizes)
    for seed, module in enumerate((vae, content, motion)):
        shake(module, seed)
    pipeline = DemoPipeline(
        unet=tiny_unet(),
        vae=vae.eval(),
        content_encoder=content.eval(),
        motion_encoder=motion.eval(),
        tokenizer=tokenizer,
        scheduler=DDIMScheduler.from_config(modelscope_scheduler().config),
        num_inference_steps=3,
        guidance_scale=3.0,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="session")
def tiny_folder(tiny_pipeline: DemoPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pipeline, saved."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    tiny_pipeline.save_pretrained(folder)
    return folder
