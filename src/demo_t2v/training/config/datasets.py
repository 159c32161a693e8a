"""Configuration of the data sets (`train_dataset`)."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from demo_t2v.config import Strict
from demo_t2v.config.yaml_text import AnyKeys, ExpandedPath
from demo_t2v.data.sprites import MOTIONS, THINGS


def _check_names(emphasis: dict[str, int]) -> dict[str, int]:
    known = *THINGS, *MOTIONS
    for name in emphasis:
        if name not in known:
            raise ValueError(f"there is no thing or motion {name!r}; there are {', '.join(known)}")
    return emphasis


class Dataset(Strict):
    """A source of captioned clips."""

    data_seed: int = Field(0, ge=0)
    """Seed of the clips: where in a video each begins. `seed` is for the weights, the noise and the
    order. For shards this seed sets the order too."""


class SpritesDataset(Dataset):
    """The sprite world, drawn on the fly."""

    type: Literal["sprites"]
    clips: Annotated[int, Field(ge=1)] = 16_000
    emphasis: Annotated[dict[str, Annotated[int, Field(ge=1)]], AfterValidator(_check_names)] = (
        Field(default_factory=dict)
    )
    """Relative frequency of a thing or a motion, by its name in `THINGS` or `MOTIONS`; others
    have 1."""
    poses: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Fraction of the clips that show a thing at any angle and without motion."""


class VideoDataset(Dataset):
    """Clips cut from videos."""

    sample_fps: Annotated[float, Field(gt=0)] = 3.0
    repeat_frames: bool = False
    """Whether a video with fewer frames than a clip repeats them evenly; else it counts as bad."""


class WebvidDataset(VideoDataset):
    """A caption CSV and a folder of videos; the defaults are the layout of WebVid-10M."""

    type: Literal["webvid"]
    csv_path: ExpandedPath
    video_dir: ExpandedPath
    path_column: str = "videoid"
    """Column of the path below `video_dir`, with or without `.mp4`; slashes join columns."""
    caption_column: str = "name"
    max_bad_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    """The training fails when a larger fraction of the videos is bad."""


class ShardsDataset(VideoDataset):
    """A folder of WebDataset tar files, as `demo-t2v data shards` writes them."""

    type: Literal["shards"]
    folder: ExpandedPath
    max_bad_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    threads: Annotated[int, Field(ge=1)] = 1
    """Clips decoded at a time."""


def _check_class_path(source: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", source):
        raise ValueError("should be package.module:Name")
    return source


class CustomDataset(VideoDataset):
    """A user's data-set class (docs/own_dataset.md)."""

    type: Literal["custom"]
    source: Annotated[str, Field(alias="class"), AfterValidator(_check_class_path)]
    """`package.module:Name`; it is called with `sampling` and the arguments in `args`."""
    args: AnyKeys = Field(default_factory=dict)


AnyDataset = Annotated[
    SpritesDataset | WebvidDataset | ShardsDataset | CustomDataset, Field(discriminator="type")
]
