"""Clips encoded once: their parts on disk, a file for each part of each chunk of clips.

A part that is not there yet, or that another configuration comes to need, is made without the
others being made again.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import random
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
from demo_t2v.data.clips import CaptionedClip, ClipError
from demo_t2v.training.config import DenoiserTraining
from demo_t2v.training.data.features import Encoder, needed_parts
from demo_t2v.training.data.sources import Chunks, clips_depend_on, open_chunks


class EncodedClips:
    """The encoded clips of a folder; files are mapped into memory, and read as they are needed.

    `names` are the parts in use and `total` the clips, None for all that the files hold.
    """

    def __init__(self, folder: Path, names: list[str], chunks: int, total: int | None) -> None:
        self._folder, self._names = folder, names
        counts = [_count(part_file(folder, number, "tokens")) for number in range(chunks)]
        self._ends = list(accumulate(counts))
        self._total = self._ends[-1] if total is None else min(total, self._ends[-1])
        if not self._total:
            raise ClipError(f"{folder}: no clip could be used")
        self._files: dict[tuple[int, str], Any] = {}
        self._captions: dict[int, list[str]] = {}

    def __len__(self) -> int:
        return self._total

    def __getitem__(self, index: int) -> tuple[str, dict[str, Tensor]]:
        """A clip's caption and parts, as they were kept."""
        if not 0 <= index < self._total:
            raise IndexError(f"there is no clip {index} of {self._total}")
        chunk = bisect.bisect_right(self._ends, index)
        row = index - (self._ends[chunk - 1] if chunk else 0)
        parts = {name: self._slice(chunk, name)[row] for name in self._names}
        return self._captions[chunk][row], parts

    def _slice(self, chunk: int, name: str) -> Any:
        if (chunk, name) not in self._files:
            with safe_open(part_file(self._folder, chunk, name), framework="pt") as stored:
                self._files[chunk, name] = stored.get_slice(name)
                if name == "tokens":
                    self._captions[chunk] = json.loads(stored.metadata()["captions"])
        return self._files[chunk, name]


def encode(
    config: DenoiserTraining, on_clip: Callable[[CaptionedClip], None] | None = None
) -> EncodedClips:
    """Make what is missing of `train_dataset` in the folder `latents`; returns all of it.

    An interrupted encoding goes on, and several processes may encode at once: each takes the
    chunks in an order of its own. `on_clip` hears of each clip that is encoded. Raises ConfigError
    when the folder holds what other clips or networks made, ClipError for bad clips.
    """
    if config.latents is None:
        raise ConfigError("latents: is missing, the folder in which encoded clips are kept")
    if config.encode_in_step:
        raise ConfigError("encode_in_step: the clips in latents are encoded before; leave one out")
    chunks, encoder = open_chunks(config), Encoder(needed_parts(config))
    clips = clips_depend_on(config, chunks)
    made_by = {
        name: hashlib.sha256(f"{clips} {part.depends_on}".encode()).hexdigest()[:16]
        for name, part in encoder.parts.items()
    }
    make_folder(config.latents)
    for number in range(len(chunks)):
        for name, made in made_by.items():
            _check(part_file(config.latents, number, name), made)
    for number in random.sample(range(len(chunks)), len(chunks)):
        missing = {
            n: m for n, m in made_by.items() if not part_file(config.latents, number, n).exists()
        }
        if missing:
            _encode(config.latents, number, chunks, encoder, missing, on_clip)
    return EncodedClips(config.latents, list(made_by), len(chunks), chunks.total)


def part_file(folder: Path, number: int, name: str) -> Path:
    """Where a part of a chunk is kept."""
    return folder / f"{number:05d}.{name}.safetensors"


def _encode(
    folder: Path,
    number: int,
    chunks: Chunks,
    encoder: Encoder,
    made_by: dict[str, str],
    on_clip: Callable[[CaptionedClip], None] | None,
) -> None:
    """Write the parts `made_by` of one chunk, each under a temporary name until it is whole."""
    captions: list[str] = []
    parts: dict[str, list[Tensor]] = {name: [] for name in made_by}
    for clip in chunks.clips(number):
        for name, part in encoder(clip, list(made_by)).items():
            parts[name].append(part)
        captions.append(clip.caption)
        if on_clip:
            on_clip(clip)
    for name, tensors in parts.items():
        words = {"made_by": made_by[name]}
        if name == "tokens":
            words["captions"] = json.dumps(captions)
        with atomic_write(part_file(folder, number, name)) as partial:
            together = torch.stack(tensors) if tensors else torch.empty(0)
            save_file({name: together}, partial, metadata=words)


def _check(file: Path, made_by: str) -> None:
    """Whether a file that is there was made from what the configuration names."""
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
