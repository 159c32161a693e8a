"""Prompts that differ in one part of speech, from templates and lists of words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from string import Formatter
from typing import Final, Self

import numpy as np
from pydantic import model_validator
from pydantic_core import PydanticCustomError

from demo_t2v.config import load
from demo_t2v.config.loader import Strict

_FOLDER: Final = Path(__file__).parent.parent / "assets" / "words"
WORD_LISTS: Final[Mapping[str, Path]] = {
    "english": _FOLDER / "english.yaml",
    "sprites": _FOLDER / "sprites.yaml",
}
"""The lists that ship: for any encoder, and for models of the sprite world."""


class WordLists(Strict):
    """Templates, and the words of each part of speech, which the templates name in braces."""

    templates: tuple[str, ...]
    content: dict[str, tuple[str, ...]]
    """Words of each part of speech that describes content."""
    motion: dict[str, tuple[str, ...]]
    """Words of each part of speech that describes motion."""

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """Words of each part of speech, those of content first."""
        return {**self.content, **self.motion}

    @model_validator(mode="after")
    def _check(self) -> Self:
        used: set[str] = set()
        for template in self.templates:
            try:
                names = _names(template)
            except ValueError:
                raise _problem(f"{template!r} is no template; write {{noun}} for a word") from None
            if unknown := sorted(names - self.parts.keys()):
                raise _problem(f"{template!r} names {unknown[0]!r}, which has no words")
            used |= names
        for part, words in self.parts.items():
            if part not in used:
                raise _problem(f"no template names {part!r}")
            if len(set(words)) < 2:
                raise _problem(f"{part!r} has {len(set(words))} different words; it needs 2")
        if shared := sorted(self.content.keys() & self.motion.keys()):
            raise _problem(f"{shared[0]!r} is both content and motion")
        return self

    def draw_groups(self, part: str, count: int, seed: int = 0) -> list[list[str]]:
        """`count` groups of prompts that differ in the word of `part` alone.

        The other words are drawn at random; templates with the part take turns. Groups depend on
        the seed, the lists and the part.
        """
        rng = np.random.default_rng([seed, *part.encode()])
        templates = [template for template in self.templates if part in _names(template)]
        groups = []
        for number in range(count):
            others = {name: str(rng.choice(words)) for name, words in self.parts.items()}
            template = templates[number % len(templates)]
            groups.append([template.format(**others | {part: word}) for word in self.parts[part]])
        return groups


def read_word_lists(name: str) -> WordLists:
    """The lists of a name in `WORD_LISTS` or of a YAML file. Raises config.ConfigError."""
    lists: WordLists = load(WordLists, WORD_LISTS.get(name, Path(name)))
    return lists


def _names(template: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(template) if name is not None}


def _problem(message: str) -> PydanticCustomError:
    return PydanticCustomError("word_lists", "{message}", {"message": message})
