"""Captioned clips in WebDataset shards, for training on many machines.

A shard is a tar file with `<number>.mp4` and `<number>.json` for each sample, a JSON object with
`key` and `caption`. Hugging Face datasets reads them: it distributes samples to nodes and can
resume within an epoch. The alternatives do not fit: litdata requires torchvision,
mosaicml-streaming an older transformers, and webdataset has no state.
"""

from __future__ import annotations

import glob
import io
import json
import math
import tarfile
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from demo_t2v.core.atomic_io import atomic_write, make_folder, path_exists
from demo_t2v.data.clips import BadVideos, CaptionedClip, ClipError, VideoClips
from demo_t2v.data.video import Sampling, VideoError, sample_video

if TYPE_CHECKING:
    from datasets import IterableDataset


def write_shards(clips: VideoClips, folder: Path, *, megabytes: float = 64, seed: int = 0) -> int:
    """Copy the videos and captions of `clips` to `folder/00000.tar` ...; returns their number.

    The videos are shuffled by `seed` and copied without encoding. A shard has at least `megabytes`,
    except the last one, and is in memory before it is written. The folder appears when it is
    complete. Missing videos are skipped and counted in `clips.bad`. Raises ClipError when the
    folder exists, too many videos are missing or `megabytes` is not positive, OSError.
    """
    if not 0 < megabytes < math.inf:
        raise ClipError(f"megabytes should be more than 0, not {megabytes:g}")
    if path_exists(folder):
        raise ClipError(f"{folder}: already exists; name a new folder, or delete it")
    make_folder(folder.parent)
    written = 0
    with atomic_write(folder) as partial:
        partial.mkdir()
        for shard, samples in enumerate(_shards(clips, seed, int(megabytes * 1e6))):
            with tarfile.open(partial / f"{shard:05d}.tar", "w") as tar:
                for video, text in samples:
                    # Numbers, since a key may have dots, which end a sample's name in a shard.
                    _add(tar, f"{written:09d}.mp4", video)
                    _add(tar, f"{written:09d}.json", text)
                    written += 1
        if not written:
            raise ClipError(f"{clips.bad.where}: no video is there: {clips.bad.examples()}")
    return written


def _shards(clips: VideoClips, seed: int, limit: int) -> Iterator[list[tuple[bytes, bytes]]]:
    """Samples shard by shard: a video and its JSON each, of at least `limit` bytes in total."""
    samples: list[tuple[bytes, bytes]] = []
    size = 0
    for row in np.random.default_rng(seed).permutation(len(clips)).tolist():
        clips.bad.tried += 1
        try:
            key, file, caption = clips.video(row)
            video = file.read_bytes()
        except (ClipError, OSError) as error:
            clips.bad.add(clips.name(row), error)
            continue
        text = json.dumps({"key": key, "caption": caption}, ensure_ascii=False)
        samples.append((video, text.encode("utf-8")))
        size += len(video)
        if size >= limit:
            yield samples
            samples, size = [], 0
    if samples:
        yield samples


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def shard_files(folder: Path) -> list[Path]:
    """The folder's shards in order. Raises ClipError when there are none."""
    files = sorted(folder.glob("*.tar"))
    if not files:
        raise ClipError(f"{folder}: has no shards, files that end in .tar")
    return files


