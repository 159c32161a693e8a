"""The commands `demo-t2v evaluate ...`: scores of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from demo_t2v.cli.terminal import one_line_errors, progress
from demo_t2v.core.imports import uncollected

evaluate = typer.Typer(no_args_is_help=True, help="Measure models and videos.")


@evaluate.command()
def sprites(
    model: Annotated[
        str, typer.Option(metavar="NAME|FOLDER|HUB_ID", help="The model to score.")
    ] = "sprites",
    out: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Report to write.")] = None,
    base: Annotated[
        str, typer.Option(metavar="NAME|FOLDER", help="Model to compare with; '' for none.")
    ] = "sprites-base",
    trained: Annotated[int, typer.Option(min=0, help="Prompts of trained pairs.")] = 216,
    held_out: Annotated[int, typer.Option(min=0, help="Prompts of held-out pairs.")] = 108,
) -> None:
    """Count the videos that show the requested thing and motion."""
    with one_line_errors():
        from rich.console import Console

        with uncollected():
            from demo_t2v.evaluation.report import check_writable, save_report, tables
            from demo_t2v.evaluation.sprites.benchmark import evaluate as run

        if out is not None:
            check_writable(out)
        videos = (trained + held_out) * (3 if base else 2)
        with progress("videos", videos) as bar:
            report = run(
                model,
                base=base or None,
                num_trained=trained,
                num_held_out=held_out,
                on_video=bar.advance,
            )
        if out is not None:
            save_report(report, out)
        console = Console()
        for table in tables(report):
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
        from rich.console import Console

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
        settings = {"frames": frames, "fps": fps, "resolution": resolution}
        form = ClipFormat(frames, fps, resolution)
        texts = {row[0]: row[1] for row in read_prompts(prompts)} if prompts else None
        files = list_videos(folder, texts)
        real_files = list_videos(real) if real else []
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
        Console().print(results_table(results))
