"""Motion words: a motion learned from clips, written as `<name>` in motion prompts.

As in textual inversion (arXiv 2208.01618), a word is a few learned vectors at the input of a frozen
text encoder. Only DEMO's motion encoder (arXiv 2410.24219) reads them, so the word says how a thing
moves, and the content prompt says what it is. `training.tasks.motion_word` learns the vectors.

The file is safetensors with `vectors` (K, D) and `null_state` (D,), and in the metadata the name,
the width D, the number of vectors K and the version of the format.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from demo_t2v.core.atomic_io import atomic_write
from demo_t2v.core.errors import UserError
from demo_t2v.core.weight_files import find_weight_file

if TYPE_CHECKING:
    from torch import Tensor

    from demo_t2v.conditioning.timeline import MotionPrompt
    from demo_t2v.models.text import TextConditioner

WEIGHT_NAME: Final = "motion_word.safetensors"
"""The file's name in a folder or a hub repository."""
MAX_BYTES: Final = 200_000
MAX_NAME: Final = 64
_VERSION_KEY: Final = "motion_word_version"
_VERSION: Final = "1"
_NAME: Final = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_IN_TEXT: Final = re.compile(rf"<({_NAME.pattern})>", re.ASCII)
_MIN_COSINE: Final = 0.99
"""Of the empty text's states: rounding to bfloat16 keeps it above, another model is below."""


class MotionWordError(UserError):
    """A motion word that cannot be learned, loaded or used; the message is one line."""


@dataclass(frozen=True)
class MotionWord:
    """A learned motion.

    Raises MotionWordError for a bad name, and for tensors of other shapes or that are not finite.
    """

    name: str
    vectors: Tensor
    """(K, D), float32: the tokens' vectors that the motion encoder reads in place of `<name>`."""
    null_state: Tensor
    """(D,): the motion encoder's [eot] state of the empty text, by which its model is known."""

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.vectors.ndim != 2 or not self.vectors.numel():
            raise MotionWordError(
                f"motion word {self.name}: has vectors of shape {tuple(self.vectors.shape)}; "
                "it should be (K, D)"
            )
        width = self.vectors.shape[1]
        if self.null_state.shape != (width,):
            raise MotionWordError(f"motion word {self.name}: its two tensors differ in width")
        if not (self.vectors.isfinite().all() and self.null_state.isfinite().all()):
            raise MotionWordError(f"motion word {self.name}: has numbers that are not finite")

    def save(self, file: Path) -> None:
        """Write the word; the file appears when it is complete. Raises OSError."""
        from safetensors.torch import save_file

        count, width = self.vectors.shape
        metadata = {"format": "pt", _VERSION_KEY: _VERSION, "name": self.name}
        metadata |= {"width": str(width), "num_vectors": str(count)}
        tensors = {"vectors": self.vectors, "null_state": self.null_state}
        tensors = {key: tensor.detach().float().cpu() for key, tensor in tensors.items()}
        with atomic_write(file) as partial:
            save_file(tensors, partial, metadata)

    @classmethod
    def read(cls, source: str | Path, weight_name: str = WEIGHT_NAME) -> Self:
        """The word in a file, or in a folder or hub repository that has `weight_name`.

        Only safetensors of at most 200 kB are read. Raises MotionWordError for another file,
        ConnectionError if the hub does not answer.
        """
        from safetensors import SafetensorError, safe_open

        file = word_file(source, weight_name)
        wrong = MotionWordError(f"{file}: is no complete safetensors file of a motion word")
        if file.stat().st_size > MAX_BYTES:
            raise MotionWordError(f"{file}: is larger than {MAX_BYTES // 1000} kB; no motion word")
        try:
            with safe_open(file, framework="pt") as stored:
                metadata = stored.metadata() or {}
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError):
            raise wrong from None
        if tensors.keys() != {"vectors", "null_state"} or _VERSION_KEY not in metadata:
            raise wrong
        if (version := metadata[_VERSION_KEY]) != _VERSION:
            raise MotionWordError(f"{file}: has format {version}; this program reads {_VERSION}")
        try:
            return cls(metadata.get("name", ""), tensors["vectors"], tensors["null_state"])
        except MotionWordError as error:
            raise MotionWordError(f"{file}: {error}") from None


def word_file(source: str | Path, weight_name: str = WEIGHT_NAME) -> Path:
    """The file of a motion word, from a file, a folder or a hub repository.

    Raises MotionWordError where there is none, ConnectionError if the hub does not answer.
    """
    return find_weight_file(source, weight_name, "motion word", MotionWordError)


