"""`demo-t2v evaluate PROTOCOL`: makes and measures the videos of a benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from demo_t2v.cli.options import Overwrite, takes_options
from demo_t2v.cli.terminal import exit_with, one_line_errors, progress
from demo_t2v.config.inference import inference_options, schema_options
from demo_t2v.core.imports import uncollected
from demo_t2v.evaluation.errors import EvaluationError
from demo_t2v.evaluation.protocol import (
    FIXED,
    EvaluationProtocol,
    find_protocol,
    load_protocol,
    shipped_protocols,
    split_overrides,
)

_COMMAND: Final = "protocol"


class ProtocolGroup(TyperGroup):
    """Commands, and protocols: a name that is no command is that of a protocol."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command of the first argument, or `protocol` with all arguments."""
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            try:
                find_protocol(name)
            except EvaluationError:
                commands = ", ".join(sorted(self.commands))
                ctx.fail(
                    f"{name} is no command ({commands}), no file, and no protocol "
                    f"({', '.join(shipped_protocols())})"
                )
            args = [_COMMAND, *args]
        return super().resolve_command(ctx, args)


@takes_options(
    *(key for key in inference_options() if key.partition(".")[0] not in FIXED),
    more=schema_options(EvaluationProtocol),
)
def protocol(
    source: Annotated[str, typer.Argument(metavar="PROTOCOL", help="YAML file, or its name.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Any key of the protocol or of the configuration of generate.",
            show_default=False,
        ),
    ] = None,
    *,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            show_default="outputs/PROTOCOL",
            help="Folder of videos, features, results.",
        ),
    ] = None,
    options: Mapping[str, Any],
    overwrite: Overwrite = False,
) -> None:
    """Make the videos of a protocol that are missing, and measure all of them.

    `demo-t2v evaluate PROTOCOL` is the same. A stopped evaluation resumes.
    """
    with one_line_errors():
        file = find_protocol(source)
        own, generation = split_overrides(overrides or [])
        keys = EvaluationProtocol.model_fields
        settings = load_protocol(file, own, {k: v for k, v in options.items() if k in keys})
        with uncollected():
            from rich.console import Console

            from demo_t2v.cli.generate import run_workload
            from demo_t2v.evaluation.protocol_run import ProtocolRun
            from demo_t2v.evaluation.tables import results_table

        run = ProtocolRun.prepare(
            settings,
            settings.changes(file),
            out or Path("outputs") / settings.name,
            generation,
            {k: v for k, v in options.items() if k not in keys},
            overwrite,
        )
        is_main = run.work.coordinator.is_main
        if run.work.missing and is_main:
            with progress("checks", len(run.real)) as bar:
                run.check(bar.advance)
        run_workload(run.work)
        if not is_main:
            return
        if problem := run.work.summary().problem:
            exit_with(f"{problem}; nothing is measured", 1)
        with progress("videos", len(run.videos) + len(run.real)) as bar:
            results = run.measure(bar.advance)
        file_written = run.save(results)
        Console().print(results_table(results))
        typer.echo(file_written)
