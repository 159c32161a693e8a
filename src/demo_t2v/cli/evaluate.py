"""The commands `demo-t2v evaluate ...`: scores of a model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from demo_t2v.cli.disentanglement import disentanglement
from demo_t2v.cli.protocol import ProtocolGroup, protocol
from demo_t2v.cli.report import report
from demo_t2v.cli.sensitivity import sensitivity
from demo_t2v.cli.terminal import one_line_errors, progress
from demo_t2v.cli.vbench import vbench
from demo_t2v.core.imports import uncollected
from demo_t2v.evaluation.errors import EvaluationError

if TYPE_CHECKING:
    from rich.table import Table

    from demo_t2v.evaluation.report import Report
    from demo_t2v.evaluation.sprites.prompts import SpritePrompt

evaluate = typer.Typer(
    cls=ProtocolGroup,
    no_args_is_help=True,
    help="Measure models and videos: by a command, or by the name or file of a protocol.",
)
evaluate.command()(protocol)
evaluate.command()(sensitivity)
evaluate.command()(disentanglement)
evaluate.command()(report)
evaluate.add_typer(vbench, name="vbench")


@evaluate.command()
def sprites(
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FOLDER|HUB_ID", show_default="sprites", help="The model to score."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Report to write.")] = None,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FOLDER",
            show_default="sprites-base",
            help="Model to compare with; '' for none.",
        ),
    ] = None,
    trained: Annotated[int, typer.Option(min=0, help="Prompts of trained pairs.")] = 216,
    held_out: Annotated[int, typer.Option(min=0, help="Prompts of held-out pairs.")] = 108,
    videos: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Score these videos, made by any program."),
    ] = None,
    write_prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE.csv", help="Write ids and prompts for --videos, and end."),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(min=1, show_default="one for each CPU", help="Processes for --videos."),
    ] = None,
) -> None:
    """Count the videos that show the requested thing and motion."""
    with one_line_errors():
        from demo_t2v.evaluation.report import check_writable, save_report, tables
        from demo_t2v.evaluation.sprites.prompts import list_prompts
        from demo_t2v.evaluation.sprites.prompts import write_prompts as write

        for file in (out, write_prompts):
            if file is not None:
                check_writable(file)
        prompts = list_prompts(trained, held_out)
        if write_prompts is not None:
            write(prompts, write_prompts)
            typer.echo(write_prompts)
            return
        if videos is not None:
            if model is not None or base is not None:
                raise EvaluationError("--videos scores no model: remove --model and --base")
            report = _score_folder(videos, prompts, processes or os.cpu_count() or 1)
        else:
            report = _score_model(model or "sprites", base, trained, held_out)
        if out is not None:
            save_report(report, out)
        _print(tables(report))


def _score_folder(folder: Path, prompts: Sequence[SpritePrompt], processes: int) -> Report:
    from demo_t2v.evaluation.sprites.video_folder import score_folder

    with progress("videos", len(prompts)) as bar:
        report = score_folder(folder, prompts, processes=processes, on_video=bar.advance)
    missing = report.subjects[0].missing
    if missing:
        typer.echo(
            f"demo-t2v: {folder}: {len(missing)} of {len(prompts)} videos are missing, "
            f"the first is {missing[0]}",
            err=True,
        )
    return report


def _score_model(model: str, base: str | None, trained: int, held_out: int) -> Report:
    with uncollected():
        from demo_t2v.evaluation.sprites.benchmark import evaluate as run

    base = "sprites-base" if base is None else base
    with progress("videos", (trained + held_out) * (3 if base else 2)) as bar:
        return run(
            model,
            base=base or None,
            num_trained=trained,
            num_held_out=held_out,
            on_video=bar.advance,
        )


def _print(tables: Iterable[Table]) -> None:
    from rich.console import Console

    console = Console()
    for table in tables:
        console.print(table)


@evaluate.command()
def videos(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Videos made by any program.")],
    real: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Real videos to compare with.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Prompts by id, the file's name (default: manifest)."),
    ] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Frames of each video.")] = None,
    fps: Annotated[float | None, typer.Option(help="Frames a second of these.")] = None,
    resolution: Annotated[int | None, typer.Option(min=1, help="Their side in pixels.")] = None,
    clip: Annotated[
        str | None, typer.Option(metavar="FOLDER|HUB_ID", help="CLIP for CLIPSIM and consistency.")
    ] = None,
    raft: Annotated[
        Path | None, typer.Option(metavar="FILE", help="RAFT's weights from torchvision.")
    ] = None,
    inception: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Weights for FID, KID, Inception Score (torch-fidelity)."
        ),
    ] = None,
    i3d: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="TorchScript file for FVD. Loading it runs its code."),
    ] = None,
    videomae: Annotated[
        str | None, typer.Option(metavar="FOLDER|HUB_ID", help="VideoMAE model for FVD.")
    ] = None,
    image_frames: Annotated[
        int | None,
        typer.Option(
            min=1, help="Frames of each video for FID, KID, Inception Score (default: all)."
        ),
    ] = None,
    feature_cache: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Features that are computed once.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Results to write.")] = None,
) -> None:
    """Measure a folder of videos."""
    with one_line_errors():
        with uncollected():
            from demo_t2v.evaluation.all_metrics import make_metrics
            from demo_t2v.evaluation.distribution_metrics import Extractors
            from demo_t2v.evaluation.measurement import measure
            from demo_t2v.evaluation.report import check_writable
            from demo_t2v.evaluation.results import save_results
            from demo_t2v.evaluation.tables import results_table
            from demo_t2v.evaluation.video_files import ClipFormat, list_videos
            from demo_t2v.inference.jobs import read_prompts

        if out is not None:
            check_writable(out)
        form = ClipFormat(frames, fps, resolution)
        texts = {row[0]: row[1] for row in read_prompts(prompts)} if prompts else None
        files = list_videos(folder, texts)
        real_files = list_videos(real) if real else []
        settings: dict[str, Any] = {"frames": frames, "fps": fps, "resolution": resolution}
        made_by = {video.model for video in files}
        if len(made_by) == 1 and (fingerprint := made_by.pop()):
            settings["fingerprint"] = fingerprint
        extractors = Extractors(inception, i3d, videomae, feature_cache, image_frames)
        metrics, not_computed = make_metrics(
            with_real=bool(real_files), clip=clip, raft=raft, extractors=extractors
        )
        with progress("videos", len(files) + len(real_files)) as bar:
            results = measure(
                metrics,
                files,
                subject=str(folder),
                real=real_files,
                real_subject=str(real or ""),
                form=form,
                settings=settings,
                not_computed=not_computed,
                on_video=bar.advance,
            )
        if out is not None:
            save_results(results, out)
        _print([results_table(results)])
