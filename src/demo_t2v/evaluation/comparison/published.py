"""Figures of published tables, to be quoted beside measured ones."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from demo_t2v.config import load
from demo_t2v.config.loader import Strict
from demo_t2v.evaluation.errors import EvaluationError

PAPER: Final = Path(__file__).parents[2] / "assets" / "published" / "demo.yaml"
"""The tables of DEMO (arXiv 2410.24219)."""


class PublishedTable(Strict):
    """A table of a paper."""

    table: str
    """Its number and subject."""
    models: dict[str, dict[str, float]]
    """The figures of each model, by the names that the metrics have here."""


class PublishedTables(Strict):
    """The tables of a paper, by the names of the protocols."""

    source: str
    benchmarks: dict[str, PublishedTable]

    def table(self, benchmark: str) -> PublishedTable:
        """The table of a benchmark. Raises EvaluationError for one that is not here."""
        if benchmark not in self.benchmarks:
            names = ", ".join(self.benchmarks)
            raise EvaluationError(f"--quote {benchmark}: there are figures of {names} alone")
        return self.benchmarks[benchmark]


def read_published(file: Path = PAPER) -> PublishedTables:
    """The tables of a YAML file. Raises config.ConfigError."""
    tables: PublishedTables = load(PublishedTables, file)
    return tables
