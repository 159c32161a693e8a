"""Results that may stand in one table: they were measured in the same way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any, Final

from demo_t2v.evaluation.errors import EvaluationError
from demo_t2v.evaluation.report import Report
from demo_t2v.evaluation.results import MetricResult, Results

_SHOWN: Final = 40
"""Letters of a value in a message."""


def check_alike(results: Mapping[Path, Results]) -> None:
    """Raise EvaluationError for two results that were measured differently, or of one subject.

    They must agree in protocol, prompts and number of videos, in frames, size and frame rate, in
    the real videos, and in everything that a metric depends on. Seeds, models and package versions
    may differ.
    """
    for (first, one), (file, other) in combinations(results.items(), 2):
        if one.subject == other.subject:
            raise EvaluationError(
                f"{file}: measures {other.subject}, as {first} does; give one of the two"
            )
        if found := next(_differences(one, other), None):
            difference, remedy = found
            raise EvaluationError(
                f"{file}: was measured differently from {first}: {difference}; {remedy}"
            )


def check_same_prompts(scores: Mapping[Path, Report]) -> None:
    """Raise EvaluationError for sprite scores of different prompts."""
    (first, one), *others = (
        (file, {video.id: video.prompt for video in report.subjects[0].videos})
        for file, report in scores.items()
    )
    for file, other in others:
        if other != one:
            name = min(one.items() ^ other.items())[0]
            raise EvaluationError(
                f"{file}: has {len(other)} videos and {first} has {len(one)}, which differ in "
                f"{name}; score videos of the same prompts"
            )


def family(metric: str) -> str:
    """The metric without its variant: `FVD` for `FVD (I3D)`."""
    return metric.partition(" (")[0]


def _differences(one: Results, other: Results) -> Iterator[tuple[str, str]]:
    """What differs, as `other's and one's`, and the remedy."""
    for key in ("protocol", "protocol_version"):
        found, expected = other.settings.get(key), one.settings.get(key)
        if None not in (found, expected) and found != expected:
            yield _two(key.replace("_", " "), found, expected), "measure both by one protocol"
    yield from _different_videos(one, other)
    if one.real_sha256 and other.real_sha256 and one.real_sha256 != other.real_sha256:
        yield _two("real videos", other.real, one.real), "give both the same --real"
    yield from _different_metrics(_computed(one), _computed(other))


def _different_videos(one: Results, other: Results) -> Iterator[tuple[str, str]]:
    for key in ("frames", "height", "width", "fps"):
        found, expected = ({row.get(key) for row in each.videos} for each in (other, one))
        if None not in found | expected and found != expected:
            remedy = "give both the same --frames, --fps and --resolution"
            yield _two(key, _list(found), _list(expected)), remedy
    if len(one.videos) != len(other.videos):
        yield (
            _two("number of videos", len(other.videos), len(one.videos)),
            "measure as many of each",
        )
    prompts = [Counter(row.get("prompt", "") for row in each.videos) for each in (other, one)]
    if not any("" in each for each in prompts) and prompts[0] != prompts[1]:
        extra = next(iter(prompts[0] - prompts[1]))
        yield f"prompts, such as {_short(extra)}", "measure videos of the same prompts"


def _different_metrics(
    one: Mapping[str, MetricResult], other: Mapping[str, MetricResult]
) -> Iterator[tuple[str, str]]:
    for name in one.keys() & other.keys():
        expected, found = one[name].depends_on, other[name].depends_on
        for key in sorted(expected.keys() | found.keys()):
            if found.get(key) != expected.get(key):
                difference = _two(f"{name}, {key}", found.get(key), expected.get(key))
                yield difference, "measure both with the same network and options"
    for kind in {family(name) for name in one} & {family(name) for name in other}:
        variants = [[name for name in each if family(name) == kind] for each in (other, one)]
        if not set(variants[0]) & set(variants[1]):
            remedy = "measure both with the same network"
            yield _two("metric", variants[0][0], variants[1][0]), remedy


def _computed(results: Results) -> dict[str, MetricResult]:
    return {each.name: each for each in results.metrics if each.figure is not None}


def _two(what: str, found: Any, expected: Any) -> str:
    return f"{what} {_short(found)} and {_short(expected)}"


def _short(value: Any) -> str:
    text = "none" if value is None else " ".join(str(value).split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _list(values: Iterable[Any]) -> str:
    return ", ".join(f"{value:g}" for value in sorted(values))
