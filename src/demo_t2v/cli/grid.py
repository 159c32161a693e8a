"""`demo-t2v grid`: each content prompt with each motion prompt, and one video of all."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Final

import typer

from demo_t2v.cli.generate import make_videos
from demo_t2v.cli.options import AsJson, ConfigFile, Overwrite, takes_options
from demo_t2v.cli.terminal import one_line_errors
from demo_t2v.config import InferenceConfig, load
from demo_t2v.config.inference import inference_options
from demo_t2v.inference.grid import Grid, check_grid, read_grid
from demo_t2v.inference.workload import Workload

_REPLACED: Final = {
    "infer_dataset.csv_path",
    "infer_dataset.repeat_times",
    "motion",
    "motion_prompt",
}
"""Options of `generate` in whose place a grid has its own."""


@takes_options(*(key for key in inference_options() if key not in _REPLACED))
def grid(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", show_default=False)
    ] = None,
    *,
    content: Annotated[
        list[str],
        typer.Option(metavar="FILE|TEXT", help="Columns: a file of prompts, or one. Repeatable."),
    ],
    motion: Annotated[
        list[str],
        typer.Option(
            metavar="FILE|TEXT", help="Rows: a file of motion prompts, or one. Repeatable."
        ),
    ],
    config: ConfigFile = None,
    options: Mapping[str, Any],
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Combine each content prompt with each motion prompt, and show all videos in one.

    What is in the output folder already is not made again.
    """
    with one_line_errors():
        settings: InferenceConfig = load(InferenceConfig, config, overrides or [], options)
        videos = read_grid(content, motion)
        check_grid(settings)
        work = Workload.prepare(settings, videos.jobs(settings.seed), overwrite)
        make_videos(work, as_json, partial(_write_sheet, videos, work))


def _write_sheet(grid: Grid, work: Workload) -> dict[str, str]:
    """Write the contact sheet beside the videos."""
    from demo_t2v.evaluation.video_grid import write_sheet  # FFmpeg loads slowly

    return {"grid": str(write_sheet(grid, work.folder, work.jobs))}
