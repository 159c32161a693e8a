"""An autoencoder for larger frames learns to share the latents of a smaller one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from demo_t2v.config import ConfigError
from demo_t2v.model_folder import ModelError
from demo_t2v.training.tasks import make_task
from helpers.stages import AUTOENCODER, assert_same_weights, load, run

BLOCKS = 4
STUDENT = {
    "task": "student", "train": "decoder", "resolution": 64, "num_steps": 4, "batch_size": 4,
    "lr": 3e-3,
    "model": AUTOENCODER["model"] | {
        "down_block_types": ["DownEncoderBlock2D"] * BLOCKS,
        "up_block_types": ["UpDecoderBlock2D"] * BLOCKS, "block_out_channels": [8] * BLOCKS,
    },
}  # fmt: skip


def student(stages: Path, *overrides: str, log_dir: str = "student"):
    teacher = f"teacher={stages}/autoencoder/final"
    return load(stages, STUDENT, log_dir, teacher, *overrides)


def vae(folder: Path) -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(folder / "final/vae")


@pytest.fixture(scope="module")
def decoder(stages: Path) -> Path:
    """A decoder after a few dozen steps."""
    config = student(stages, "num_steps=40", "crop=32", "crop_steps=20", log_dir="decoder")
    lines = run(config)
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]
    return config.log_dir


def test_the_decoder_is_trained_and_the_encoder_stays(stages: Path, decoder: Path) -> None:
    begun = make_task(student(stages)).model.state_dict()
    trained = vae(decoder).state_dict()
    for name, tensor in trained.items():
        same = torch.equal(begun[name], tensor)
        assert same == name.startswith(("encoder", "quant_conv")), name


def test_the_student_starts_from_the_teacher_and_has_its_scale(stages: Path) -> None:
    task = make_task(student(stages))
    teacher = AutoencoderKL.from_pretrained(stages / "autoencoder/final/vae")
    ours, theirs = task.model.state_dict(), teacher.state_dict()
    assert torch.equal(ours["decoder.conv_in.weight"], theirs["decoder.conv_in.weight"])
    assert task.model.config.scaling_factor == teacher.config.scaling_factor
    assert task.model.config.sample_size == 2 * teacher.config.sample_size


def test_the_encoder_comes_nearer_to_the_teachers_latents(stages: Path, decoder: Path) -> None:
    keys = "train=encoder", f"base={decoder}/final", "num_steps=30", "model={}"
    config = student(stages, *keys, log_dir="encoder")
    lines = run(config)
    assert lines[-1]["latent_error"] < 0.9 * lines[0]["latent_error"]
    before, after = vae(decoder).state_dict(), vae(config.log_dir).state_dict()
    assert all(torch.equal(t, after[n]) for n, t in before.items() if n.startswith("decoder"))


def test_a_frame_is_the_same_in_both_sizes_and_windows_hold_the_thing(stages: Path) -> None:
    whole = make_task(student(stages)).batch(range(8))
    cut = make_task(student(stages, "crop=32", "crop_steps=9")).batch(range(8))
    small = torch.nn.functional.avg_pool2d(whole.large, 2)
    assert (small - whole.small).abs().mean() < 0.05  # they are drawn apart
    assert whole.things.sum((1, 2, 3)).min() > 30
    for index, (y, x) in enumerate((cut.corners * 8).tolist()):
        window = whole.large[index, :, y : y + 32, x : x + 32]
        assert torch.equal(cut.large[index], window)
        seen = cut.things[index].sum() / whole.things[index].sum()
        assert seen > 0.4, index


def test_the_windows_end_after_crop_steps(stages: Path) -> None:
    task = make_task(student(stages, "crop=32", "crop_steps=2"))
    assert task.batch(range(4, 8)).large.shape[-1] == 32
    assert task.batch(range(8, 12)).large.shape[-1] == 64


def test_latents_of_another_shape_are_refused(stages: Path) -> None:
    with pytest.raises(ConfigError, match=r"16x16, its teacher .* 8x8"):
        make_task(student(stages, "resolution=128"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("crop=20",), r"crop: 20 should be a multiple of 8"),
        (("crop=72",), r"crop: 72 .* at most 64"),
        (("crop=32", "train=encoder"), r"crop: an encoder needs full frames"),
    ],
)
def test_windows_that_do_not_fit_are_refused(
    stages: Path, words: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_task(student(stages, *words))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("crop=40",),
            "crop: 40 should be a multiple of 4, the pixels of a latent, and at most 32",
        ),
        (("crop=10",), "crop: 10 should be a multiple of 4"),
        (("resolution=30",), "resolution: 30 should be a multiple of 4"),
    ],
)
def test_squares_that_do_not_fit_are_refused(
    tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_task(load(tmp_path, AUTOENCODER, "squares", *words))


def test_a_teacher_with_a_missing_weight_is_refused(stages: Path, tmp_path: Path) -> None:
    shutil.copytree(stages / "autoencoder/final", tmp_path / "teacher")
    file = tmp_path / "teacher/vae/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["encoder.conv_in.weight"]
    save_file(tensors, file)
    with pytest.raises(ModelError, match=r"1 tensors are missing, encoder\.conv_in\.weight"):
        make_task(student(stages, f"teacher={tmp_path}/teacher"))


def test_a_wrong_key_of_the_network_is_refused(stages: Path) -> None:
    with pytest.raises(ConfigError, match="model"):
        make_task(student(stages, "model.colours=3"))


def test_a_stopped_run_ends_with_the_weights_of_a_whole_one(stages: Path) -> None:
    constant = "warmup_steps=0", "lr_schedule=constant"
    for log_dir, steps in (("whole", 4), ("halves", 2), ("halves", 4)):
        run(student(stages, *constant, f"num_steps={steps}", log_dir=log_dir))
    assert_same_weights(stages / "whole/final", stages / "halves/final")
