"""A cache of features on disk: one file for each feature of each chunk of clips.

Missing files are computed; existing ones are not touched.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import random
import time
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from demo_t2v.config import ConfigError
from demo_t2v.core.atomic_io import atomic_write, make_folder
from demo_t2v.core.launch import local_rank
from demo_t2v.data.clips import CaptionedClip, ClipError
from demo_t2v.training.config import AnyTraining, DenoiserTraining
from demo_t2v.training.data.features import FeatureExtractor, required_features
from demo_t2v.training.data.sources import describe_clips, open_chunks
from demo_t2v.training.networks import check_config

POLL_SECONDS = 0.5
OnClip = Callable[[CaptionedClip], None]


class FeatureCache:
    """The cached clips of a folder; tensors are read from memory-mapped files on access.

    `names` are the features to read and `total` is the number of clips; None: all in the files.
    """

    def __init__(self, folder: Path, names: list[str], chunks: int, total: int | None) -> None:
        self._folder, self._names = folder, names
        counts = [_count(feature_file(folder, number, "tokens")) for number in range(chunks)]
        self._ends = list(accumulate(counts))
        self._total = self._ends[-1] if total is None else min(total, self._ends[-1])
        if not self._total:
            raise ClipError(f"{folder}: no clip could be used")
        self._slices: dict[tuple[int, str], Any] = {}
        self._captions: dict[int, list[str]] = {}

    def __len__(self) -> int:
        return self._total

    def __getitem__(self, index: int) -> tuple[str, dict[str, Tensor]]:
        """A clip's caption and its features by name, in the precision of the files."""
        if not 0 <= index < self._total:
            raise IndexError(f"there is no clip {index} of {self._total}")
        chunk = bisect.bisect_right(self._ends, index)
        row = index - (self._ends[chunk - 1] if chunk else 0)
        features = {name: self._slice(chunk, name)[row] for name in self._names}
        return self._captions[chunk][row], features

    def _slice(self, chunk: int, name: str) -> Any:
        if (chunk, name) not in self._slices:
            with safe_open(feature_file(self._folder, chunk, name), framework="pt") as stored:
                self._slices[chunk, name] = stored.get_slice(name)
                if name == "tokens":
                    self._captions[chunk] = json.loads(stored.metadata()["captions"])
        return self._slices[chunk, name]


class _Cache:
    """The files that a training needs in its folder `latents`.

    Raises ConfigError when files there were made from other clips or networks.
    """

    def __init__(self, config: DenoiserTraining) -> None:
        if config.latents is None:
            raise ConfigError("latents: is missing, the folder of the feature cache")
        check_config(config)
        if config.encode_in_step:
            raise ConfigError(
                "encode_in_step: the clips in latents are encoded before; leave one out"
            )
        self.folder = config.latents
        self.chunks = open_chunks(config)
        self.extractor = FeatureExtractor(required_features(config))
        clips = describe_clips(config, self.chunks)
        self.made_by = {
            name: hashlib.sha256(f"{clips} {feature.depends_on}".encode()).hexdigest()[:16]
            for name, feature in self.extractor.features.items()
        }
        for number in range(len(self.chunks)):
            for name, made_by in self.made_by.items():
                _check(feature_file(self.folder, number, name), made_by)

    def missing(self, number: int) -> list[str]:
        """The features of a chunk that have no file yet."""
        return [
            name for name in self.made_by if not feature_file(self.folder, number, name).exists()
        ]

    def encode(self, number: int, names: list[str], on_clip: OnClip | None) -> None:
        """Compute and write features of one chunk; each file is written atomically."""
        captions: list[str] = []
        rows: dict[str, list[Tensor]] = {name: [] for name in names}
        for clip in self.chunks.clips(number):
            for name, tensor in self.extractor(clip, names).items():
                rows[name].append(tensor)
            captions.append(clip.caption)
            if on_clip:
                on_clip(clip)
        for name, tensors in rows.items():
            metadata = {"made_by": self.made_by[name]}
            if name == "tokens":
                metadata["captions"] = json.dumps(captions)
            with atomic_write(feature_file(self.folder, number, name)) as partial:
                stacked = torch.stack(tensors) if tensors else torch.empty(0)
                save_file({name: stacked}, partial, metadata=metadata)

    def open(self) -> FeatureCache:
        return FeatureCache(self.folder, list(self.made_by), len(self.chunks), self.chunks.total)


def prepare(config: AnyTraining, on_clip: OnClip | None = None) -> None:
    """Encode what the feature cache of a denoiser's training lacks; other trainings need nothing.

    On each machine the first process encodes and the others wait. Raises as `encode_clips` does.
    """
    if not isinstance(config, DenoiserTraining) or config.latents is None:
        return
    if local_rank() == 0:
        encode_clips(config, on_clip)
        return
    cache = _Cache(config)
    for number in range(len(cache.chunks)):
        while cache.missing(number):  # no barrier: it would time out during a long encoding
            time.sleep(POLL_SECONDS)


def encode_clips(config: DenoiserTraining, on_clip: OnClip | None = None) -> FeatureCache:
    """Compute the missing features of `train_dataset` in the folder `latents`; returns the cache.

    An interrupted encoding continues. Several processes may encode at once: each has a random
    order of chunks. `on_clip` is called for each encoded clip. Raises ConfigError for a folder of
    other clips or networks, ClipError for bad clips.
    """
    cache = _Cache(config)
    make_folder(cache.folder)
    for number in random.sample(range(len(cache.chunks)), len(cache.chunks)):
        if missing := cache.missing(number):
            cache.encode(number, missing, on_clip)
    return cache.open()


def open_cache(config: DenoiserTraining) -> FeatureCache:
    """The complete cache of a training. Raises ConfigError if `encode_clips` must run first."""
    cache = _Cache(config)
    for number in range(len(cache.chunks)):
        if missing := cache.missing(number):
            raise ConfigError(
                f"{feature_file(cache.folder, number, missing[0])}: is missing; "
                "encode the clips with demo-t2v data encode"
            )
    return cache.open()


def feature_file(folder: Path, number: int, name: str) -> Path:
    """The file of one feature of chunk `number`."""
    return folder / f"{number:05d}.{name}.safetensors"


def _check(file: Path, made_by: str) -> None:
    """Raise ConfigError for an existing file with another fingerprint."""
    if not file.exists():
        return
    if _metadata(file).get("made_by") != made_by:
        raise ConfigError(
            f"{file}: made from other clips or another network than the configuration names; "
            f"delete {file.parent}, or name another folder in latents"
        )


def _metadata(file: Path) -> dict[str, str]:
    try:
        with safe_open(file, framework="pt") as stored:
            return stored.metadata() or {}
    except SafetensorError:
        raise ConfigError(f"{file}: is damaged; delete it") from None


def _count(file: Path) -> int:
    with safe_open(file, framework="pt") as stored:
        length: int = stored.get_slice("tokens").get_shape()[0]
        return length
