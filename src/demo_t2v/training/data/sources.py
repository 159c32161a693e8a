"""The clips of `train_dataset`: by video, as a stream, or in chunks for the feature cache."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

from demo_t2v.config import ConfigError
from demo_t2v.data.clips import (
    BadVideos,
    CaptionedClip,
    ClipError,
    ClipSource,
    SpriteClips,
    VideoClips,
)
from demo_t2v.data.shards import ShardedClips, shard_files
from demo_t2v.data.video import Sampling, VideoError
from demo_t2v.training.config import (
    CustomDataset,
    DenoiserTraining,
    ShardsDataset,
    SpritesDataset,
    WebvidDataset,
)

CHUNK: Final = 500
"""Clips in a chunk of the feature cache; a chunk of shards is one tar file."""


class Chunks(Protocol):
    """A data set's clips in chunks, which processes can encode in any order."""

    @property
    def total(self) -> int | None:
        """Number of clips to train on; None: all."""

    def __len__(self) -> int: ...

    def clips(self, number: int) -> Iterator[CaptionedClip]:
        """The clips of one chunk in the first epoch."""
        ...


@dataclass(frozen=True)
class CheckedClips:
    """A user's source with checks of its clips; `name` is for messages."""

    source: ClipSource
    name: str
    sampling: Sampling

    def __len__(self) -> int:
        return len(self.source)

    def clip(self, index: int, seed: int) -> CaptionedClip:
        """The source's clip. Raises ClipError for a bad video or wrong frames."""
        try:
            clip = self.source.clip(index, seed)
        except VideoError as error:
            raise ClipError(f"{self.name}: video {index} {error}") from None
        side = self.sampling.resolution
        shape = (self.sampling.frames, side, side, 3)
        if clip.frames.shape != shape or clip.frames.dtype != "uint8":
            raise ClipError(
                f"{self.name}: the frames of video {index} are {clip.frames.dtype} "
                f"{clip.frames.shape}, but should be uint8 {shape}"
            )
        return clip


@dataclass(frozen=True)
class SourceChunks:
    """Chunks of `CHUNK` videos, one clip per video.

    The last chunk of an endless source is full, so that its files can serve a larger training.
    """

    source: ClipSource
    seed: int
    endless: bool

    @property
    def total(self) -> int:
        return len(self.source)

    def __len__(self) -> int:
        return -(-self.total // CHUNK)

    def clips(self, number: int) -> Iterator[CaptionedClip]:
        """One clip per video; a bad video is replaced by another one."""
        first, last = number * CHUNK, (number + 1) * CHUNK
        for index in range(first, last if self.endless else min(last, self.total)):
            yield self.source.clip(index, epoch_seed(self.seed, 0))


class ShardChunks:
    """One chunk per tar file; bad videos are left out."""

    total: int | None = None

    def __init__(self, config: DenoiserTraining, dataset: ShardsDataset) -> None:
        self._files = shard_files(dataset.folder)
        self._config, self._dataset = config, dataset
        self._bad = BadVideos(str(dataset.folder), dataset.max_bad_share)

    def __len__(self) -> int:
        return len(self._files)

    def clips(self, number: int) -> Iterator[CaptionedClip]:
        """The clips of one file; `skipped` of each lists the bad videos before it."""
        stream = open_stream(self._config, self._dataset, self._files[number])
        stream.bad = self._bad
        reported = len(self._bad.reasons)
        for clip in stream:
            reasons = list(self._bad.reasons.items())[reported:]
            yield replace(clip, skipped=tuple(f"{key}: {reason}" for key, reason in reasons))
            reported += len(reasons)


def epoch_seed(seed: int, epoch: int) -> int:
    """The seed of the positions at which an epoch cuts the videos."""
    return int.from_bytes(hashlib.sha256(f"{seed}-{epoch}".encode()).digest()[:7], "big")


def open_source(
    config: DenoiserTraining, dataset: SpritesDataset | WebvidDataset | CustomDataset
) -> ClipSource:
    """The videos of a data set, with random access. Raises ClipError, ConfigError."""
    match dataset:
        case SpritesDataset():
            return SpriteClips(
                dataset.clips,
                seed=dataset.data_seed,
                resolution=config.resolution,
                frames=config.num_frames,
                emphasis=dataset.emphasis,
                poses=dataset.poses,
            )
        case WebvidDataset():
            return VideoClips(
                dataset.csv_path,
                dataset.video_dir,
                frames=config.num_frames,
                fps=dataset.sample_fps,
                resolution=config.resolution,
                path_column=dataset.path_column,
                caption_column=dataset.caption_column,
                max_bad_share=dataset.max_bad_share,
                repeat_frames=dataset.repeat_frames,
            )
        case CustomDataset():
            sampling = Sampling(
                config.num_frames, dataset.sample_fps, config.resolution, dataset.repeat_frames
            )
            return CheckedClips(_custom_source(dataset, sampling), dataset.source, sampling)


def open_stream(
    config: DenoiserTraining, dataset: ShardsDataset, shards: Path, rank: int = 0, world: int = 1
) -> ShardedClips:
    """The part of process `rank` of `world` of a folder of shards, or of one shard."""
    return ShardedClips(
        shards,
        frames=config.num_frames,
        fps=dataset.sample_fps,
        resolution=config.resolution,
        seed=dataset.data_seed,
        rank=rank,
        world_size=world,
        threads=dataset.threads,
        max_bad_share=dataset.max_bad_share,
        repeat_frames=dataset.repeat_frames,
    )


def open_chunks(config: DenoiserTraining) -> Chunks:
    """The data set in chunks. Raises ClipError, ConfigError."""
    dataset = config.train_dataset
    if isinstance(dataset, ShardsDataset):
        return ShardChunks(config, dataset)
    endless = isinstance(dataset, SpritesDataset)
    return SourceChunks(open_source(config, dataset), dataset.data_seed, endless)


def describe_clips(config: DenoiserTraining, chunks: Chunks) -> str:
    """A text that differs where the clips differ.

    It has the videos' names or sizes but not their content.
    """
    dataset = config.train_dataset
    facts: dict[str, Any] = dataset.model_dump(
        mode="json", exclude={"clips", "csv_path", "max_bad_share", "threads"}
    )
    if facts.get("repeat_frames") is False:
        del facts["repeat_frames"]  # caches from before this key stay valid
    match dataset:
        case WebvidDataset():
            facts["captions"] = hashlib.sha256(dataset.csv_path.read_bytes()).hexdigest()
        case ShardsDataset():
            files = shard_files(dataset.folder)
            facts["files"] = [(file.name, file.stat().st_size) for file in files]
        case CustomDataset():
            facts["videos"] = chunks.total
    return json.dumps([facts, config.resolution, config.num_frames], sort_keys=True)


def _custom_source(dataset: CustomDataset, sampling: Sampling) -> ClipSource:
    """Import the configured class and construct it. Raises ConfigError, ClipError."""
    module, _, name = dataset.source.partition(":")
    try:
        kind = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"train_dataset.class: {dataset.source}: there is no module {error.name}; install it, "
            "or put its folder into PYTHONPATH"
        ) from None
    except AttributeError:
        raise ConfigError(
            f"train_dataset.class: {dataset.source}: {module} has no {name}"
        ) from None
    try:
        source: ClipSource = kind(**dataset.args, sampling=sampling)
    except TypeError as error:
        raise ConfigError(
            f"train_dataset.args: {dataset.source} does not accept them: {error}"
        ) from None
    if not len(source):
        raise ClipError(f"{dataset.source}: has no videos")
    return source
