"""The commands `demo-t2v download` and `demo-t2v convert`: the published weights."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from demo_t2v.cli.terminal import one_line_errors

weights = typer.Typer()


class PublishedModel(StrEnum):
    """The models of the published weights."""

    base = "base"
    demo = "demo"


class Precision(StrEnum):
    """Precision of the written weights."""

    float32 = "float32"
    float16 = "float16"


@weights.command()
def download(
    model: Annotated[
        PublishedModel, typer.Argument(help="DEMO, or the base model alone.")
    ] = PublishedModel.demo,
) -> None:
    """Download the published weights into the hub's cache; resumes a partial download.

    Prints the files. `--model Ryan-PR/DEMO`, or the base model's repository, then loads them.
    """
    with one_line_errors():
        from demo_t2v.checkpoints.original.download import HUB_FILES, licences
        from demo_t2v.checkpoints.original.download import download as download_files

        files = HUB_FILES[model.value]
        for line in licences(files):
            typer.echo(line, err=True)
        for file in download_files(files):
            typer.echo(file)


@weights.command()
def convert(
    source: Annotated[Path, typer.Argument(help="Published files, or a model folder.")],
    out: Annotated[Path, typer.Argument(help="A new folder.")],
    dtype: Annotated[Precision | None, typer.Option(help="Default: that of SOURCE.")] = None,
    start_motion: Annotated[
        bool, typer.Option("--start-motion", help="Make a base model a DEMO to train.")
    ] = False,
    published: Annotated[
        bool,
        typer.Option("--published", help="Write the published .pth files instead."),
    ] = False,
    clip: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --published: open_clip_pytorch_model.bin."),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="With --published and a checkpoint: the model that its training started from.",
        ),
    ] = None,
) -> None:
    """Convert published files to a model folder, or a model folder to published files.

    SOURCE is a folder with the published .pth files, one of these files, or a folder of diffusers'
    text-to-video-ms-1.7b. With --published, it is a model folder, a training's log_dir or a
    checkpoint.
    """
    with one_line_errors():
        if published:
            from demo_t2v.checkpoints.original.exporter import export

            export(source, out, clip, base)
        else:
            from demo_t2v.checkpoints.original.importer import convert as convert_files

            convert_files(source, out, dtype.value if dtype else None, start_motion)
        typer.echo(out)
