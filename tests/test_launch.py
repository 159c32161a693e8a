"""The end of a process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import atexit
from demo_t2v.core.launch import exit_process

atexit.register(print, "finalized")
print("done", end=" ")
exit_process(3)
"""


@pytest.mark.parametrize(("processes", "output"), [(1, "done finalized"), (2, "done")])
def test_one_of_several_processes_ends_before_the_interpreter_is_finalized(
    processes: int, output: str
) -> None:
    environment = os.environ | {"RANK": "0", "WORLD_SIZE": str(processes)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (3, output, "")
