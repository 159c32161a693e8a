"""The command `demo-t2v evaluate disentanglement`: contents times motions from one seed."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from demo_t2v.cli.options import takes_options
from demo_t2v.cli.terminal import one_line_errors, progress
from demo_t2v.config import ConfigError, InferenceConfig, load
from demo_t2v.config.inference import inference_options, video_settings
from demo_t2v.core.errors import UserError
from demo_t2v.core.imports import uncollected
from demo_t2v.evaluation.errors import EvaluationError

if TYPE_CHECKING:
    from rich.table import Table

    from demo_t2v.evaluation.sprites.disentanglement import Distances, Variant

_SET: Final = ("motion", "motion_prompt")
"""Options that the grid sets."""
_FIXED: Final = {"height", "width", "format", *_SET}
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
    variant: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE ...",
            help="Measure again with these options: motion_strength=2, model=sprites-base. "
            "Repeatable.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Report to write.")] = None,
    grid: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Picture to write.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Chart to write.")] = None,
    options: Mapping[str, Any],
) -> None:
    """Measure whether content stays when the motion changes, and motion when content changes."""
    with one_line_errors():
        from rich.console import Console

        from demo_t2v.checkpoints.resolve import resolve
        from demo_t2v.core.atomic_io import atomic_write
        from demo_t2v.evaluation.report import check_picture, check_writable

        for flag, picture in (("--grid", grid), ("--plot", plot)):
            if picture is not None:
                check_picture(flag, picture)
        if out is not None:
            check_writable(out)
        config: InferenceConfig = load(InferenceConfig, None, (), options)
        configs = {config.model: config} | {text: _load(text, options) for text in variant or ()}
        models = {name: resolve(each.model) for name, each in configs.items()}

        with uncollected():
            from demo_t2v.evaluation.sprites.disentanglement import (
                HANDLES,
                Variant,
                both_right_chart,
                measure_disentanglement,
                save_variants,
            )
            from demo_t2v.evaluation.sprites.disentanglement_picture import draw_grids
            from demo_t2v.inference.runner import Runner

        ways = sum(len(HANDLES) if model.has_motion else 1 for model in models.values())
        variants = []
        with progress("videos", ways * contents * motions) as bar:
            for name, model in models.items():
                try:
                    runner = Runner.load(model, configs[name])
                    grids = measure_disentanglement(runner, contents, motions, bar.advance)
                except UserError as error:
                    raise EvaluationError(f"{name}: {error}") from None
                settings = video_settings(runner.config) | {"seed": runner.config.seed}
                variants.append(Variant(name, model.name, model.fingerprint, settings, grids))
                if out is not None:  # after each, for a later one may fail
                    save_variants(variants, out)
        for file, draw in ((grid, draw_grids), (plot, both_right_chart)):
            if file is not None:
                with atomic_write(file) as partial:
                    draw(variants).save(partial, "PNG", optimize=True)
        console = Console()
        for each in variants:
            console.print(_table(each))


def _load(variant: str, options: Mapping[str, Any]) -> InferenceConfig:
    """The configuration of a variant: the flags' values, replaced by its own."""
    try:
        overrides = shlex.split(variant)
        config: InferenceConfig = load(InferenceConfig, None, overrides, options)
    except (ConfigError, ValueError) as error:
        raise ConfigError(f"--variant {variant}: {error}") from None
    for key in _SET:
        if getattr(config, key) is not None:
            raise ConfigError(f"--variant {variant}: the grid sets the motions; remove {key}")
    return config


def _table(variant: Variant) -> Table:
    from rich.table import Table

    grids = variant.grids
    table = Table("", *(grid.handle for grid in grids), title=variant.name)
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
