"""Text conditioning: states of the content encoder and of the motion encoder, both CLIP."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextStates:
    """Encoder states of B prompts, which the denoiser is conditioned on."""

    content: Tensor
    """(B, L, D)."""
    motion: Tensor | None
    """(B, L, D), or (B, F, L, D) for each frame; None in the base model, which has no motion
    encoder."""
    eot_index: Tensor
    """(B,), or (B, F) for each frame: position of the end-of-text token in the motion prompt."""

    def map(self, change: Callable[[Tensor], Tensor]) -> TextStates:
        """Apply `change` to each tensor, such as a slice of its rows."""
        motion = None if self.motion is None else change(self.motion)
        return TextStates(change(self.content), motion, change(self.eot_index))

    @property
    def per_frame(self) -> bool:
        """Whether the motion states are those of each frame."""
        return self.motion is not None and self.motion.ndim == 4

    def frames(self, window: slice) -> TextStates:
        """The states of some frames; the same where there are none for each frame."""
        if not self.per_frame:
            return self
        assert self.motion is not None
        return TextStates(self.content, self.motion[:, window], self.eot_index[:, window])

    def repeat(self, count: int) -> TextStates:
        """Each row `count` times; copies of a row are adjacent."""
        return self.map(lambda tensor: tensor.repeat_interleave(count, dim=0))

    def join(self, other: TextStates) -> TextStates:
        """The rows of both along the batch axis, these first."""
        motion = None
        if self.motion is not None and other.motion is not None:
            motion = torch.cat(_same_frames(self.motion, other.motion, 3))
        return TextStates(
            content=torch.cat([self.content, other.content]),
            motion=motion,
            eot_index=torch.cat(_same_frames(self.eot_index, other.eot_index, 1)),
        )


def _same_frames(first: Tensor, second: Tensor, dimensions: int) -> tuple[Tensor, Tensor]:
    """Both tensors for each frame, (B, F, ...), where one of them is, and the other (B, ...)."""
    if first.ndim == second.ndim:
        return first, second
    frames = max(first, second, key=lambda tensor: tensor.ndim).shape[1]
    both = (
        tensor.unsqueeze(1).expand(-1, frames, *tensor.shape[1:])
        if tensor.ndim == dimensions
        else tensor
        for tensor in (first, second)
    )
    return next(both), next(both)


def penultimate_states(encoder: CLIPTextModel, ids: Tensor) -> Tensor:
    """States of the last but one layer after the final layer norm: ids (B, L) -> (B, L, D).

    ModelScopeT2V and Stable Diffusion 2 use CLIP this way.
    """
    hidden = encoder(input_ids=ids, output_hidden_states=True).hidden_states[-2]
    states: Tensor = encoder.final_layer_norm(hidden)
    return states


def token_ids(tokenizer: CLIPTokenizer, prompts: Sequence[str], config: CLIPTextConfig) -> Tensor:
    """Token ids (B, L), cut or padded as the encoder of `config` was trained."""
    length = config.max_position_embeddings
    cut = tokenizer(list(prompts), max_length=length, truncation=True).input_ids
    # OpenCLIP pads with token 0, which is "!" in a prompt: a tokenizer cannot have it as padding.
    return torch.tensor([ids + [config.pad_token_id] * (length - len(ids)) for ids in cut])


@lru_cache
def _warn_of_cut(length: int, prompt: str, rest: str) -> None:  # noqa: ARG001
    """Warn once for each prompt, also if it is in several batches."""
    logger.warning("the prompt is longer than %d tokens; dropped: %r", length, rest)


class TextConditioner:
    """Encodes prompts by a tokenizer and two encoders.

    `device` is where the encoders compute, by default where their weights are. With offloading
    the two differ. `motion_words` are learned vectors (K, D) by name: the motion encoder reads them
    in place of `<name>` (textual inversion, arXiv 2208.01618).
    """

    def __init__(
        self,
        tokenizer: CLIPTokenizer,
        content_encoder: CLIPTextModel,
        motion_encoder: CLIPTextModel | None,
        device: torch.device | None = None,
        motion_words: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.content_encoder = content_encoder
        self.motion_encoder = motion_encoder
        self.device = device
        self.motion_words = motion_words or {}

    @property
    def max_tokens(self) -> int:
        """Tokens of a prompt that are read, without the first and the last one."""
        return int(self.content_encoder.config.max_position_embeddings) - 2

    def tokens(self, prompts: Sequence[str]) -> Tensor:
        """Token ids (B, L), padded; a prompt longer than L is cut with one warning."""
        length = self.max_tokens
        for prompt in dict.fromkeys(prompts):
            ids = self.tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
            dropped = ids[length:]
            if dropped:
                _warn_of_cut(length, prompt, str(self.tokenizer.decode(dropped)))
        return token_ids(self.tokenizer, prompts, self.content_encoder.config)

    def motion_tokens(self, prompts: Sequence[str]) -> Tensor:
        """Token ids (B, L) of motion prompts, as `tokens`.

        The n-th of all motion words' vectors has the id V + n, where V is the vocabulary's size.
        """
        if not self.motion_words:
            return self.tokens(prompts)
        start, words = self.content_encoder.config.vocab_size, dict[str, list[int]]()
        for name, vectors in self.motion_words.items():
            words[f"<{name}>"] = list(range(start, start + len(vectors)))
            start += len(vectors)
        word = re.compile(f"({'|'.join(map(re.escape, words))})")
        ids = self.tokens(["" if word.search(prompt) else prompt for prompt in prompts])
        for row, prompt in enumerate(prompts):
            if word.search(prompt):
                ids[row] = self._tokens_of_pieces(prompt, word.split(prompt), words)
        return ids

    def _tokens_of_pieces(
        self, prompt: str, pieces: Sequence[str], words: Mapping[str, list[int]]
    ) -> Tensor:
        """Token ids (L,) of a prompt's pieces, each a text or one of `words`."""
        body: list[int] = []
        for piece in pieces:
            plain = self.tokenizer(piece, add_special_tokens=False, verbose=False).input_ids
            body += words.get(piece, plain)
        if len(body) > self.max_tokens:
            dropped = [token for token in body[self.max_tokens :] if token < len(self.tokenizer)]
            _warn_of_cut(self.max_tokens, prompt, str(self.tokenizer.decode(dropped)))
        row: Tensor = token_ids(self.tokenizer, [""], self.content_encoder.config)[0]
        body = body[: self.max_tokens]
        row[1 : 1 + len(body)] = torch.tensor(body)
        row[1 + len(body)] = self.tokenizer.eos_token_id
        return row

    def motion_states(self, ids: Tensor) -> Tensor:
        """The motion encoder's states (B, L, D) of `motion_tokens` (B, L)."""
        assert self.motion_encoder is not None
        ids = ids.to(self.device or self.motion_encoder.device)
        size = self.motion_encoder.config.vocab_size
        learned = ids >= size
        if not learned.any():
            return penultimate_states(self.motion_encoder, ids)
        rows = torch.cat(list(self.motion_words.values())).to(ids.device)[(ids - size).clamp(min=0)]

        def insert(_module: Any, _inputs: Any, embedded: Tensor) -> Tensor:
            return torch.where(learned[..., None], rows.to(embedded), embedded)

        # The encoder takes token ids only, and offloading moves its layers when they are called.
        hook = self.motion_encoder.embeddings.token_embedding.register_forward_hook(insert)
        try:
            return penultimate_states(self.motion_encoder, ids.masked_fill(learned, 0))
        finally:
            hook.remove()

    def eot_index(self, ids: Tensor) -> Tensor:
        """Position of the first end-of-text token in each row: (B, L) -> (B,)."""
        ends: Tensor = ids == self.tokenizer.eos_token_id
        return ends.int().argmax(dim=-1)

    def __call__(self, content: Sequence[str], motion: Sequence[str] | None = None) -> TextStates:
        """States of the content prompts and of the motion prompts (None: the same prompts)."""
        content_ids = self.tokens(content)
        if motion is None and not self.motion_words:
            return self.states(content_ids)
        return self.states(content_ids, self.motion_tokens(content if motion is None else motion))

    def states(self, content_ids: Tensor, motion_ids: Tensor | None = None) -> TextStates:
        """States from token ids (B, L); `motion_ids` None: the same ids."""
        device = self.device or self.content_encoder.device
        content_ids = content_ids.to(device)
        motion_ids = content_ids if motion_ids is None else motion_ids.to(device)
        content, motion = penultimate_states(self.content_encoder, content_ids), None
        if self.motion_encoder is not None:
            motion = self.motion_states(motion_ids)
        return TextStates(
            content=content,
            motion=motion,
            eot_index=self.eot_index(motion_ids),
        )
