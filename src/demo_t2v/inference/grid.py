"""Grids of videos: each content prompt with each motion prompt.

DEMO (arXiv 2410.24219) conditions on content and motion by two encoders, so the motion of one
prompt can be combined with the content of another. In a grid, a column has one content prompt and
one seed, and a row has one motion prompt or timeline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from demo_t2v.checkpoints.resolve import resolve
from demo_t2v.config import ConfigError, InferenceConfig
from demo_t2v.core.errors import UserError
from demo_t2v.inference.jobs import STANDARD_INPUT, Job, check_prompt, make_jobs, read_prompts
from demo_t2v.model_folder import ModelError

MAX_SIDE: Final = 32
"""The most rows, and the most columns."""
_FILES: Final = frozenset({".csv", ".jsonl", ".parquet", ".tsv", ".txt"})


class GridError(UserError):
    """A grid that cannot be made; the message is one line."""


@dataclass(frozen=True)
class Grid:
    """Content prompts and motion prompts, each with its id.

    Raises GridError for more than MAX_SIDE of either.
    """

    columns: Sequence[tuple[str, str]]
    """(id, content prompt)."""
    rows: Sequence[tuple[str, str]]
    """(id, motion prompt or timeline as one text)."""

    def __post_init__(self) -> None:
        if max(len(self.rows), len(self.columns)) > MAX_SIDE:
            raise GridError(
                f"grid: {len(self.rows)} motion prompts by {len(self.columns)} content prompts; "
                f"at most {MAX_SIDE} of each"
            )

    def jobs(self, seed: int) -> list[Job]:
        """The videos, row by row.

        A column's seed is the one that `make_jobs` gives its id and content prompt.
        """
        columns = make_jobs(self.columns, 1, seed)
        return [
            replace(column, id=f"row {row}, column {column.id}", motion=motion)
            for row, motion in self.rows
            for column in columns
        ]


def read_grid(contents: Sequence[str], motions: Sequence[str]) -> Grid:
    """A grid from two lists, each of which is one file of prompts, or texts.

    Files are those of `read_prompts`. The rows take the column `motion`, and `prompt` where it is
    empty. Raises PromptError, GridError.
    """
    columns = [(name, prompt) for name, prompt, *_ in _read(contents, "content")]
    rows = [(name, motion[-1]) for name, *motion in _read(motions, "motion")]
    return Grid(columns, rows)


def _read(values: Sequence[str], option: str) -> list[tuple[str, ...]]:
    """Rows (id, prompt) or (id, prompt, motion) of a file, or of texts with their numbers as id."""
    file = Path(values[0])
    if len(values) == 1 and (file == STANDARD_INPUT or file.suffix.lower() in _FILES):
        return read_prompts(file)
    return [
        (str(number), check_prompt(text, f"--{option} {number}"))
        for number, text in enumerate(values, start=1)
    ]


def check_grid(config: InferenceConfig) -> None:
    """Raise ModelError for a model without a motion branch, ConfigError for unsuitable options."""
    if config.motion or config.motion_prompt is not None:
        raise ConfigError("motion, motion_prompt: the rows of a grid have them; remove the key")
    if "://" in config.out:
        raise ConfigError(f"out: {config.out}: a grid needs a folder of this machine")
    if not resolve(config.model).has_motion:
        raise ModelError(
            f"{config.model}: has no motion branch, which a grid needs; use sprites or a DEMO model"
        )
