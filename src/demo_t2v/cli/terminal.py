"""What every command says on stderr: how far it is, and what went wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer


@contextmanager
def progress(what: str, steps: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, where that is a terminal; yields what to call after some steps.

    `steps` are all there are, None where that is not known.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(what, total=steps)
        yield lambda count: bar.advance(task, count)


def quieten_libraries() -> None:
    """Have no progress bars of diffusers' and transformers' own on stderr."""
    from diffusers.utils.logging import disable_progress_bar as quieten_diffusers
    from transformers.utils.logging import disable_progress_bar as quieten_transformers

    quieten_diffusers()
    quieten_transformers()  # type: ignore[no-untyped-call]


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what goes wrong into one line and an exit code; `python -X dev` shows where instead."""
    try:
        yield
    except KeyboardInterrupt:
        _exit("stopped", 130)
    except Exception as error:
        if sys.flags.dev_mode:
            raise
        # Bad input is a ValueError class of this project's own; all else is a failure.
        ours = isinstance(error, ValueError) and type(error).__module__.startswith("demo_t2v.")
        _exit(_describe(error, ours), 2 if ours else 1)


def _describe(error: Exception, ours: bool) -> str:
    """The error as one line."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    message = " ".join(str(error).split())
    return message if ours or isinstance(error, OSError) else f"{type(error).__name__}: {message}"


def _exit(message: str, code: int) -> NoReturn:
    typer.echo(f"demo-t2v: {message}", err=True)
    raise typer.Exit(code) from None
