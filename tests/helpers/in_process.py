"""Runs the command line in the process of the test."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

from typer.testing import CliRunner

from demo_t2v.cli import app
from helpers.program import assert_one_line


def run(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Run the program in `folder`; like `program.run`, without a new process."""
    with contextlib.chdir(folder):
        done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    return subprocess.CompletedProcess(words, done.exit_code, done.stdout, done.stderr)


def assert_refused(folder: Path, line: str, *words: object) -> None:
    """Run the program in `folder`: one line with `line`, exit code 2, no output folder."""
    assert_one_line(run(folder, *words), 2, line)
    assert not (folder / "outputs").exists()
