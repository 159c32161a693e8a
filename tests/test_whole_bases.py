"""What training starts from is there, all of it, or is named."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from diffusers import DDIMScheduler

from demo_t2v.checkpoints.original.importer import convert
from demo_t2v.model_folder import ModelError
from demo_t2v.training.data.image_preprocessing import ImagePreprocessing
from demo_t2v.training.tasks.denoiser import DenoiserTask
from helpers.damage import spoil
from helpers.diffusers_folder import write_text_to_video_folder
from helpers.stages import CLIP, DENOISER, load, prepared_task


@pytest.fixture
def base(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "base"))


def task(folder: Path, *words: str) -> Any:
    """The task of a training that starts from one model's folder in every respect."""
    places = (f"{key}={folder}" for key in ("base", "clip", "autoencoder"))
    weights = (
        "latents=null",
        "video_motion_weight=0.1",
        "text_motion_weight=0",
        "regularization_weight=0",
    )
    config = load(folder.parent, {**DENOISER, "model": {}}, "run", *places, *weights, *words)
    return prepared_task(config)


def drop(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def without(file: str, key: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        known = json.loads((folder / file).read_text())
        del known[key]
        (folder / file).write_text(json.dumps(known))

    return change


def lacking(part: str) -> Callable[[Path], None]:
    return lambda folder: spoil(folder, part, lambda tensors: tensors.popitem())


SCHEDULER = "scheduler/scheduler_config.json"


def test_whole_it_starts(base: Path) -> None:
    assert isinstance(task(base), DenoiserTask)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (drop("tokenizer/tokenizer.json"), "{base}/tokenizer: has no tokenizer.json"),
        (drop("tokenizer"), "clip: {base}: holds no tokenizer/tokenizer_config.json"),
        (drop("motion_encoder"), "{base}/motion_encoder: is missing, but the base has motion"),
        (drop("content_encoder/model.safetensors"), "{base}/content_encoder: cannot be loaded"),
        (drop("content_encoder/config.json"), "clip: {base}: holds no content_encoder/config.json"),
        (drop("unet/config.json"), "base: {base}: holds no unet/config.json"),
        (drop("unet/diffusion_pytorch_model.safetensors"), "{base}/unet: cannot be loaded"),
        (
            drop(SCHEDULER),
            "{base}/" + SCHEDULER + ": has no prediction_type and no beta_end",
        ),
        (without(SCHEDULER, "beta_end"), "has no beta_end for the base's noise"),
        (without(SCHEDULER, "prediction_type"), "has no prediction_type"),
        (lacking("unet"), "{base}/unet: 1 tensors are missing"),
        (lacking("content_encoder"), "{base}/content_encoder: 1 tensors are missing"),
        (lacking("motion_encoder"), "{base}/motion_encoder: 1 tensors are missing"),
    ],
)
def test_what_is_missing_is_named(change: Callable[[Path], None], line: str, base: Path) -> None:
    change(base)
    with pytest.raises((ValueError, OSError), match=re.escape(line.format(base=base))) as error:
        task(base)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (drop("vae/diffusion_pytorch_model.safetensors"), "{base}/vae: cannot be loaded"),
        (lacking("vae"), "{base}/vae: 1 tensors are missing"),
    ],
)
def test_the_autoencoder_is_whole_when_clips_are_encoded(
    change: Callable[[Path], None], line: str, base: Path
) -> None:
    change(base)
    with pytest.raises(ModelError, match=re.escape(line.format(base=base))):
        task(base).batch(range(2))


def test_noise_that_no_file_tells_can_be_written(base: Path) -> None:
    (base / SCHEDULER).unlink()
    noise = task(base, "prediction_type=epsilon", "beta_end=0.02").noise_scheduler.config
    assert (noise.prediction_type, noise.beta_end) == ("epsilon", 0.02)


def test_a_clip_stage_from_a_tokenizer_that_is_not_whole(base: Path) -> None:
    (base / "tokenizer/tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer: has no tokenizer\.json"):
        prepared_task(load(base.parent, CLIP, "image", f"text={base}"))


def test_preprocessing_is_saved_and_a_missing_file_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ImagePreprocessing.plain(48).save(tmp_path)
    assert ImagePreprocessing.read(tmp_path, 32) == ImagePreprocessing.plain(48)
    assert caplog.messages == []
    (tmp_path / "preprocessor_config.json").unlink()
    assert ImagePreprocessing.read(tmp_path, 32) == ImagePreprocessing.plain(32)
    assert "preprocessor_config.json: is missing; images are scaled to 32" in caplog.messages[0]


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A small folder of diffusers' `TextToVideoSDPipeline`."""
    folder = tmp_path / "theirs"
    write_text_to_video_folder(folder)
    DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    ).save_pretrained(folder / "scheduler")
    return folder


def other_noise(folder: Path) -> None:
    settings = DDIMScheduler.load_config(folder / "scheduler")
    DDIMScheduler.from_config(settings, prediction_type="v_prediction").save_pretrained(
        folder / "scheduler"
    )


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lacking("vae"), "theirs/vae: 1 tensors are missing"),
        (lacking("text_encoder"), "theirs/text_encoder: 1 tensors are missing"),
        (lacking("unet"), "1 missing"),
        (other_noise, "scheduler_config.json: prediction_type is v_prediction"),
    ],
)
def test_a_conversion_of_what_is_not_whole(
    change: Callable[[Path], None], line: str, theirs: Path
) -> None:
    change(theirs)
    with pytest.raises(ModelError, match=re.escape(line)):
        convert(theirs, theirs.parent / "ours")
    assert not (theirs.parent / "ours").exists()


def test_a_conversion_of_variants(theirs: Path) -> None:
    """Where the weights are those of `fp16` alone."""
    for part in ("unet", "vae", "text_encoder"):
        (file,) = (theirs / part).glob("*.safetensors")
        file.rename(file.with_suffix(".fp16.safetensors"))
    convert(theirs, theirs.parent / "ours")
    assert (theirs.parent / "ours/vae/diffusion_pytorch_model.safetensors").is_file()
