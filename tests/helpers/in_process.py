"""The program inside the test's own process, where the start of a new one is tested already."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

from typer.testing import CliRunner

from demo_t2v.cli import app


def run(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Run the program in `folder`: as `program.run`, and without importing torch once more."""
    with contextlib.chdir(folder):
        done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    return subprocess.CompletedProcess(words, done.exit_code, done.stdout, done.stderr)
