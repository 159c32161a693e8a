"""The commands for training data: `demo-t2v data sprites`, `shards` and `encode`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from demo_t2v.checkpoints.resolve import quieten_libraries
from demo_t2v.cli.terminal import one_line_errors, progress
from demo_t2v.config import ConfigError, load
from demo_t2v.core.imports import uncollected

if TYPE_CHECKING:
    from demo_t2v.data.clips import CaptionedClip

data = typer.Typer(no_args_is_help=True, help="Make and prepare training data.")


@data.command()
def sprites(
    clips: Annotated[int, typer.Option(min=1, help="Number of clips.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for captions.csv and videos/.")],
    seed: Annotated[int | None, typer.Option(min=0, help="Default: 0.")] = None,
    resolution: Annotated[
        int | None, typer.Option(min=1, help="Pixels a side. Default: 64.")
    ] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Default: 16.")] = None,
    fps: Annotated[int | None, typer.Option(min=1, help="Frames a second. Default: 3.")] = None,
) -> None:
    """Write clips of the sprite world as mp4 files with a caption CSV.

    Existing videos are not written again.
    """
    options = {"seed": seed, "resolution": resolution, "frames": frames, "fps": fps}
    with one_line_errors():
        from demo_t2v.data.clips import write_sprite_dataset

        with progress("clips", clips) as bar:
            captions = write_sprite_dataset(out, clips, **_given(options), on_clip=bar.advance)
        typer.echo(captions)


@data.command()
def shards(
    csv: Annotated[Path, typer.Option(metavar="FILE", help="The captions.")],
    videos: Annotated[Path, typer.Option(metavar="DIR", help="The folder of videos.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="New folder for the shards.")],
    path_column: Annotated[str | None, typer.Option(help="Default: videoid.")] = None,
    caption_column: Annotated[str | None, typer.Option(help="Default: name.")] = None,
    max_bad_share: Annotated[
        float | None, typer.Option(help="Largest fraction of bad videos. Default: 0.1.")
    ] = None,
    megabytes: Annotated[float | None, typer.Option(help="Size of a shard. Default: 64.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the order. Default: 0.")] = None,
) -> None:
    """Copy videos and captions into WebDataset tar files, in a random order."""
    columns = {"path_column": path_column, "caption_column": caption_column}
    with one_line_errors():
        from demo_t2v.data.clips import VideoClips
        from demo_t2v.data.shards import write_shards

        source = VideoClips(csv, videos, **_given(columns | {"max_bad_share": max_bad_share}))
        written = write_shards(source, out, **_given({"megabytes": megabytes, "seed": seed}))
        _print_skipped([f"{key}: {reason}" for key, reason in source.bad.reasons.items()])
        typer.echo(f"{written} videos", err=True)
        typer.echo(out)


@data.command()
def encode(
    config: Annotated[Path, typer.Option(metavar="FILE", help="A denoiser's training, as YAML.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", show_default=False)
    ] = None,
) -> None:
    """Compute the features of a training's clips and cache them in the folder `latents`.

    Continues an interrupted run; several may run at once.
    """
    with one_line_errors():
        from demo_t2v.training.config import AnyTraining, DenoiserTraining, find_models

        settings = find_models(load(AnyTraining, config, overrides or []))
        if not isinstance(settings, DenoiserTraining):
            raise ConfigError(f"{config}: task: only the clips of a denoiser can be encoded")
        with uncollected():
            from demo_t2v.training.data.feature_cache import encode_clips

        quieten_libraries()
        skipped: dict[str, None] = {}
        encoded = 0
        with progress("clips", None) as bar:

            def count(clip: CaptionedClip) -> None:
                nonlocal encoded
                encoded += 1
                skipped.update(dict.fromkeys(clip.skipped))
                bar.advance()

            clips = encode_clips(settings, count)
        _print_skipped(list(skipped))
        typer.echo(f"{len(clips)} clips, {encoded} of them encoded now", err=True)
        typer.echo(settings.latents)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """The options without None, for which the called function has the default."""
    return {name: value for name, value in options.items() if value is not None}


def _print_skipped(lines: list[str]) -> None:
    for line in lines:
        typer.echo(f"skipped {line}", err=True)