def check_name(name: str) -> None:
    """Raise MotionWordError unless the name has letters, digits, - and _ only."""
    if not _NAME.fullmatch(name) or len(name) > MAX_NAME:
        raise MotionWordError(
            f"motion word {name[:MAX_NAME]!r}: write a name of 1 to {MAX_NAME} letters a-z, "
            "digits, - and _"
        )


def check_content_prompt(text: str, names: Collection[str]) -> None:
    """Raise MotionWordError for a prompt of the content encoder with one of the words `names`."""
    for name in _words(text):
        if name in names:
            raise MotionWordError(
                f"prompt {text[:60]!r}: the content encoder does not read the motion word <{name}>;"
                " write it in a motion prompt"
            )


def check_motion_prompt(text: str, names: Collection[str]) -> None:
    """Raise MotionWordError for `<...>` that is none of the loaded words `names`.

    Without a loaded word, `<...>` is ordinary text.
    """
    for name in _words(text) if names else ():
        if name not in names:
            loaded = ", ".join(f"<{each}>" for each in names)
            raise MotionWordError(
                f"motion prompt {text[:60]!r}: <{name}> is no loaded motion word; there is {loaded}"
            )


def check_words(
    contents: Iterable[str], motions: Iterable[MotionPrompt], names: Collection[str]
) -> None:
    """`check_content_prompt` and `check_motion_prompt` of all texts. Raises MotionWordError."""
    for content in contents:
        check_content_prompt(content, names)
    for motion in motions:
        for text in _texts(motion):
            check_motion_prompt(text, names)


def _texts(motion: MotionPrompt) -> Iterator[str]:
    """The texts of a motion prompt, a blend or a timeline."""
    if isinstance(motion, str):
        yield motion
    else:
        for part in motion.prompts:
            yield from _texts(part)


def _words(text: str) -> Iterator[str]:
    """The names in `<name>` of a text."""
    yield from _IN_TEXT.findall(text)


def null_state(encode: TextConditioner) -> Tensor:
    """The motion encoder's [eot] state (D,) of the empty text, which identifies its model."""
    import torch

    ids = encode.tokens([""])
    with torch.no_grad():
        states = encode.motion_states(ids)
    return states[0, encode.eot_index(ids)[0]].float().cpu()


class MotionWordMixin:
    """Motion words of a pipeline, in the manner of diffusers' `load_textual_inversion`."""

    motion_words: dict[str, Tensor]
    """The vectors (K, D) of each loaded word, by name."""

    def load_motion_word(
        self, source: str | Path, name: str | None = None, weight_name: str = WEIGHT_NAME
    ) -> None:
        """Load a motion word; motion prompts then read `<name>` (default: the word's own name).

        `source` is a file, or a folder or a hub repository with `weight_name`. Raises
        MotionWordError, without changing the pipeline, for a model without a motion branch, a file
        that is no motion word, a word of another model and a name in use; ConnectionError if the
        hub does not answer.
        """
        encode = self.text_conditioner()
        if encode.motion_encoder is None:
            raise MotionWordError(f"{source}: this model has no motion branch to read motion words")
        word = MotionWord.read(source, weight_name)
        name = word.name if name is None else name
        check_name(name)
        if name in self.motion_words:
            raise MotionWordError(f"{source}: <{name}> is loaded already; give another name")
        _check_model(word, encode, source)
        self.motion_words[name] = word.vectors

    def unload_motion_words(self, names: Sequence[str] | None = None) -> None:
        """Forget the words (default: all). Raises KeyError for a name that is not loaded."""
        for name in list(self.motion_words) if names is None else names:
            del self.motion_words[name]

    def text_conditioner(self) -> TextConditioner:
        """The encoders of this pipeline with its motion words."""
        from demo_t2v.models.text import TextConditioner

        pipeline: Any = self  # the mixin's type lacks the components
        return TextConditioner(
            pipeline.tokenizer,
            pipeline.content_encoder,
            pipeline.motion_encoder,
            pipeline._execution_device,
            self.motion_words,
        )


def _check_model(word: MotionWord, encode: TextConditioner, source: str | Path) -> None:
    """Raise MotionWordError for a word that was learned with another motion encoder."""
    import torch

    own = null_state(encode)
    if own.shape != word.null_state.shape:
        raise MotionWordError(
            f"{source}: has vectors of width {len(word.null_state)}, and this model's motion "
            f"encoder reads {len(own)}; learn the word with this model"
        )
    if torch.cosine_similarity(own, word.null_state, dim=0) < _MIN_COSINE:
        raise MotionWordError(
            f"{source}: was learned with another model; learn the word with this one"
        )
    longest = encode.max_tokens
    if len(word.vectors) > longest:
        raise MotionWordError(
            f"{source}: has {len(word.vectors)} vectors, more than the {longest} of a prompt"
        )
