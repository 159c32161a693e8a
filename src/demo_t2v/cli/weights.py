"""The commands for weights of others: `demo-t2v download` and `convert`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from demo_t2v.cli.terminal import one_line_errors

weights = typer.Typer()


class Which(StrEnum):
    """The published models."""

    base = "base"
    demo = "demo"


class Precision(StrEnum):
    """Of what is written."""

    float32 = "float32"
    float16 = "float16"


@weights.command()
def download(
    which: Annotated[Which, typer.Argument(help="DEMO, or the base model alone.")] = Which.demo,
) -> None:
    """Download the published weights into the hub's cache; goes on where it stopped.

    Prints the files. They are then the model `--model Ryan-PR/DEMO`, or the base model's name.
    """
    with one_line_errors():
        from demo_t2v.checkpoints.original.download import WANTED, licences
        from demo_t2v.checkpoints.original.download import download as run

        wanted = WANTED[which.value]
        for line in licences(wanted):
            typer.echo(line, err=True)
        for file in run(wanted):
            typer.echo(file)


@weights.command()
def convert(
    source: Annotated[Path, typer.Argument(help="Published files, or a folder of a model.")],
    out: Annotated[Path, typer.Argument(help="A new folder.")],
    dtype: Annotated[Precision | None, typer.Option(help="Default: as it is.")] = None,
    start_motion: Annotated[
        bool, typer.Option("--start-motion", help="Make a base model a DEMO to be trained.")
    ] = False,
    published: Annotated[
        bool, typer.Option("--published", help="The way back: write the published .pth files.")
    ] = False,
    clip: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="For the way back: open_clip_pytorch_model.bin."),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="For a checkpoint's way back: where training began."),
    ] = None,
) -> None:
    """Make a folder of this project's from published files, or published files from a folder.

    SOURCE is a folder with the published .pth files or one of them, a folder of diffusers'
    text-to-video-ms-1.7b, or, with --published, a model's folder, a training's log_dir or a
    checkpoint.
    """
    with one_line_errors():
        if published:
            from demo_t2v.checkpoints.original.exporter import export

            export(source, out, clip, base)
        else:
            from demo_t2v.checkpoints.original.importer import convert as run

            run(source, out, dtype.value if dtype else None, start_motion)
        typer.echo(out)
