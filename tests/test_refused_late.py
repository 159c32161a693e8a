"""Options that are refused when the model is loaded: one line, and no output folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from helpers import in_process, program
from helpers.damage import spoil
from helpers.program import assert_one_line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--cache forecast --steps 3", "cache forecast: needs 16 steps"),
        ("--cache deep --scheduler heun", "calls the network several times"),
        ("--cache deep --cache-interval 9", "cache_interval 9: must be at most"),
        ("--height 40", "height"),
        ("--model sprites-base --motion-guidance 9", "the model has no motion branch"),
        ("--model sprites-base --bypass-guidance 1", "the model has no motion branch"),
        ("--offload model --device cpu", "offload model: needs a GPU"),
        ("--offload sequential --device cpu", "offload sequential: needs a GPU"),
        ("--max-memory 1kB", "max_memory"),
        ("--lora empty.safetensors", "empty.safetensors: is no complete safetensors file"),
        ("--deepspeed-config empty.safetensors", "empty.safetensors"),
    ],
)
@pytest.mark.parametrize("out", ["new", "new/below/it"])
def test_no_folder_is_made(
    tmp_path: Path, tiny_folder: Path, words: str, message: str, out: str
) -> None:
    (tmp_path / "empty.safetensors").touch()
    options = ("--model", tiny_folder, "--out", out, *words.split())
    assert_one_line(in_process.run(tmp_path, "generate", "a car falls", *options), 2, message)
    assert [file.name for file in tmp_path.iterdir()] == ["empty.safetensors"]


@pytest.mark.parametrize("part", ["unet", "vae", "content_encoder"])
def test_missing_weights_are_one_line(tmp_path: Path, tiny_folder: Path, part: str) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    spoil(folder, part, lambda tensors: tensors.popitem())
    done = program.run(tmp_path, "generate", "a car falls", "--model", "model", "--out", "new")
    assert_one_line(done, 2, f"model/{part}: 1 tensors are missing")
    assert not (tmp_path / "new").exists()


def test_a_folder_of_the_user_stays(tmp_path: Path, tiny_folder: Path) -> None:
    (tmp_path / "mine").mkdir()
    words = ("--model", tiny_folder, "--out", "mine/below", "--height", 40)
    assert_one_line(in_process.run(tmp_path, "generate", "a car", *words), 2, "height")
    assert [file.name for file in tmp_path.rglob("*")] == ["mine"]
