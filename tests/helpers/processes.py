"""Child processes, from Linux's /proc."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="reads the children of a process from /proc"
)


@contextmanager
def started(command: Sequence[object], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process, for text, that ends with the block: by SIGTERM, or after 30 s by SIGKILL."""
    with subprocess.Popen([str(word) for word in command], text=True, **options) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()


def accept_interrupts() -> None:
    """For `preexec_fn`: SIGINT, which a parent in the background ignores, ends the process."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def children(parent: int) -> list[int]:
    """Processes that any thread of `parent` has started; none if it has ended."""
    found: list[int] = []
    for thread in Path(f"/proc/{parent}/task").glob("*/children"):
        try:
            found += map(int, thread.read_text().split())
        except OSError:  # the thread has ended
            continue
    return found


def descendants(parent: int) -> list[int]:
    """The children, their children, and so on."""
    below = children(parent)
    return below + [pid for child in below for pid in descendants(child)]


def command_line(pid: int) -> str:
    """Words of the command, joined by spaces; empty if the process has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def is_running(pid: int) -> bool:
    """Whether the process has not ended; a zombie has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
