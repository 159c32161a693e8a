"""The same clips as WebDataset tar files, for many machines.

A shard is a tar file; sample after sample it holds `<number>.mp4` and `<number>.json`, an object
with `key` and `caption`. The reader stands on Hugging Face datasets, which deals samples out to
nodes and keeps a state from which a stream goes on in the middle of an epoch, and which gets on
with the packages that this project needs: litdata pulls torchvision in, mosaicml-streaming
wants an older transformers, and webdataset keeps no state.
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

from demo_t2v.core.atomic_io import atomic_write, make_folder, taken
from demo_t2v.data.clips import BadVideos, CaptionedClip, ClipError, VideoClips
from demo_t2v.data.video import Sampling, VideoError, sample_video

if TYPE_CHECKING:
    from datasets import IterableDataset


def write_shards(clips: VideoClips, folder: Path, *, megabytes: float = 64, seed: int = 0) -> int:
    """Copy the videos and captions of `clips` into `folder/00000.tar` ...; returns how many.

    The videos are shuffled by `seed` and copied as they are; a shard takes videos until it has
    `megabytes`, and is held in memory until then. The folder appears once all of it is written.
    Videos that are not there are left out and noted in `clips.bad`. Raises ClipError when the
    folder is there already, too many videos are missing or `megabytes` is not positive, OSError.
    """
    if not 0 < megabytes < math.inf:
        raise ClipError(f"megabytes should be more than 0, not {megabytes:g}")
    if taken(folder):
        raise ClipError(f"{folder}: is there already; name a new folder, or delete it")
    make_folder(folder.parent)
    written = 0
    with atomic_write(folder) as partial:
        partial.mkdir()
        for shard, samples in enumerate(_shards(clips, seed, int(megabytes * 1e6))):
            with tarfile.open(partial / f"{shard:05d}.tar", "w") as tar:
                for video, text in samples:
                    # Numbered, for a key may have dots, which end a sample's name in a shard.
                    _add(tar, f"{written:09d}.mp4", video)
                    _add(tar, f"{written:09d}.json", text)
                    written += 1
        if not written:
            raise ClipError(f"{clips.bad.where}: no video is there: {clips.bad.examples()}")
    return written


def _shards(clips: VideoClips, seed: int, limit: int) -> Iterator[list[tuple[bytes, bytes]]]:
    """Lists of samples, each a video and its JSON, that have at least `limit` bytes together."""
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
    """A stream of clips from shards, a folder or one file: iterating gives the rest of an epoch.

    Each epoch has an order of its own, which `seed` and the epoch's number settle, and so they do
    where in a video its clip begins. Of `world_size` nodes each sees its own part; where the
    shards can be divided evenly, each node opens only its own. Parts may differ in length by a
    few clips: nodes that step together should go on into the next epoch, not stop.

    `threads` clips are decoded at a time, a few ahead of what was asked for; `state_dict` knows
    only of those that were given out. How a clip is cut: `Sampling`. Bad videos are left out,
    counted and judged as in `VideoClips`. Nothing is ever downloaded. Raises ClipError for a
    folder without shards and for one that is damaged.
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
        self._place: Mapping[str, Any] | None = None

    def __iter__(self) -> Iterator[CaptionedClip]:
        self._stream.set_epoch(self.epoch)
        if self._place is not None:
            self._stream.load_state_dict(dict(self._place))
        for clip, place in self._decoded():
            self._place = place
            if clip is not None:
                yield clip
        self.epoch, self._place = self.epoch + 1, None

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is, behind the last clip that was given out: plain numbers and texts."""
        return {"epoch": self.epoch, "place": self._place}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of a stream with the same shards, seed, rank and world size."""
        self.epoch, self._place = state["epoch"], state["place"]

    def _decoded(self) -> Iterator[tuple[CaptionedClip | None, dict[str, Any]]]:
        """Clips, None for a bad one, each with the state behind it."""
        ahead: deque[tuple[Mapping[str, Any], dict[str, Any], Future[Any]]] = deque()
        with ThreadPoolExecutor(self._threads) as pool:
            for sample in self._samples():
                cut = pool.submit(self._cut, sample, self.epoch)
                ahead.append((sample, self._stream.state_dict(), cut))
                if len(ahead) > 2 * self._threads:
                    yield self._finish(*ahead.popleft())
            while ahead:
                yield self._finish(*ahead.popleft())

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
        self, sample: Mapping[str, Any], state: dict[str, Any], cut: Future[Any]
    ) -> tuple[CaptionedClip | None, dict[str, Any]]:
        self.bad.tried += 1
        try:
            frames = cut.result()
        except (ClipError, VideoError, OSError) as error:
            self.bad.add(sample["__key__"], error)
            return None, state
        return CaptionedClip(frames, sample["json"]["caption"], sample["json"]["key"]), state


def _open(files: list[str], seed: int, rank: int, world_size: int) -> IterableDataset:
    """The node's samples with `__key__`, `json` and `mp4`, their shards in an order by `seed`."""
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
    # A larger buffer would be lost on resuming. Samples were shuffled when they were written.
    return split_dataset_by_node(stream.shuffle(seed, buffer_size=1), rank, world_size)