class ShardedClips:
    """A stream of clips from shards, a folder or one file; iteration yields the rest of an epoch.

    `seed` and the epoch's number determine the order of an epoch and the start of each clip. Each
    of `world_size` nodes reads a part of the samples; if the number of shards is a multiple of
    `world_size`, it opens only its own shards. Parts may differ in length by a few clips: nodes
    that step together should continue with the next epoch instead of stopping.

    `threads` clips are decoded in parallel, a few in advance; `state_dict` counts only clips that
    were yielded. `Sampling` describes how clips are cut. Bad videos are skipped, counted and judged
    as in `VideoClips`. Nothing is downloaded. Raises ClipError for a folder without shards and for
    a damaged shard.
    """

    def __init__(
        self,
        shards: Path,
        *,
        frames: int = Sampling.frames,
        fps: float = Sampling.fps,
        resolution: int = Sampling.resolution,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        threads: int = 1,
        max_bad_share: float = 0.1,
        repeat_frames: bool = False,
    ) -> None:
        self.sampling = Sampling(frames, fps, resolution, repeat_frames)
        self.bad = BadVideos(str(shards), max_bad_share)
        self.epoch = 0
        self._seed, self._threads = seed, threads
        files = [shards] if shards.is_file() else shard_files(shards)
        self._stream = _open([str(file) for file in files], seed, rank, world_size)
        self._position: Mapping[str, Any] | None = None

    def __iter__(self) -> Iterator[CaptionedClip]:
        self._stream.set_epoch(self.epoch)
        if self._position is not None:
            self._stream.load_state_dict(dict(self._position))
        for clip, position in self._decoded():
            self._position = position
            if clip is not None:
                yield clip
        self.epoch, self._position = self.epoch + 1, None

    def state_dict(self) -> dict[str, Any]:
        """The position after the last clip that was yielded, as numbers and strings."""
        return {"epoch": self.epoch, "place": self._position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of a stream with the same shards, seed, rank and world size."""
        self.epoch, self._position = state["epoch"], state["place"]

    def _decoded(self) -> Iterator[tuple[CaptionedClip | None, dict[str, Any]]]:
        """Clips, None for a bad one, each with the position after it."""
        pending: deque[tuple[Mapping[str, Any], dict[str, Any], Future[Any]]] = deque()
        with ThreadPoolExecutor(self._threads) as pool:
            for sample in self._samples():
                cut = pool.submit(self._cut, sample, self.epoch)
                pending.append((sample, self._stream.state_dict(), cut))
                if len(pending) > 2 * self._threads:
                    yield self._finish(*pending.popleft())
            while pending:
                yield self._finish(*pending.popleft())

    def _samples(self) -> Iterator[Mapping[str, Any]]:
        try:
            yield from self._stream
        except tarfile.TarError as error:
            raise ClipError(f"{self.bad.where}: a shard is damaged ({error})") from None

    def _cut(self, sample: Mapping[str, Any], epoch: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        text, video = sample["json"], sample["mp4"]
        if not text or not text.get("caption") or not text.get("key"):
            raise ClipError("has no JSON with `key` and `caption`")
        if not video:
            raise ClipError("has no mp4")
        rng = np.random.default_rng([self._seed, epoch, zlib.crc32(text["key"].encode("utf-8"))])
        return sample_video(io.BytesIO(video), self.sampling, rng)

    def _finish(
        self, sample: Mapping[str, Any], position: dict[str, Any], cut: Future[Any]
    ) -> tuple[CaptionedClip | None, dict[str, Any]]:
        self.bad.tried += 1
        try:
            frames = cut.result()
        except (ClipError, VideoError, OSError) as error:
            self.bad.add(sample["__key__"], error)
            return None, position
        return CaptionedClip(frames, sample["json"]["caption"], sample["json"]["key"]), position


def _open(files: list[str], seed: int, rank: int, world_size: int) -> IterableDataset:
    """The node's samples with `__key__`, `json` and `mp4`; `seed` determines the shards' order."""
    try:
        from datasets import Features, Value, load_dataset
        from datasets.distributed import split_dataset_by_node
    except ModuleNotFoundError as error:
        raise ClipError(f"shards need {error.name}: pip install 'demo-t2v[train]'") from None
    text = Value("string")
    stream = load_dataset(
        "webdataset",
        data_files={"train": [glob.escape(file) for file in files]},
        split="train",
        streaming=True,
        features=Features(
            {"__key__": text, "json": {"key": text, "caption": text}, "mp4": Value("binary")}
        ),
    )
    # A buffer would be lost on resuming. `write_shards` has shuffled the samples.
    return split_dataset_by_node(stream.shuffle(seed, buffer_size=1), rank, world_size)
