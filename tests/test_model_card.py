"""`demo-t2v card`: a model's card in the hub's format."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from demo_t2v.checkpoints.resolve import BUILT_IN
from demo_t2v.evaluation.frame_grids import CAPTION, SIDE
from demo_t2v.evaluation.model_card import escape
from demo_t2v.evaluation.report import read_report, save_report
from demo_t2v.evaluation.sprites.benchmark import evaluate
from helpers import in_process
from helpers.program import assert_one_line, run

SLY = 'a car | <script>alert("1")</script> **falls** ![x](http://example.org/y.png) `now`'


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A folder with a model, videos that it made, its scores and a training configuration."""
    folder = tmp_path_factory.mktemp("card")
    shutil.copytree(tiny_folder, folder / "model")
    prompts = ({"prompt": text} for text in ("a fish falls, in the snow", SLY))
    (folder / "two.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    words = ("--prompts", "two.jsonl", "--model", "model", "--steps", "2", "--device", "cpu")
    for out, form in (("mp4", "mp4"), ("png", "png")):
        done = in_process.run(folder, "generate", *words, "--format", form, "--out", out)
        assert done.returncode == 0, done.stderr
    model = str(folder / "model")
    report = evaluate(model, base=model, num_trained=3, num_held_out=2)
    save_report(report, folder / "score.json")
    (folder / "train.yaml").write_text(
        "task: denoiser\nlog_dir: /home/somebody/runs\nautoencoder: a\nclip: b\nnum_steps: 7\n"
        "batch_size: 2\nlr: 1.0e-3\nlora: {rank: 4}\nbase: c\n"
        "train_dataset: {type: webvid, csv_path: /home/somebody/c.csv, video_dir: d}\n"
    )
    return folder


def written(workspace: Path, *words: object) -> tuple[dict[str, Any], str]:
    """The front matter and the text of the card that these options give."""
    done = in_process.run(workspace, "card", "model", "--overwrite", *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "model/README.md"
    card = ModelCard.load(workspace / "model" / "README.md")
    metadata: dict[str, Any] = card.data.to_dict()
    return metadata, card.text


def test_a_card_of_a_folder_alone(workspace: Path) -> None:
    metadata, text = written(workspace)
    assert metadata == {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-video",
        "tags": ["text-to-video", "diffusers", "demo-t2v"],
    }
    assert [line for line in text.splitlines() if line.startswith("#")] == ["# model", "## Use"]
    assert "4 frames of 32x32 pixels in 3 steps with guidance 3." in text


def test_a_negative_prompt(workspace: Path) -> None:
    file = workspace / "model/model_index.json"
    before = file.read_text()
    file.write_text(json.dumps(json.loads(before) | {"negative_prompt": "ugly, <b>static"}))
    try:
        _, text = written(workspace)
    finally:
        file.write_text(before)
    prompt = "ugly, &#60;b&#62;static"
    assert f"in 3 steps with guidance 3 and the negative prompt “{prompt}”." in text


def test_a_guidance_interval(workspace: Path) -> None:
    file = workspace / "model/model_index.json"
    before = file.read_text()
    file.write_text(json.dumps(json.loads(before) | {"guidance_interval": [0.5, 1.0]}))
    try:
        _, text = written(workspace)
    finally:
        file.write_text(before)
    assert "in 3 steps with guidance 3 at noise levels of 0.5 to 1." in text


def test_components_are_those_of_info(workspace: Path) -> None:
    report = in_process.run(workspace, "info", "--model", "model", "--device", "cpu", "--json")
    _, text = written(workspace)
    for part in json.loads(report.stdout)["parts"]:
        assert f"| `{part['name']}` | {part['class']} | {part['parameters']:,} | " in text


def test_a_card_with_all_options(workspace: Path) -> None:
    metadata, text = written(
        workspace, "--repo", "somebody/fish", "--license", "cc-by-nc-4.0",
        "--base-model", "org/base",
        "--data", "Ten *home* videos.", "--config", "train.yaml", "--scores", "score.json",
        "--samples", "mp4",
    )  # fmt: skip
    assert metadata["license"] == "cc-by-nc-4.0"
    assert metadata["base_model"] == "org/base"
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings == [
        "# fish", "## Samples", "## Use", "## Training", "## Score", "## Licence"
    ]  # fmt: skip
    assert "--model somebody/fish" in text
    assert "Ten *home* videos." in text
    assert "    num_steps: 7" in text
    assert "    train_dataset:\n      type: webvid\n" in text
    assert "somebody/runs" not in text
    assert "c.csv" not in text
    results = metadata["model-index"][0]["results"]
    assert [result["dataset"]["split"] for result in results] == [
        "trained pairs", "held-out pairs"
    ]  # fmt: skip
    motion = results[0]["metrics"][0]
    assert motion == {"type": "accuracy", "name": "motion right", "value": 0.0}
    assert "| this model | trained pairs | 3 | 0.0% (0% to 56%) |" in text
    assert "| its base | held-out pairs | 2 |" in text
    assert "real clips" not in text


@pytest.mark.parametrize("out", ["mp4", "png"])
def test_samples_and_escaped_prompts(workspace: Path, out: str) -> None:
    _, text = written(workspace, "--samples", out)
    with Image.open(workspace / "model" / "samples.png") as sheet:
        assert sheet.size == (CAPTION + 6 * SIDE, 2 * SIDE)
        frames = sheet.convert("RGB").crop((CAPTION, 0, CAPTION + SIDE, SIDE))
        assert len(set(frames.get_flattened_data())) > 100
    assert "](samples.png)" in text
    assert "| 1 | a fish falls, in the snow | " in text
    assert escape(SLY) in text
    for sign in ("<script", "**falls", "![x]", "http://example", "`now", 'alert("'):
        assert sign not in text


def test_escaped_text_has_no_markup() -> None:
    escaped = escape("a  dog,\n# it's a <b>&amp;_*|well-known*")
    assert escaped == "a dog, &#35; it's a &#60;b&#62;&#38;amp&#59;&#95;&#42;&#124;well-known&#42;"


def test_a_report_is_read_as_it_was_saved(workspace: Path, tmp_path: Path) -> None:
    report = read_report(workspace / "score.json")
    save_report(report, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (workspace / "score.json").read_bytes()


def test_the_built_in_models(tmp_path: Path) -> None:
    own_card = shutil.ignore_patterns("README.md")
    shutil.copytree(BUILT_IN["sprites"], tmp_path / "sprites", ignore=own_card)
    done = run(tmp_path, "card", "sprites", "--license", "mit")
    assert (done.returncode, done.stdout) == (0, "sprites/README.md\n"), done.stderr
    card = ModelCard.load(tmp_path / "sprites" / "README.md")
    assert card.data.license == "mit"
    assert "DemoUNet | 5,1" in card.text
    assert_one_line(in_process.run(tmp_path, "card", "sprites"), 2, "README.md: exists")
    shutil.copytree(BUILT_IN["sprites-base"], tmp_path / "base")
    assert in_process.run(tmp_path, "card", "base").returncode == 0
    assert "the base network of DEMO" in (tmp_path / "base" / "README.md").read_text()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("nowhere",), ["nowhere/model_index.json: is missing"]),
        (("model", "--scores", "two.jsonl"), ["two.jsonl: is not a report of"]),
        (("model", "--scores", "none.json"), ["none.json: cannot be read"]),
        (("model", "--samples", "model"), ["model: has no manifest.jsonl"]),
        (("model", "--samples", "others"), ["others: has no video that model made"]),
        (("model", "--config", "two.jsonl"), ["two.jsonl"]),
        (("model", "--license", "My Own"), ["--license My Own"]),
        (("model", "--repo", "fish"), ["--repo fish", "org/name"]),
        (("model", "--data", " "), ["--data: is empty"]),
    ],
)
def test_bad_input(workspace: Path, words: tuple[str, ...], parts: list[str]) -> None:
    others = workspace / "others"
    if not others.exists():
        shutil.copytree(workspace / "mp4", others)
        manifest = others / "manifest.jsonl"
        manifest.write_text(manifest.read_text().replace('"model_hash": "', '"model_hash": "0'))
    done = in_process.run(workspace, "card", *words, "--overwrite")
    assert_one_line(done, 2, *parts)
