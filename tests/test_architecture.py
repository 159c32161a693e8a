"""The rules of the code: layers, short files and functions, a command line that starts fast."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "src" / "demo_t2v").rglob("*.py"))
HEAVY = {"torch", "diffusers", "transformers", "tensorboard", "accelerate"}


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_every_import_goes_down():
    lint_imports = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    done = run(sys.executable, "-c", lint_imports)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT / "src").as_posix())
def test_files_and_functions_are_short(file):
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 350
    long = {
        node.name: length
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        # the signature is not counted: a command has a line for each of its options
        and (length := node.end_lineno - node.body[0].lineno + 1) > 50
    }
    assert not long


def test_the_command_line_is_imported_without_the_heavy_packages():
    done = run(sys.executable, "-c", "import demo_t2v.cli, sys; print(*sys.modules)")
    assert done.returncode == 0, done.stderr
    assert "demo_t2v.cli" in done.stdout.split()
    assert not HEAVY & set(done.stdout.split())
