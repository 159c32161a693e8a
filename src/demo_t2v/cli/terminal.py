"""What every command says on stderr: how far it is, and what went wrong."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, TextIO

import typer

from demo_t2v.launch import rank


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
        # Bad input is a ValueError class of this project's own; all else is a failure.
        ours = isinstance(error, ValueError) and type(error).__module__.startswith("demo_t2v.")
        leave(_describe(error, ours), 2 if ours else 1)


def _describe(error: Exception, ours: bool) -> str:
    """The error as one line."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    message = " ".join(str(error).split())
    return message if ours or isinstance(error, OSError) else f"{type(error).__name__}: {message}"


def leave(message: str, code: int) -> NoReturn:
    """End the program with one line on stderr, if there is a message, and an exit code."""
    if message:
        typer.echo(f"demo-t2v: {message}", err=True)
    raise typer.Exit(code) from None
