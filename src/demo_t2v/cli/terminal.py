"""Progress bars and one-line errors on stderr, for every command."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any, Final, NoReturn, TextIO

import typer

from demo_t2v.core.atomic_io import reason
from demo_t2v.core.devices import as_device_error
from demo_t2v.core.errors import UserError
from demo_t2v.core.launch import rank

_ERROR_PREFIX: Final = "demo-t2v: "
_FRAME: Final = " \t\n\u2500\u2502\u256d\u256e\u2570\u256f"
"""Characters of Typer's frame around a usage error."""


@dataclass
class Bar:
    """A progress bar on stderr."""

    bar: Any
    task: Any

    def advance(self, count: int = 1) -> None:
        """Add `count` completed steps."""
        self.bar.advance(self.task, count)

    def update(self, count: int, note: str = "") -> None:
        """Set the number of completed steps, and the text behind the bar."""
        self.bar.update(self.task, completed=count, note=note)

    def print_line(self, line: str) -> None:
        """Print a line, above the bar if it is shown."""
        if self.bar.disable:
            typer.echo(line, err=True)
        else:
            self.bar.console.print(line, highlight=False, markup=False)


@contextmanager
def progress(name: str, total: int | None) -> Iterator[Bar]:
    """A progress bar on stderr, shown only on a terminal and in the first process.

    `total` is the number of steps; None if it is not known.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    texts = (TextColumn("{task.description}"), TextColumn("{task.fields[note]}"))
    columns = (texts[0], BarColumn(), TimeRemainingColumn(), texts[1])
    hidden = not console.is_terminal or rank() != 0
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        yield Bar(bar, bar.add_task(name, total=total, note=""))


@contextmanager
def only_reports_on_stdout() -> Iterator[TextIO]:
    """Yield the stream of stdout; what libraries and compilers print there goes to stderr."""
    sys.stdout.flush()
    with os.fdopen(os.dup(1), "w") as report:
        os.dup2(2, 1)
        try:
            yield report
        finally:
            sys.stdout.flush()
            os.dup2(report.fileno(), 1)


@contextmanager
def events_on_stderr() -> Iterator[None]:
    """Rewrite each line on stderr, the libraries' too, as one JSON object.

    JSON objects stay unchanged. Errors of this program become `{"event": "error", "text": ...}`,
    all other lines `{"event": "message", "text": ...}`.
    """
    sys.stderr.flush()
    events = os.dup(2)
    read, write = os.pipe()
    os.dup2(write, 2)
    os.close(write)
    reader = Thread(target=_rewrite_lines, args=(read, events), daemon=True)
    reader.start()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(events, 2)
        reader.join(timeout=5)  # a child process may keep the pipe open
        if not reader.is_alive():
            os.close(events)


def _rewrite_lines(read: int, events: int) -> None:
    with os.fdopen(read, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            text = line.strip(_FRAME)
            if not _is_object(text):
                event = "error" if text.startswith(_ERROR_PREFIX) else "message"
                message = text.removeprefix(_ERROR_PREFIX)
                text = json.dumps({"event": event, "text": message}) if message else ""
            if text:
                os.write(events, f"{text}\n".encode())


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Exit with one line and a code on an exception; `python -X dev` shows the traceback."""
    try:
        yield
    except typer.Exit:
        raise
    except KeyboardInterrupt:
        exit_with("stopped", 130)
    except Exception as error:
        if sys.flags.dev_mode:
            raise
        error = as_device_error(error) or error
        exit_with(_describe(error), 2 if isinstance(error, UserError) else 1)


def _describe(error: Exception) -> str:
    """The error as one line."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {reason(error, Path(str(error.filename)))}"
    message = " ".join(str(error).split())
    if isinstance(error, (UserError, OSError)):
        return message
    return f"{type(error).__name__}: {message}"


def exit_with(message: str, code: int) -> NoReturn:
    """Exit with a code, and a line on stderr unless the message is empty."""
    if message:
        typer.echo(f"{_ERROR_PREFIX}{message}", err=True)
    raise typer.Exit(code) from None
