"""Usage errors and bad input end with one line and exit code 2."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from demo_t2v.cli.usage import one_line
from helpers import in_process
from helpers.program import assert_one_line

SIZES = (
    "{hidden_size: 8, intermediate_size: 8, num_hidden_layers: 1, num_attention_heads: 1, "
    "max_position_embeddings: 16}"
)
CLIP = "task: clip\nlog_dir: run\nnum_steps: 1\nbatch_size: 2\nlr: 1e-3\ntensorboard: off\n"
DENOISER = (
    "task: denoiser\nlog_dir: run\nnum_steps: 1\nbatch_size: 2\nlr: 1e-3\ntensorboard: off\n"
    "num_frames: 4\nresolution: 32\ntext_motion_weight: 0\nregularization_weight: 0\n"
    "autoencoder: model\nclip: model\ntrain_dataset: {type: sprites, clips: 4}\n"
    "model: {block_out_channels: [4, 4], attention: [on, on], layers_per_block: 1, "
    "cross_attention_dim: 24, attention_head_dim: 4, num_input_heads: 1, norm_num_groups: 2}\n"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A folder with a model, trainings, and invalid files of every kind."""
    folder = tmp_path_factory.mktemp("newcomer")
    shutil.copytree(tiny_folder, folder / "model")
    (folder / "dir").mkdir()
    (folder / "text").write_text("hello\n")
    (folder / "bytes").write_bytes(bytes(range(256)) * 9)
    (folder / "deep").write_text("[" * 100_000)
    for ending in ("jsonl", "parquet", "json"):
        (folder / f"dir.{ending}").mkdir()
        shutil.copy(folder / "bytes", folder / f"bytes.{ending}")
        shutil.copy(folder / "deep", folder / f"deep.{ending}")
        (folder / f"empty.{ending}").touch()
    (folder / "ids.csv").write_text("videoid,name\na,b\n")
    (folder / "clip.yaml").write_text(CLIP)
    (folder / "denoiser.yaml").write_text(DENOISER)
    return folder


GENERATE = ("generate", "--model", "model", "--steps", "1", "--frames", "2")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("generate --seed x", "--seed: should be a whole number (see demo-t2v generate --help)"),
        ("generate --guidance x", "--guidance: should be a number (see demo-t2v generate --help)"),
        ("generate --nonsense", "--nonsense is not an option"),
        ("generate --seedd 3", "--seedd is not an option; did you mean --seed, --speed?"),
        ("generate --seed", "--seed needs a value"),
        ("generate --overwrite=3", "--overwrite takes no value"),
        ("data sprites --out x", "--clips is missing (see demo-t2v data sprites --help)"),
        ("data sprites --out x --clips 0", "--clips: should be at least 1"),
        ("data nonsense", "nonsense is not a command (see demo-t2v data --help)"),
        ("nonsense", "nonsense is not a command (see demo-t2v --help)"),
        ("web --port 99999", "--port: should be at most 65535"),
        ("convert a b --dtype int8", "--dtype: should be one of float32, float16"),
        ("convert a b c", "unexpected argument c; put texts in quotes"),
        ("card", "is missing (see demo-t2v card --help)"),
        ("card text", "text/model_index.json: is missing"),
        ("card model --scores deep.json", "deep.json: is not a report"),
        ("generate --prompts deep.jsonl", "deep.jsonl, row 1: is no JSON object"),
        ("generate --prompts none.parquet", "none.parquet: cannot be read (No such file"),
        ("generate --prompts dir.parquet", "dir.parquet: cannot be read (Is a directory"),
        ("generate --prompts empty.parquet", "empty.parquet: cannot be read (it is not Parquet)"),
        (f"generate --prompts {'a' * 300}", "aaa: cannot be read (File name too long)"),
        ("generate --height 1000000 car", "height: should be at most 8192, not 1000000"),
        ("generate car deepspeed_config=deep.json", "deep.json: is not valid JSON"),
        ("data shards --csv ids.csv --videos dir --out new --megabytes -1", "more than 0, not -1"),
        ("data shards --csv ids.csv --videos dir --out new --megabytes nan", "more than 0, not n"),
        ("evaluate sprites --out dir", "dir: is a folder; name a file"),
        ("train --config clip.yaml", "model: text_config.max_position_embeddings is missing"),
        ("train --config clip.yaml model={text_config:3}", "text_config.max_position_embeddings"),
        ("train --config clip.yaml text=dir", "text: dir: holds no content_encoder/config.json"),
        ("train --config clip.yaml teacher=a", "unknown key teacher; known are"),
        (
            "train --config clip.yaml log_dir=text resolution=224 text=model",
            "text: a file is in the way",
        ),
        ("train --config denoiser.yaml autoencoder=no", "autoencoder: no: holds no vae/config."),
        ("train --config denoiser.yaml clip=text", "clip: text: holds no content_encoder/config."),
        ("train --config denoiser.yaml base=dir", "base: dir: holds no unet/config.json"),
        ("train --config denoiser.yaml model.layers=3", "unexpected keyword argument 'layers'"),
        ("train --config denoiser.yaml model.layers_per_block=x", "model: these are no sizes of"),
        ("train --config denoiser.yaml model.attention=[on]", "model: these are no sizes of a"),
        ("train --config denoiser.yaml model.cross_attention_dim=8", "but should be 24, the width"),
        ("train --config denoiser.yaml resolution=30", "resolution: 30 pixels are 3 latents a si"),
    ],
    ids=lambda value: value[:60],
)
def test_an_error_is_one_line(folder: Path, words: str, line: str) -> None:
    assert_one_line(in_process.run(folder, *words.split()), 2, line)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("Invalid value for '--seed': 'x' is not a valid integer.", "--seed: should be a whole nu"),
        ("Invalid value for '--clips': 0 is not in the range x>=1.", "--clips: should be in the"),
        ("Invalid value for '--dtype': 'a' is not one of 'b', 'c'.", "--dtype: should be one of b"),
        ("No such option: --sed Did you mean --seed?", "--sed is not an option"),
        ("Missing argument 'SOURCE'.", "SOURCE is missing"),
        ("Got unexpected extra arguments (a b)", "unexpected argument a b; put texts"),
        ("Something\nelse", "Something else"),
    ],
)
def test_messages_of_other_versions_of_typer(theirs: str, ours: str) -> None:
    assert one_line(theirs).startswith(ours)


def test_no_arguments_show_the_help(folder: Path) -> Any:
    done = in_process.run(folder)
    assert done.returncode == 2
    assert "Usage: " in done.stdout + done.stderr
    assert in_process.run(folder, "--version").returncode == 0
