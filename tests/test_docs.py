"""The documents. The ```sh and ```python blocks of docs/ run, in order, in a folder a file.

A ```console block has commands that cannot run here (GPUs, several machines, downloads, hours).
The program must accept the commands and options of all blocks, those of README.md included.
"""

from __future__ import annotations

import importlib
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from pydantic import TypeAdapter

from demo_t2v.cli import app
from demo_t2v.config import ConfigError, InferenceConfig, load
from demo_t2v.evaluation.protocol import shipped_protocols
from demo_t2v.evaluation.report import read_report
from demo_t2v.training.config import (
    AnyDataset,
    AnyTraining,
    ClipTraining,
    DenoiserTraining,
    WebvidDataset,
)
from helpers.program import ENVIRONMENT, ROOT, TIMEOUT
from helpers.released_checkout import INFERENCE, TRAINING, write_checkout

DOCS = sorted((ROOT / "docs").rglob("*.md"))
ALL = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *DOCS]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(demo-t2v [^`]+)`")
HERE_DOCUMENT = re.compile(r"^cat > .*?^END$", re.MULTILINE | re.DOTALL)
LAUNCHED = {"demo-t2v", "demo_t2v", "scripts/inference_deepspeed.sh", "scripts/train_deepspeed.sh"}
OTHERS = {"rm", "hf", "make", "pip", "source"}
"""Other programs that the documents call."""
RUN = ("sh", "python")
SHIPPED = {
    "generate": ["--config", "configs/inference.yaml"],
    "train": ["--config", "configs/train.yaml"],
}
"""What the launchers run when they are told nothing."""


@pytest.mark.parametrize("file", DOCS, ids=lambda file: file.stem)
def test_a_page_has_each_heading_once(file: Path) -> None:
    text = BLOCK.sub("", file.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ .*$", text, re.MULTILINE)
    assert sorted(headings) == sorted(set(headings))


def blocks(file: Path, *kinds: str) -> list[tuple[str, str]]:
    """The (kind, text) blocks of a document, in order."""
    found = BLOCK.findall(file.read_text(encoding="utf-8"))
    return [(kind, text) for kind, text in found if kind in kinds]


def commands(text: str) -> list[list[str]]:
    """A block's commands as words: without comments, documents and redirections."""
    joined = HERE_DOCUMENT.sub("", text).replace("\\\n", " ")
    lines = [shlex.split(line.partition(" 2> ")[0], comments=True) for line in joined.splitlines()]
    return [words for words in lines if words]


def asked(words: list[str]) -> list[str]:
    """What the program itself is told: without environment, launcher and the launcher's options."""
    start = next(number for number, word in enumerate(words) if word in LAUNCHED)
    program, rest = words[start], words[start + 1 :]
    if program.startswith("scripts/"):
        assert (ROOT / program).is_file()
        command = "generate" if "inference" in program else "train"
        own = rest[rest.index("--") + 1 :] if "--" in rest else []
        return [command, *(own or SHIPPED[command])]
    return rest


def is_protocol(name: str) -> bool:
    """Whether `evaluate` takes the name as that of a protocol: shipped, a file, or PROTOCOL."""
    return name in ("PROTOCOL", *shipped_protocols()) or name.endswith(".yaml")


def check(words: list[str], whole: bool = True) -> None:
    """Whether the program takes the words: commands, options, and keys of a configuration."""
    program: Any = typer.main.get_command(app)
    name = "demo-t2v"
    while hasattr(program, "commands") and words:
        name, *words = words
        if name not in program.commands and is_protocol(name):
            name, words = "protocol", [name, *words]
        program = program.commands[name]
    try:
        parsed = program.make_context(name, list(words)).params
    except Exception as error:
        kind = type(error).__name__  # of click, which typer brings or asks for, by its version
        if kind == "Exit" or (kind in ("MissingParameter", "NoArgsIsHelpError") and not whole):
            return  # --help, or a command that is only named
        raise
    config = parsed.get("config")
    if name == "generate" and config and (ROOT / config).is_file():
        overrides = [word for word in parsed["words"] or [] if "=" in word]
        load(InferenceConfig, ROOT / config, overrides)
    if name == "train" and config and (ROOT / config).is_file():
        load(AnyTraining, ROOT / config, parsed["overrides"] or [])


@pytest.mark.parametrize("file", ALL, ids=lambda file: file.stem)
def test_the_program_takes_every_command(file: Path) -> None:
    for _, text in blocks(file, "sh", "console"):
        for words in commands(text):
            if words[0] not in OTHERS:
                check(asked(words))
    for text in INLINE.findall(BLOCK.sub("", file.read_text(encoding="utf-8"))):
        check(asked(shlex.split(text)), whole=False)


def test_a_wrong_command_would_be_found() -> None:
    with pytest.raises(Exception, match="No such option: --nonsense"):
        check(["generate", "--nonsense", "3"])
    with pytest.raises(ConfigError, match="unknown key nonsense"):
        check(["generate", "--config", "configs/inference.yaml", "nonsense=3"])
    for words in (["nonsense"], ["evaluate", "nonsense"]):
        with pytest.raises(KeyError):
            check(words)


@pytest.mark.parametrize("file", ALL, ids=lambda file: file.stem)
def test_blocks_are_of_a_known_kind_and_links_lead_to_files(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert text.count("```") == 2 * len(BLOCK.findall(text))
    assert {kind for kind, _ in BLOCK.findall(text)} <= {*RUN, "bibtex", "console", "yaml"}
    for _, block in blocks(file, "yaml"):
        TypeAdapter(AnyDataset).validate_python(yaml.safe_load(block)["train_dataset"])
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (file.parent / link).exists(), link


@pytest.mark.slow
@pytest.mark.parametrize("file", [f for f in DOCS if blocks(f, *RUN)], ids=lambda file: file.stem)
def test_what_can_run_runs(file: Path, tmp_path: Path) -> None:
    (tmp_path / "src").symlink_to(ROOT / "src")
    for name in ("configs", "prompts", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / name)
    if file.stem == "from_published_code":
        write_checkout(tmp_path)
    (tmp_path / "outputs").mkdir()
    environment = ENVIRONMENT | {"PYTHONPATH": str(ROOT / "src")}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment |= {"RAY_worker_niceness": "0"}
    for kind, text in blocks(file, *RUN):
        program = ["bash", "-euo", "pipefail"] if kind == "sh" else [sys.executable, "-"]
        done = subprocess.run(
            program,
            input=text,
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"


def command_names(group: Any) -> Iterator[str]:
    """The words of each command, at any depth of groups."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from (f"{name} {inner}" for inner in command_names(command))
        else:
            yield name


def test_the_reference_is_filled_from_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    hook = importlib.import_module("docs_reference")
    filled = {
        file.stem: hook.on_page_markdown(file.read_text(encoding="utf-8"))
        for file in (ROOT / "docs" / "reference").glob("*.md")
    }
    assert "<!--" not in "".join(filled.values())
    for model in (InferenceConfig, DenoiserTraining, ClipTraining, WebvidDataset):
        for name, field in model.model_fields.items():
            assert f"\n| `{field.alias or name}`" in filled["configuration"]
    assert "| `lr` | number, more than 0 | required |" in filled["configuration"]
    assert (
        "| `keep_last` | whole number, at least 1 | `3` | Number of checkpoints"
        in (filled["configuration"])
    )
    for words in command_names(typer.main.get_command(app)):
        assert f"## {words}\n\n```text\ndemo-t2v {words} " in filled["command_line"]
    assert "| `--prompts FILE|-` | " in filled["command_line"]
    assert "::: demo_t2v.pipeline.DemoPipeline\n" in filled["python"]


def test_the_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    releases = re.findall(r"^## (\d\S*)", changes, re.MULTILINE)
    assert citation["version"] == project["version"] == releases[0]


def test_the_paper_s_functions_are_where_it_is_said() -> None:
    rows = re.findall(r"(`.*`) in `([\w/]+\.py)`", (ROOT / "docs/paper.md").read_text("utf-8"))
    assert len(rows) > 10
    for names, place in rows:
        source = (ROOT / "src" / "demo_t2v" / place).read_text(encoding="utf-8")
        for name in re.findall(r"`(?:\w+\.)*(\w+)", names):
            assert re.search(rf"(def|class) {name}\b", source), f"{name} in {place}"


def keys(tree: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[set[str]]:
    """For each value of a tree its dotted key, and the beginnings of that."""
    for key, value in tree.items():
        dotted = (*above, f"{above[-1]}.{key}" if above else key)
        if isinstance(value, dict):
            yield from keys(value, dotted)
        else:
            yield set(dotted)


@pytest.mark.parametrize("tree", [INFERENCE, TRAINING], ids=["inference", "training"])
def test_every_published_key_is_in_the_page(tree: dict[str, Any]) -> None:
    page = (ROOT / "docs/from_published_code.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w.]+)`", page))
    assert [beginnings for beginnings in keys(tree) if not named & beginnings] == []


def test_the_tables_of_the_shipped_models_are_those_of_their_score() -> None:
    script = runpy.run_path(str(ROOT / "scripts/document_models.py"))
    page = (ROOT / "docs/sprites.md").read_text(encoding="utf-8")
    (block,) = script["block"]("score tables").findall(page)
    reports = {model: read_report(script["score_file"](model)) for model in script["SCORES"]}
    assert block == script["score_tables"](reports.values())
    for model, report in reports.items():
        right = sum(video.right["motion"] for video in report.subjects[0].subset(held_out=False))
        assert f"| `{model}` | trained | 216 | {right / 216:.0%}"[:-1] in block
