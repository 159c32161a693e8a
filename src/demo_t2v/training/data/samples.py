"""The denoiser's training samples: from the feature cache, computed on access, or streamed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from demo_t2v.config import ConfigError
from demo_t2v.core.devices import process_device
from demo_t2v.core.launch import rank, world_size
from demo_t2v.data.clips import CaptionedClip, ClipError, ClipSource
from demo_t2v.data.shards import ShardedClips
from demo_t2v.training.config import AnyDataset, DenoiserTraining, ShardsDataset
from demo_t2v.training.data.feature_cache import FeatureCache, open_cache
from demo_t2v.training.data.features import FeatureExtractor, required_features
from demo_t2v.training.data.sources import epoch_seed, open_source, open_stream


@dataclass(frozen=True)
class Sample:
    """The features of one clip; floating-point tensors are float32."""

    latents: Tensor | None
    """(C, F, h, w), scaled; None where the step encodes `frames`."""
    caption: str
    tokens: Tensor
    """(L,) the caption's token ids, int64."""
    content: Tensor | None
    """(L, D) the content encoder's states; None where they are not cached."""
    flow: Tensor | None
    """(F-1, 2, h, w) optical flow from each frame to the next, in pixels of its own size; None
    where no loss needs it."""
    image: Tensor | None
    """(D,) CLIP's embedding of the middle frame; None where no loss needs it."""
    frames: Tensor | None = None
    """uint8 (F, H, W, 3), instead of `latents`."""

    @classmethod
    def of(cls, caption: str, features: Mapping[str, Tensor]) -> Sample:
        """A sample from an extractor's features."""
        names = ("latents", "content", "flow", "image")
        floats = {name: features[name].float() if name in features else None for name in names}
        tokens, frames = features["tokens"].long(), features.get("frames")
        return cls(caption=caption, tokens=tokens, frames=frames, **floats)


class SampleSource(Protocol):
    """The samples of a run by their numbers, with a state for checkpoints."""

    def sample(self, number: int) -> Sample:
        """Sample `number`, counted from the beginning of the run; the same one in every call."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The position of this process, as plain numbers and strings for JSON."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state of a run with as many processes."""
        ...


class EpochOrder:
    """The order of `count` clips: every epoch is another permutation."""

    def __init__(self, seed: int, count: int) -> None:
        self._seed, self._count = seed, count
        self._epoch, self._clips = -1, np.empty(0, dtype=np.int64)

    def __call__(self, number: int) -> tuple[int, int]:
        """The epoch and the clip of sample `number`."""
        epoch, position = divmod(number, self._count)
        if epoch != self._epoch:
            rng = np.random.default_rng([self._seed, epoch])
            self._epoch, self._clips = epoch, rng.permutation(self._count)
        return epoch, int(self._clips[position])


class _Stateless:
    """A source with random access has no state."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


class CachedSamples(_Stateless):
    """Samples from the feature cache."""

    def __init__(self, cache: FeatureCache, seed: int) -> None:
        self._cache, self._order = cache, EpochOrder(seed, len(cache))

    def sample(self, number: int) -> Sample:
        """Sample `number`."""
        return Sample.of(*self._cache[self._order(number)[1]])


class ComputedSamples(_Stateless):
    """Samples whose features are computed on access.

    Every epoch cuts other clips from the videos; those of the first epoch are the cache's.
    """

    def __init__(
        self, source: ClipSource, extractor: FeatureExtractor, seed: int, data_seed: int
    ) -> None:
        self._source, self._extractor, self._data_seed = source, extractor, data_seed
        self._order = EpochOrder(seed, len(source))

    def sample(self, number: int) -> Sample:
        """Sample `number`."""
        epoch, index = self._order(number)
        clip = self._source.clip(index, epoch_seed(self._data_seed, epoch))
        return _extract(self._extractor, clip)


class StreamedSamples:
    """Samples of one process's part of a stream of shards; `world` is the number of processes.

    Numbers should rise: rank, rank + world, rank + 2 * world, ... Samples before the first number
    are read and skipped, unless a state was loaded.
    """

    def __init__(self, stream: ShardedClips, extractor: FeatureExtractor, world: int) -> None:
        self._stream, self._extractor, self._world = stream, extractor, world
        self._beginning = stream.state_dict()
        self._given = 0
        self._clips: Iterator[CaptionedClip] = iter(())
        self._last: tuple[int, Sample] | None = None

    def sample(self, number: int) -> Sample:
        """Sample `number`."""
        index = number // self._world
        if self._last is not None and self._last[0] == index:
            return self._last[1]
        if index < self._given:
            self.load_state_dict({"given": 0, "stream": self._beginning})
        while self._given < index:
            self._next()
        sample = _extract(self._extractor, self._next())
        self._last = index, sample
        return sample

    def state_dict(self) -> dict[str, Any]:
        """The position after the last sample."""
        return {"given": self._given, "stream": self._stream.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state."""
        self._clips, self._last = iter(()), None
        self._given = state_dict["given"]
        self._stream.load_state_dict(state_dict["stream"])

    def _next(self) -> CaptionedClip:
        """The stream's next clip, across the end of an epoch."""
        clip = next(self._clips, None)
        for _ in range(2):  # the rest of the first epoch may be empty
            if clip is None:
                self._clips = iter(self._stream)
                clip = next(self._clips, None)
        if clip is None:
            raise ClipError(f"{self._stream.bad.where}: no clip could be used")
        self._given += 1
        return clip


def open_samples(config: DenoiserTraining) -> SampleSource:
    """The samples of a training. A feature cache must be complete (`feature_cache.prepare`).

    Raises ConfigError and ClipError.
    """
    if config.latents is not None:
        return CachedSamples(open_cache(config), config.seed)
    dataset, extractor = config.train_dataset, FeatureExtractor(required_features(config))
    if config.num_workers:
        _check_workers(dataset, extractor)
    if isinstance(dataset, ShardsDataset):
        world = world_size()
        if config.batch_size % world:
            raise ConfigError(
                f"batch_size: {config.batch_size} is no multiple of {world} processes, and each "
                "process reads as many samples from the shards"
            )
        stream = open_stream(config, dataset, dataset.folder, rank(), world)
        return StreamedSamples(stream, extractor, world)
    source = open_source(config, dataset)
    return ComputedSamples(source, extractor, config.seed, dataset.data_seed)


def _check_workers(dataset: AnyDataset, extractor: FeatureExtractor) -> None:
    """Raise ConfigError for what worker processes cannot compute."""
    if isinstance(dataset, ShardsDataset):
        raise ConfigError(
            "num_workers: a stream of shards has one reader a process; write 0, and "
            "train_dataset.threads for more"
        )
    on_gpu = [name for name in extractor.features if name not in ("frames", "tokens")]
    if on_gpu and process_device() != "cpu":
        raise ConfigError(
            f"num_workers: workers cannot use the GPU, which computes {', '.join(on_gpu)}; write "
            "encode_in_step: true for latents, or cache all of them in a folder, latents"
        )


def _extract(extractor: FeatureExtractor, clip: CaptionedClip) -> Sample:
    return Sample.of(clip.caption, extractor(clip, list(extractor.features)))
