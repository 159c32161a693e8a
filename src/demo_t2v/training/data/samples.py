"""What the denoiser's training sees of each sample: kept, computed now, or streamed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from demo_t2v.config import ConfigError
from demo_t2v.core.devices import own
from demo_t2v.core.launch import rank, world_size
from demo_t2v.data.clips import CaptionedClip, ClipError, ClipSource
from demo_t2v.data.shards import ShardedClips
from demo_t2v.training.config import AnyDataset, DenoiserTraining, ShardsDataset
from demo_t2v.training.data.feature_cache import EncodedClips, encode
from demo_t2v.training.data.features import Encoder, needed_parts
from demo_t2v.training.data.sources import epoch_seed, open_source, open_stream


@dataclass(frozen=True)
class Item:
    """One clip as the denoiser's training sees it; floating-point tensors are float32."""

    latents: Tensor | None
    """(C, F, h, w), scaled; None where the step makes them of `frames`."""
    caption: str
    tokens: Tensor
    """(L,) the caption's token ids, int64."""
    content: Tensor | None
    """(L, D) the content encoder's states; None where they are not kept."""
    flow: Tensor | None
    """(F-1, 2, h, w) optical flow from each frame to the next, in pixels of its own size; None
    where no loss needs it."""
    image: Tensor | None
    """(D,) CLIP's embedding of the middle frame; None where no loss needs it."""
    frames: Tensor | None = None
    """uint8 (F, H, W, 3), in the place of `latents`."""

    @classmethod
    def of(cls, caption: str, parts: Mapping[str, Tensor]) -> Item:
        """An item of an encoder's parts."""
        names = ("latents", "content", "flow", "image")
        floats = {name: parts[name].float() if name in parts else None for name in names}
        tokens, frames = parts["tokens"].long(), parts.get("frames")
        return cls(caption=caption, tokens=tokens, frames=frames, **floats)


class ItemSource(Protocol):
    """Gives the item of every sample of a run, and knows where it is."""

    def item(self, place: int) -> Item:
        """The item of sample `place`, counted from the run's beginning; always the same one."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What makes going on quick: plain numbers and texts, this process's own."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from such a state, of a run with as many processes."""
        ...


class Order:
    """The order of `count` clips: every epoch has each of them once, shuffled in its own way."""

    def __init__(self, seed: int, count: int) -> None:
        self._seed, self._count = seed, count
        self._epoch, self._clips = -1, np.empty(0, dtype=np.int64)

    def __call__(self, place: int) -> tuple[int, int]:
        """The epoch and the clip of sample `place`."""
        epoch, rank = divmod(place, self._count)
        if epoch != self._epoch:
            rng = np.random.default_rng([self._seed, epoch])
            self._epoch, self._clips = epoch, rng.permutation(self._count)
        return epoch, int(self._clips[rank])


class _Stateless:
    """A source whose items can be asked for in any order has nothing to remember."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


class EncodedItems(_Stateless):
    """Items of encoded clips."""

    def __init__(self, clips: EncodedClips, seed: int) -> None:
        self._clips, self._order = clips, Order(seed, len(clips))

    def item(self, place: int) -> Item:
        """The item of sample `place`."""
        return Item.of(*self._clips[self._order(place)[1]])


class ComputedItems(_Stateless):
    """Items that are computed whenever they are asked for.

    Every epoch cuts each video anew; the first one's items are those that would be kept.
    """

    def __init__(self, source: ClipSource, encoder: Encoder, seed: int, data_seed: int) -> None:
        self._source, self._encoder, self._data_seed = source, encoder, data_seed
        self._order = Order(seed, len(source))

    def item(self, place: int) -> Item:
        """The item of sample `place`."""
        epoch, index = self._order(place)
        return compute(self._encoder, self._source.clip(index, epoch_seed(self._data_seed, epoch)))


class StreamedItems:
    """Items of a stream of shards, of which process `rank` of `world` has a part of its own.

    It should ask for places that rise: rank, rank + world, rank + 2 * world, ... What lies before
    the first place is passed over, which takes its time; with a `state_dict` it takes none.
    """

    def __init__(self, stream: ShardedClips, encoder: Encoder, world: int) -> None:
        self._stream, self._encoder, self._world = stream, encoder, world
        self._beginning = stream.state_dict()
        self._given = 0
        self._clips: Iterator[CaptionedClip] = iter(())
        self._last: tuple[int, Item] | None = None

    def item(self, place: int) -> Item:
        """The item of sample `place`."""
        wanted = place // self._world
        if self._last is not None and self._last[0] == wanted:
            return self._last[1]
        if wanted < self._given:
            self.load_state_dict({"given": 0, "stream": self._beginning})
        while self._given < wanted:
            self._next()
        item = compute(self._encoder, self._next())
        self._last = wanted, item
        return item

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is, behind the last item that was given out."""
        return {"given": self._given, "stream": self._stream.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from such a state."""
        self._clips, self._last = iter(()), None
        self._given = state["given"]
        self._stream.load_state_dict(state["stream"])

    def _next(self) -> CaptionedClip:
        """The stream's next clip; epoch follows upon epoch."""
        clip = next(self._clips, None)
        for _ in range(2):  # what is left of one epoch may be nothing, the next one is whole
            if clip is None:
                self._clips = iter(self._stream)
                clip = next(self._clips, None)
        if clip is None:
            raise ClipError(f"{self._stream.bad.where}: no clip could be used")
        self._given += 1
        return clip


def open_items(config: DenoiserTraining) -> ItemSource:
    """The items of a training; what is to be kept and is not there yet is made first.

    Raises ConfigError and ClipError, each with one line for a person.
    """
    if config.latents is not None:
        return EncodedItems(encode(config), config.seed)
    dataset, encoder = config.train_dataset, Encoder(needed_parts(config))
    if config.num_workers:
        _check_workers(dataset, encoder)
    if isinstance(dataset, ShardsDataset):
        world = world_size()
        if config.batch_size % world:
            raise ConfigError(
                f"batch_size: {config.batch_size} is no multiple of {world} processes, and shards "
                "are streamed to each alike"
            )
        stream = open_stream(config, dataset, dataset.folder, rank(), world)
        return StreamedItems(stream, encoder, world)
    source = open_source(config, dataset)
    return ComputedItems(source, encoder, config.seed, dataset.data_seed)


def _check_workers(dataset: AnyDataset, encoder: Encoder) -> None:
    """Raise ConfigError for what only the training process itself can make."""
    if isinstance(dataset, ShardsDataset):
        raise ConfigError(
            "num_workers: a stream of shards has one reader a process; write 0, and "
            "train_dataset.threads for more"
        )
    on_gpu = [name for name in encoder.parts if name not in ("frames", "tokens")]
    if on_gpu and own() != "cpu":
        raise ConfigError(
            f"num_workers: workers cannot use the GPU, which computes {', '.join(on_gpu)}; write "
            "encode_in_step: true for latents, or keep all of them in a folder, latents"
        )


def compute(encoder: Encoder, clip: CaptionedClip) -> Item:
    """A clip's item, computed now."""
    return Item.of(clip.caption, encoder(clip, list(encoder.parts)))
