"""OpenCLIP's tokenizer, for converted models. Saved models name this module."""

from __future__ import annotations

from html import unescape
from typing import Any, Final

import ftfy
from tokenizers import Regex, pre_tokenizers
from transformers import BatchEncoding, CLIPTokenizer, PreTrainedTokenizerFast

_START: Final = "<start_of_text>"
_END: Final = "<end_of_text>"
_WORDS: Final = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


# diffusers finds the loading methods by the base class PreTrainedTokenizerFast, named here.
class OpenCLIPTokenizer(CLIPTokenizer, PreTrainedTokenizerFast):
    """CLIP's byte-pair encoding after the text cleaning of `open_clip.SimpleTokenizer`.

    transformers' `CLIPTokenizer` neither repairs mojibake nor unescapes HTML, reads a literal
    `<|endoftext|>` as the token, and has other names for the special tokens.
    """

    def __init__(
        self,
        vocab: dict[str, int] | None = None,
        merges: Any = None,
        unk_token: str = _END,
        bos_token: str = _START,
        eos_token: str = _END,
        pad_token: str = _END,
        **kwargs: Any,
    ) -> None:
        super().__init__(vocab, merges, unk_token, bos_token, eos_token, pad_token, **kwargs)
        self.backend_tokenizer.normalizer = None  # `clean` normalizes
        self.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ])  # fmt: skip

    def _encode_plus(self, text: Any, *args: Any, **kwargs: Any) -> BatchEncoding:
        """Encode cleaned text; all public methods of the tokenizer call this one."""
        cleaned = clean(text) if isinstance(text, str) else [clean(each) for each in text]
        return super()._encode_plus(cleaned, *args, **kwargs)


def clean(text: str) -> str:
    """Clean text as OpenCLIP: mojibake repaired, HTML unescaped twice, lower case."""
    repaired: str = ftfy.fix_text(text)
    return " ".join(unescape(unescape(repaired)).split()).lower()


def clip_vocabulary(merges: list[tuple[str, ...]], start: str, end: str) -> dict[str, int]:
    """Token numbers as CLIP counts them: bytes, bytes that end a word, `merges`, start, end.

    A byte is a token within and at the end of a word, so no word is unknown.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges), start, end]
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}
