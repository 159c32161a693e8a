"""VBench's dimensions and its standard prompts (arXiv 2311.17982)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from pydantic import TypeAdapter

from demo_t2v.core.atomic_io import reason
from demo_t2v.evaluation.errors import EvaluationError

VERSION: Final = "0.1.5"
"""The version of VBench whose names and files these are."""
FLICKERING: Final = "temporal_flickering"
DIMENSIONS: Final = (
    *("subject_consistency", "background_consistency", FLICKERING, "motion_smoothness"),
    *("dynamic_degree", "aesthetic_quality", "imaging_quality", "object_class"),
    *("multiple_objects", "human_action", "color", "spatial_relationship", "scene"),
    *("temporal_style", "appearance_style", "overall_consistency"),
)
CUSTOM: Final = (
    *("subject_consistency", "background_consistency", "motion_smoothness", "dynamic_degree"),
    *("aesthetic_quality", "imaging_quality"),
)
"""Dimensions that VBench measures for other prompts than its own."""
DETECTRON: Final = frozenset(("object_class", "multiple_objects", "color", "spatial_relationship"))
"""Dimensions that need detectron2, which VBench does not install."""


@dataclass(frozen=True)
class Coverage:
    """How much of a dimension's prompts there is."""

    prompts: int
    """Prompts of the dimension."""
    incomplete: int
    """Those with too few videos."""
    first: str
    """The first one of them, or ""."""
    videos: int
    """Videos that VBench measures."""


@dataclass(frozen=True)
class PromptSuite:
    """The prompts of each dimension: the content of VBench's `VBench_full_info.json`."""

    prompts: Mapping[str, Sequence[str]]

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read the file. Raises EvaluationError."""
        tree = read_json(file)
        try:
            entries = TypeAdapter(list[_Entry]).validate_python(tree)
        except ValueError:
            raise EvaluationError(f"{file}: is no VBench_full_info.json") from None
        prompts: dict[str, list[str]] = {}
        for entry in entries:
            for dimension in entry.dimension:
                check_dimension(dimension, file)
                prompts.setdefault(dimension, []).append(entry.prompt_en)
        return cls(prompts)

    def __contains__(self, prompt: str) -> bool:
        return any(prompt in prompts for prompts in self.prompts.values())

    def samples(self, prompt: str) -> int:
        """How many videos of a prompt VBench measures."""
        every = (samples(name) for name, prompts in self.prompts.items() if prompt in prompts)
        return max(every, default=0)

    def coverage(self, videos: Counter[str]) -> dict[str, Coverage]:
        """The coverage of each dimension by this number of videos of each prompt."""
        found = {}
        for dimension in filter(self.prompts.__contains__, DIMENSIONS):
            prompts = self.prompts[dimension]
            least = samples(dimension)
            missing = [prompt for prompt in prompts if videos[prompt] < least]
            measured = sum(min(videos[prompt], least) for prompt in prompts)
            first = missing[0] if missing else ""
            found[dimension] = Coverage(len(prompts), len(missing), first, measured)
        return found


@dataclass(frozen=True)
class _Entry:
    prompt_en: str
    dimension: Sequence[str]


def samples(dimension: str) -> int:
    """How many videos of a prompt VBench takes: the first 5; 25 before its filter of static ones.

    (`prompts/README.md` of Vchitect/VBench.)
    """
    return 25 if dimension == FLICKERING else 5


def check_dimension(name: str, file: Path) -> None:
    """Raise EvaluationError for a name that is not in DIMENSIONS."""
    if name not in DIMENSIONS:
        names = ", ".join(DIMENSIONS)
        raise EvaluationError(
            f"{file}: {name!r:.60} is no dimension of VBench {VERSION}, which has {names}"
        )


def read_json(file: Path) -> Any:
    """The content of a JSON file; None for a file that is not JSON. Raises EvaluationError."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise EvaluationError(f"{file}: cannot be read ({reason(error, file)})") from None
    except (ValueError, RecursionError):
        return None
