"""The command `demo-t2v evaluate disentanglement`: contents times motions from one seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from demo_t2v.cli.options import takes_options
from demo_t2v.cli.terminal import one_line_errors, progress
from demo_t2v.config import InferenceConfig, load
from demo_t2v.config.inference import inference_options, video_settings
from demo_t2v.core.imports import uncollected

if TYPE_CHECKING:
    from rich.table import Table

    from demo_t2v.evaluation.sprites.disentanglement import ContentMotionGrid, Distances

_FIXED: Final = {"height", "width", "format", "motion", "motion_prompt"}
"""Options of videos that the grid sets, or that make no difference to it."""


@takes_options(
    *("model", "lora_strength", "device", "seed"),
    *(
        key
        for key, (_, option) in inference_options().items()
        if option.shapes_video and key not in _FIXED
    ),
    batch_size=4,
)
def disentanglement(
    *,
    contents: Annotated[int, typer.Option(min=2, max=8, help="Things with backgrounds.")] = 4,
    motions: Annotated[int, typer.Option(min=2, max=8, help="Motions.")] = 4,
    out: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Report to write.")] = None,
    grid: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Picture to write.")] = None,
    options: Mapping[str, Any],
) -> None:
    """Measure whether content stays when the motion changes, and motion when content changes."""
    with one_line_errors():
        from rich.console import Console

        from demo_t2v.checkpoints.resolve import resolve
        from demo_t2v.core.atomic_io import atomic_write
        from demo_t2v.evaluation.report import check_picture, check_writable

        if grid is not None:
            check_picture("--grid", grid)
        if out is not None:
            check_writable(out)
        config: InferenceConfig = load(InferenceConfig, None, (), options)
        model = resolve(config.model)

        with uncollected():
            from demo_t2v.evaluation.sprites.disentanglement import (
                HANDLES,
                measure_disentanglement,
                save_grids,
            )
            from demo_t2v.evaluation.sprites.disentanglement_picture import draw_grids
            from demo_t2v.inference.runner import Runner

        runner = Runner.load(model, config)
        handles = HANDLES if model.has_motion else HANDLES[:1]
        with progress("videos", len(handles) * contents * motions) as bar:
            grids = measure_disentanglement(runner, contents, motions, bar.advance)
        if out is not None:
            settings = video_settings(runner.config) | {"seed": runner.config.seed}
            save_grids(grids, out, model.name, model.fingerprint, settings)
        if grid is not None:
            with atomic_write(grid) as partial:
                draw_grids(grids).save(partial, "PNG", optimize=True)
        Console().print(_table(grids, f"{model.name}: {contents} contents x {motions} motions"))


def _table(grids: Sequence[ContentMotionGrid], title: str) -> Table:
    from rich.table import Table

    table = Table("", *(grid.handle for grid in grids), title=title)
    for name in grids[0].right:
        table.add_row(f"{name} right", *(str(grid.right[name]) for grid in grids))
    table.add_row("both / (content x motion)", *(_number(g.relative_to_product) for g in grids))
    table.add_row("colours: same content / others", *(_ratio(grid.colours) for grid in grids))
    table.add_row("tracks: same motion / others", *(_ratio(grid.tracks) for grid in grids))
    return table


def _ratio(distances: Distances) -> str:
    return f"{distances.same:.3f} / {distances.other:.3f} = {_number(distances.ratio)}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
