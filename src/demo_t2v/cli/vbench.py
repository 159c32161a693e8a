"""The commands `demo-t2v evaluate vbench export` and `import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from demo_t2v.cli.terminal import one_line_errors, progress
from demo_t2v.core.imports import uncollected

vbench = typer.Typer(
    no_args_is_help=True, help="Measure videos with VBench, in an environment of its own."
)


@vbench.command("export")
def export_(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Videos and manifest of `demo-t2v generate`.")
    ],
    out: Annotated[Path, typer.Option(metavar="VBENCH_FOLDER", help="New folder for VBench.")],
    full_info: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="VBench_full_info.json, for its standard prompts (default: prompts of your own).",
        ),
    ] = None,
) -> None:
    """Name videos as VBench does, and print the commands that measure them."""
    with one_line_errors():
        with uncollected():
            from demo_t2v.evaluation.vbench.commands import vbench_commands
            from demo_t2v.evaluation.vbench.export import coverage_notes, export_videos
            from demo_t2v.evaluation.vbench.suite import PromptSuite

        suite = PromptSuite.read(full_info) if full_info else None
        with progress("videos", None) as bar:
            export = export_videos(folder, out, suite, bar.advance)
        for note in coverage_notes(export, suite) if suite else ():
            typer.echo(f"demo-t2v: {note}", err=True)
        typer.echo("\n".join(vbench_commands(export, out)))


@vbench.command("import")
def import_(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILES", help="VBench's *_eval_results.json.")
    ],
    out: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Results to write.")] = None,
    export: Annotated[
        Path | None,
        typer.Option(metavar="VBENCH_FOLDER", help="The exported folder: prompts, seeds, sizes."),
    ] = None,
    vbench_version: Annotated[
        str | None,
        typer.Option(metavar="VERSION", help="Version of VBench, which its files do not state."),
    ] = None,
) -> None:
    """Turn results of VBench into results of `demo-t2v evaluate`."""
    with one_line_errors():
        from rich.console import Console

        from demo_t2v.evaluation.report import check_writable
        from demo_t2v.evaluation.results import save_results
        from demo_t2v.evaluation.tables import results_table
        from demo_t2v.evaluation.vbench.export import read_export
        from demo_t2v.evaluation.vbench.scores import import_scores

        if out is not None:
            check_writable(out)
        results = import_scores(files, read_export(export) if export else None, vbench_version)
        if out is not None:
            save_results(results, out)
        Console().print(results_table(results))
