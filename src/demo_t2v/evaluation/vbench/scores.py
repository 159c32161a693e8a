"""Results of VBench as results of `demo-t2v evaluate`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
from pydantic import TypeAdapter

from demo_t2v.evaluation.errors import EvaluationError
from demo_t2v.evaluation.metrics.metric import Better, Figure, mean_interval
from demo_t2v.evaluation.results import MetricResult, Results
from demo_t2v.evaluation.vbench.export import EXPORT, VIDEOS, Export, ExportedVideo
from demo_t2v.evaluation.vbench.names import split_name
from demo_t2v.evaluation.vbench.suite import DIMENSIONS, FLICKERING, check_dimension, read_json

_PERCENT: Final = "imaging_quality"
"""The dimension whose single videos have values up to 100, and their mean up to 1."""
_MOVES: Final = "dynamic_degree"
"""The dimension whose values are neither better nor worse."""
_NOTES: Final = {
    "color": "videos without the object do not count",
    _MOVES: "share of the videos that move",
    FLICKERING: "still videos have 1",
    _PERCENT: "values of single videos are divided by 100, as in VBench's mean",
}
"""What a reader of a dimension must know."""
_TOLERANCE: Final = 1e-6


@dataclass(frozen=True)
class VideoValue:
    """A video's value as VBench writes it."""

    video_path: str
    video_results: float


@dataclass(frozen=True)
class DimensionScore:
    """A dimension's value, and those of its videos."""

    dimension: str
    value: float
    videos: Sequence[VideoValue]


def read_scores(file: Path) -> list[DimensionScore]:
    """Read a file `*_eval_results.json`: `{dimension: [value, [video, ...]]}`.

    Raises EvaluationError for another file, an unknown dimension, and a dimension without videos or
    with a video twice.
    """
    tree = read_json(file)
    if not isinstance(tree, dict) or not tree:
        raise EvaluationError(f"{file}: is no *_eval_results.json of VBench")
    scores = []
    for dimension, content in tree.items():
        check_dimension(dimension, file)
        try:
            value, videos = TypeAdapter(tuple[float, list[VideoValue]]).validate_python(content)
        except ValueError:
            raise EvaluationError(
                f"{file}: {dimension} is not VBench's [value, [videos]]"
            ) from None
        if not videos:
            raise EvaluationError(f"{file}: {dimension} has no videos")
        if double := [key for key, count in Counter(map(_key, videos)).items() if count > 1]:
            name = "/".join(double[0])
            raise EvaluationError(f"{file}: {dimension} has two values for {name!r}")
        scores.append(DimensionScore(dimension, value, videos))
    return scores


def import_scores(
    files: Sequence[Path], export: Export | None = None, vbench_version: str | None = None
) -> Results:
    """The results in VBench's files, with rows of the videos of `export`.

    The files do not state VBench's version; `vbench_version` does. Raises EvaluationError for a
    file that `read_scores` refuses, a dimension in two files, and a video that is not of `export`.
    """
    sources: dict[str, Path] = {}
    scores: dict[str, DimensionScore] = {}
    for file in files:
        for score in read_scores(file):
            other = sources.setdefault(score.dimension, file)
            if other is not file:
                raise EvaluationError(
                    f"{file}: has {score.dimension}, as {other} has; give one of them"
                )
            scores[score.dimension] = score
    rows = _rows(scores.values(), export)
    metrics = [
        _metric(scores[dimension], export, vbench_version)
        for dimension in DIMENSIONS
        if dimension in scores
    ]
    versions = {"demo-t2v": version("demo-t2v")}
    if vbench_version:
        versions["vbench"] = vbench_version
    if export is None:
        subject = str(PurePosixPath(next(iter(scores.values())).videos[0].video_path).parent)
        return Results(subject, "", {}, metrics, rows, versions)
    settings = {
        "model": export.model,
        "fingerprint": export.model_hash,
        "generation": export.settings,
    }
    folder = export.folder
    return Results(folder, "", settings, metrics, rows, versions, folder=folder)


def metric_name(dimension: str) -> str:
    """The name of a dimension's metric in tables."""
    return f"VBench {dimension.replace('_', ' ')}"


def _rows(scores: Iterable[DimensionScore], export: Export | None) -> list[dict[str, Any]]:
    """A row for each video, with its values by metric; videos of a prompt are in their order."""
    exported = {video.file: video for video in export.videos} if export else {}
    places = {name: place for place, name in enumerate(exported)}

    def order(key: tuple[str, str]) -> tuple[object, ...]:
        folder, name = key
        return places.get(name, len(places)), folder, split_name(name)

    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for score in scores:
        for video in score.videos:
            row = rows.setdefault(_key(video), _row(video, exported, export))
            value = video.video_results * _scale(score.dimension)
            if math.isfinite(value):
                row[metric_name(score.dimension)] = value
    return [rows[key] for key in sorted(rows, key=order)]


def _row(
    video: VideoValue, exported: Mapping[str, ExportedVideo], export: Export | None
) -> dict[str, Any]:
    folder, name = _key(video)
    if folder == VIDEOS and export:
        if name not in exported:
            raise EvaluationError(f"{video.video_path}: is no video of {EXPORT}")
        facts = asdict(exported[name])
        return {key: value for key, value in facts.items() if key not in ("file", "index")}
    return {"name": f"{folder}/{name}", "prompt": split_name(name)[0]}


def _key(video: VideoValue) -> tuple[str, str]:
    """Folder and name: VBench's filter of static videos gives other videos the same names."""
    path = PurePosixPath(video.video_path)
    return path.parent.name, path.name


def _metric(
    score: DimensionScore, export: Export | None, vbench_version: str | None
) -> MetricResult:
    depends_on = {
        "package": "vbench",
        "version": vbench_version or "not stated",
        "dimension": score.dimension,
        "prompts": _prompts(export),
    }
    name = metric_name(score.dimension)
    if not math.isfinite(score.value):
        return MetricResult(name, None, depends_on, "VBench's value is not a number")
    values = np.array([video.video_results for video in score.videos]) * _scale(score.dimension)
    mean = float(values.mean())
    notes = [_NOTES[score.dimension]] if score.dimension in _NOTES else []
    interval = None
    if math.isclose(mean, score.value, rel_tol=0, abs_tol=_TOLERANCE):
        interval = mean_interval(values)
    else:
        notes.append(f"VBench's value is not the mean of the videos, {mean:.4g}: no interval")
    if export:
        notes += _missing(score, export)
    figure = Figure(score.value, interval, len(values), notes=notes)
    better: Better = "" if score.dimension == _MOVES else "higher"
    return MetricResult(name, figure, depends_on, better=better)


def _missing(score: DimensionScore, export: Export) -> list[str]:
    """What the dimension lacks: videos of its prompts, and values of videos."""
    notes = []
    coverage = export.coverage.get(score.dimension)
    if coverage and coverage.incomplete:
        notes.append(f"too few videos for {coverage.incomplete} of {coverage.prompts} prompts")
    videos = coverage.videos if coverage else len(export.videos)
    without = videos - len(score.videos)
    if without > 0 and score.dimension != FLICKERING:  # its videos are selected
        notes.append(f"{without} of {videos} videos have no value")
    return notes


def _prompts(export: Export | None) -> str:
    if export is None:
        return "not stated"
    return "VBench's" if export.coverage else "custom"


def _scale(dimension: str) -> float:
    return 0.01 if dimension == _PERCENT else 1.0
