"""Usage errors of the command line in one line."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import Any, Final

import typer
from typer.core import TyperGroup

# Some versions of Typer bundle their own copy of click, which defines this class.
_UsageError: Final[Any] = typer.BadParameter.__base__

_VALUE: Final = r"Invalid value for '?(.+?)'?: "
_MESSAGES: Final = (
    (r"No such option: (\S+) \(Possible options: (.*)\)", r"\1 is not an option; did you mean \2?"),
    (r"No such option:? '?([^\s']+).*", r"\1 is not an option"),
    (r"No such command '(.+)'.*", r"\1 is not a command"),
    (r"Missing \w+ '?(.+?)'?\.", r"\1 is missing"),
    (r"Option '(.+)' requires an argument\.", r"\1 needs a value"),
    (r"Option '(.+)' does not take a value\.", r"\1 takes no value"),
    (
        r"Got unexpected extra argument\S* \((.*)\)",
        r"unexpected argument \1; put texts in quotes",
    ),
    (_VALUE + r".*valid integer.*", r"\1: should be a whole number"),
    (_VALUE + r".*valid (?:number|float).*", r"\1: should be a number"),
    (_VALUE + r".*greater than or equal to (\S+)", r"\1: should be at least \2"),
    (_VALUE + r".*less than or equal to (\S+)", r"\1: should be at most \2"),
    (_VALUE + r".*not in the range (.+)\.", r"\1: should be in the range \2"),
    (_VALUE + r".*'.+' is not one of (.+)\.", r"\1: should be one of \2"),
)
"""Patterns of Typer's messages, in all its versions, and our replacements."""


class OneLineGroup(TyperGroup):
    """The group of commands; a usage error ends with one line and exit code 2."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        arguments = (args, prog_name, complete_var, False, windows_expand_args)
        if not standalone_mode:
            return super().main(*arguments, **extra)
        try:
            code = super().main(*arguments, **extra)
        except _UsageError as error:
            _print_error(error)
            sys.exit(2)
        sys.exit(code if isinstance(code, int) else 0)


def one_line(message: str) -> str:
    """Typer's message in one line of our own."""
    for pattern, replacement in _MESSAGES:
        if found := re.fullmatch(pattern, message, re.DOTALL):
            return found.expand(replacement).replace("'", "")
    return " ".join(message.split())


def _print_error(error: Any) -> None:
    message = error.format_message()
    if type(error).__name__ == "NoArgsIsHelpError":  # the help, or "" if it is printed already
        typer.echo(message, err=True, nl=bool(message))
        return
    path = error.ctx.command_path.split() if error.ctx else []
    command = " ".join(["demo-t2v", *path[1:]])
    typer.echo(f"demo-t2v: {one_line(message)} (see {command} --help)", err=True)
