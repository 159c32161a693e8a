"""Results of a measurement as JSON: each figure with everything that it depends on."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter

from demo_t2v.core.atomic_io import atomic_write, reason
from demo_t2v.evaluation.errors import EvaluationError
from demo_t2v.evaluation.metrics.metric import Better, Figure

FORMAT: Final = 1
"""Version of the JSON; `read_results` reads no other."""
_PACKAGES: Final = ("demo-t2v", "torch", "numpy", "diffusers", "transformers", "av")


@dataclass(frozen=True)
class MetricResult:
    """A metric's figure, or why it was not computed."""

    name: str
    figure: Figure | None
    depends_on: Mapping[str, Any]
    not_computed: str = ""
    better: Better = ""
    """Which values are better; empty where neither is."""


@dataclass(frozen=True)
class Results:
    """One set of videos, measured."""

    subject: str
    """What was measured: a folder or a model."""
    real: str
    """The folder of real videos; empty without one."""
    settings: Mapping[str, Any]
    """What the videos depend on: frames, fps, resolution, seeds, the model's fingerprint."""
    metrics: Sequence[MetricResult]
    videos: Sequence[Mapping[str, Any]]
    """A row for each video: its name, prompt and size, and its own values by metric."""
    versions: Mapping[str, str]
    folder: str = ""
    """The folder of the videos, absolute; their names are paths in it."""
    real_sha256: str = ""
    """Hash of the real videos' sorted hashes; empty without real videos."""
    format: int = FORMAT


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that figures can depend on."""
    return {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES}


def save_results(results: Results, file: Path) -> None:
    """Write the results as JSON, atomically. Raises OSError."""
    # ASCII: the name of a file may be no UTF-8, which the escapes keep.
    text = json.dumps(asdict(results), indent=1, allow_nan=False)
    with atomic_write(file) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def read_results(file: Path) -> Results:
    """Read what `save_results` wrote. Raises EvaluationError."""
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise EvaluationError(f"{file}: cannot be read ({reason(error, file)})") from None
    except (ValueError, RecursionError):
        tree = None
    if not isinstance(tree, dict) or "format" not in tree or "metrics" not in tree:
        raise EvaluationError(f"{file}: holds no results of `demo-t2v evaluate`")
    if tree["format"] != FORMAT:
        raise EvaluationError(
            f"{file}: has format {tree['format']}; this version reads format {FORMAT}"
        )
    try:
        results = TypeAdapter(Results).validate_python(tree)
    except ValueError:
        results = None
    if results is None or not results.videos:
        raise EvaluationError(f"{file}: holds no complete results")
    return results
