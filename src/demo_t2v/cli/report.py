"""The command `demo-t2v evaluate report`: results side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from demo_t2v.cli.terminal import one_line_errors

if TYPE_CHECKING:
    from demo_t2v.evaluation.report import Report
    from demo_t2v.evaluation.results import Results


def report(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE.json...", help="What the other commands wrote to --out."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Folder for report.html, report.tex and report.md to write."
        ),
    ] = None,
    quote: Annotated[
        str | None,
        typer.Option(
            metavar="BENCHMARK",
            show_default="the results' protocol",
            help="Quote the paper's figures of msr-vtt, webvid-10m or vbench.",
        ),
    ] = None,
) -> None:
    """Compare models: tables, paired tests, and a page with plots and frames."""
    with one_line_errors():
        from demo_t2v.core.atomic_io import atomic_write, make_folder
        from demo_t2v.evaluation.comparison.page import as_page
        from demo_t2v.evaluation.comparison.published import read_published
        from demo_t2v.evaluation.comparison.sections import make_sections
        from demo_t2v.evaluation.comparison.text_tables import as_latex, as_markdown

        if out is not None:
            make_folder(out)
        results, scores = _read(files)
        sections = make_sections(results, scores, read_published(), quote)
        markdown = as_markdown(sections)
        if out is None:
            typer.echo(markdown, nl=False)
            return
        page = as_page(sections, list(results.values()))
        texts = {"report.html": page, "report.tex": as_latex(sections), "report.md": markdown}
        for name, text in texts.items():
            with atomic_write(out / name) as partial:
                partial.write_text(text, encoding="utf-8")
            typer.echo(out / name)


def _read(files: list[Path]) -> tuple[dict[Path, Results], dict[Path, Report]]:
    """The results and the sprite scores of the files."""
    from demo_t2v.evaluation.errors import EvaluationError
    from demo_t2v.evaluation.report import is_report, read_report
    from demo_t2v.evaluation.results import read_results

    results, scores = {}, {}
    for number, file in enumerate(files):
        if file in files[:number]:
            raise EvaluationError(f"{file}: is given twice")
        if is_report(file):
            scores[file] = read_report(file)
        else:
            results[file] = read_results(file)
    return results, scores
