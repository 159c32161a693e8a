"""What every command says on stderr: how far it is, and what went wrong."""

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
from demo_t2v.core.devices import lacking
from demo_t2v.core.errors import UserError
from demo_t2v.core.launch import rank

_NAME: Final = "demo-t2v: "
"""What the lines of errors begin with."""
_FRAME: Final = " \t\n\u2500\u2502\u256d\u256e\u2570\u256f"
"""What typer draws round a usage error."""


@dataclass
class Bar:
    """A progress bar on stderr."""

    bar: Any
    task: Any

    def advance(self, count: int = 1) -> None:
        """So many steps more are done."""
        self.bar.advance(self.task, count)

    def reach(self, count: int, note: str = "") -> None:
        """So many steps are done in all; `note` stands behind the bar."""
        self.bar.update(self.task, completed=count, note=note)

    def say(self, line: str) -> None:
        """Print a line, above the bar if there is one."""
        if self.bar.disable:
            typer.echo(line, err=True)
        else:
            self.bar.console.print(line, highlight=False, markup=False)


@contextmanager
def progress(name: str, total: int | None) -> Iterator[Bar]:
    """A bar on stderr where that is a terminal, in the first process only.

    `total` are all steps there are, None where that is not known.
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
    """Yields what is stdout for reports; whatever libraries and compilers print goes to stderr."""
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
    """Whatever any library prints on stderr leaves as a JSON object a line.

    Lines that are objects already stay as they are, errors of this program become
    `{"event": "error", "text": ...}`, all others `{"event": "message", "text": ...}`.
    """
    sys.stderr.flush()
    events = os.dup(2)
    read, write = os.pipe()
    os.dup2(write, 2)
    os.close(write)
    reader = Thread(target=_pass_on, args=(read, events), daemon=True)
    reader.start()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(events, 2)
        reader.join(timeout=5)  # a child process may hold the pipe open for longer
        if not reader.is_alive():
            os.close(events)


def _pass_on(read: int, events: int) -> None:
    with os.fdopen(read, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            text = line.strip(_FRAME)
            if not _is_object(text):
                event = "error" if text.startswith(_NAME) else "message"
                said = text.removeprefix(_NAME)
                text = json.dumps({"event": event, "text": said}) if said else ""
            if text:
                os.write(events, f"{text}\n".encode())


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what goes wrong into one line and an exit code; `python -X dev` shows where instead."""
    try:
        yield
    except typer.Exit:
        raise
    except KeyboardInterrupt:
        leave("stopped", 130)
    except Exception as error:
        if sys.flags.dev_mode:
            raise
        error = lacking(error) or error
        ours = isinstance(error, UserError)
        leave(_describe(error, ours), 2 if ours else 1)


def _describe(error: Exception, ours: bool) -> str:
    """The error as one line."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {reason(error, Path(str(error.filename)))}"
    message = " ".join(str(error).split())
    return message if ours or isinstance(error, OSError) else f"{type(error).__name__}: {message}"


def leave(message: str, code: int) -> NoReturn:
    """End the program with one line on stderr, if there is a message, and an exit code."""
    if message:
        typer.echo(f"{_NAME}{message}", err=True)
    raise typer.Exit(code) from None
