"""Runs the command line as a process and reads its messages on stderr."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "demo_t2v")
TIMEOUT = 600  # seconds; only a program that hangs takes longer
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "100"}
# The launchers are in the interpreter's folder, which need not be on the path.
ENVIRONMENT |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def run(
    folder: Path, *words: object, limit: Callable[[], None] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the program in `folder`; `limit` runs in the child and turns coverage off."""
    measured = limit is None
    return subprocess.run(
        [*COMMAND, *map(str, words)],
        cwd=folder,
        env={k: v for k, v in ENVIRONMENT.items() if measured or not k.startswith("COVERAGE")},
        preexec_fn=limit,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


def messages(stderr: str) -> list[str]:
    """The lines of text on stderr; of the events of `--json`, only errors and messages."""
    prefixes = {"error": "demo-t2v: ", "message": ""}
    lines = []
    for line in stderr.splitlines():
        event = json.loads(line) if line.startswith('{"event"') else None
        if event is None:
            lines.append(line)
        elif event["event"] in prefixes:
            lines.append(prefixes[event["event"]] + event["text"])
    return lines


def assert_one_line(done: subprocess.CompletedProcess[str], code: int, *parts: str) -> None:
    """Assert that the program exited with `code` and one line on stderr with all `parts`."""
    assert done.returncode == code, done.stderr
    (line,) = messages(done.stderr)
    assert line.startswith("demo-t2v: ")
    for part in parts:
        assert part in line


def free_port() -> int:
    """A port of this machine that the system says is free."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
