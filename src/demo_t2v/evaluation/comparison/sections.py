"""What a report says: figures of several models side by side, quoted ones, and paired tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import Final

from demo_t2v.evaluation.comparison.alike import check_alike, check_same_prompts
from demo_t2v.evaluation.comparison.paired_test import PairedTest, holm, paired_test
from demo_t2v.evaluation.comparison.published import PublishedTables
from demo_t2v.evaluation.errors import EvaluationError
from demo_t2v.evaluation.metrics.metric import Better, Figure
from demo_t2v.evaluation.report import CRITERIA, Report, Subject, accuracies
from demo_t2v.evaluation.results import Results

SPLITS: Final[Mapping[str, tuple[bool, ...]]] = {
    "all": (False, True),
    "trained": (False,),
    "held-out": (True,),
}
"""Kinds of pairs of the sprite score, and whether they are held out."""

VideoKey = tuple[str, int]
"""A video's prompt, or its name or id, and its number among those that share it."""


@dataclass(frozen=True)
class Column:
    """The figures of one model or folder by metric."""

    name: str
    figures: Mapping[str, Figure]
    values: Mapping[str, Mapping[VideoKey, float]]
    """Values of single videos by metric, where it has them."""
    quoted: bool = False
    """Whether the figures are quoted from a publication."""


@dataclass(frozen=True)
class ModelDifference:
    """A paired test of two measured columns on one metric."""

    metric: str
    first: str
    second: str
    test: PairedTest
    p: float
    """The p value, adjusted for all tests of the report (Holm)."""


@dataclass(frozen=True)
class Section:
    """A table of a report: columns that were measured in the same way, and quoted ones."""

    title: str
    columns: Sequence[Column]
    better: Mapping[str, Better]
    """The metrics in their order, and which values are better."""
    differences: Sequence[ModelDifference] = ()
    notes: Sequence[str] = ()

    @property
    def measured(self) -> list[Column]:
        """The columns without the quoted ones."""
        return [column for column in self.columns if not column.quoted]


def make_sections(
    results: Mapping[Path, Results],
    scores: Mapping[Path, Report],
    published: PublishedTables,
    benchmark: str | None = None,
) -> list[Section]:
    """The sections of a report: one of the results, and one of the sprite scores.

    Figures of `benchmark` are quoted beside the results; None: of the results' protocol, if there
    are any. Raises EvaluationError for results that were measured differently, for a subject that
    is there twice, and for a benchmark that is not published.
    """
    sections = []
    if results:
        check_alike(results)
        sections.append(_results_section(list(results.values()), published, benchmark))
    elif benchmark is not None:
        raise EvaluationError(f"--quote {benchmark}: there are no results to quote figures beside")
    if scores:
        sections.append(_score_section(scores))
    return _with_tests(sections)


def video_keys(results: Sequence[Results]) -> list[dict[VideoKey, int]]:
    """For each of the results, its videos' keys and their numbers.

    The key is the prompt if all videos of all results have one, or else the name without ending.
    """
    by_prompt = all(row.get("prompt") for each in results for row in each.videos)
    found = []
    for each in results:
        uses: Counter[str] = Counter()
        keys = {}
        for number, row in enumerate(each.videos):
            name = str(row.get("name", number))
            text = row["prompt"] if by_prompt else str(PurePosixPath(name).with_suffix(""))
            keys[text, uses[text]] = number
            uses[text] += 1
        found.append(keys)
    return found


def _results_section(
    results: Sequence[Results], published: PublishedTables, benchmark: str | None
) -> Section:
    columns = [
        _results_column(each, keys) for each, keys in zip(results, video_keys(results), strict=True)
    ]
    better: dict[str, Better] = {
        metric.name: metric.better
        for each in results
        for metric in each.metrics
        if metric.figure is not None
    }
    notes = [*_notes(results), *_without_values(columns)]
    protocol = next(
        (str(each.settings["protocol"]) for each in results if each.settings.get("protocol")), ""
    )
    name = benchmark or (protocol if protocol in published.benchmarks else "")
    if name:
        table = published.table(name)
        for model, numbers in table.models.items():
            quoted = {metric: Figure(value, None, 0) for metric, value in numbers.items()}
            columns.append(Column(model, quoted, {}, quoted=True))
            better |= {metric: "" for metric in numbers if metric not in better}
        notes.append(
            f"Quoted: {published.source}, {table.table}. These figures were not measured here, "
            "and their protocol may differ."
        )
    title = f"Videos: {protocol}" if protocol else "Videos"
    return Section(title, columns, better, notes=notes)


def _results_column(results: Results, keys: Mapping[VideoKey, int]) -> Column:
    figures = {each.name: each.figure for each in results.metrics if each.figure is not None}
    values = {}
    for metric in figures:
        rows = {key: results.videos[number].get(metric) for key, number in keys.items()}
        values[metric] = {key: each for key, each in rows.items() if isinstance(each, (int, float))}
    return Column(results.subject, figures, values)


def _notes(results: Sequence[Results]) -> Iterator[str]:
    """What a reader must know of the figures, each once with the metrics that it is about."""
    said: dict[str, dict[str, list[str]]] = {}
    for each in results:
        for metric in each.metrics:
            missing = [f"not computed; {metric.not_computed}"] if metric.figure is None else []
            for text in metric.figure.notes if metric.figure else missing:
                said.setdefault(text, {}).setdefault(metric.name, []).append(each.subject)
    for text, metrics in said.items():
        yield f"{_of(metrics, len(results))}: {text}."
    if len({tuple(sorted(each.versions.items())) for each in results}) > 1:
        yield "The results were measured with different versions of packages."


def _without_values(columns: Sequence[Column]) -> Iterator[str]:
    """The metrics of whole sets of videos, which have no paired test."""
    names = dict.fromkeys(name for column in columns for name in column.figures)
    sets = [name for name in names if not any(column.values.get(name) for column in columns)]
    if sets and len(columns) > 1:
        yield f"{', '.join(sets)}: no paired test, since single videos have no value."


def _of(metrics: Mapping[str, Sequence[str]], everyone: int) -> str:
    """The metrics, each with the subjects that it is about unless these are all."""
    return ", ".join(
        name if len(subjects) == everyone else f"{name} of {' and '.join(subjects)}"
        for name, subjects in metrics.items()
    )


def _score_section(scores: Mapping[Path, Report]) -> Section:
    check_same_prompts(scores)
    subjects = _subjects(scores)
    version = next(iter(scores.values())).version
    columns, notes = [], []
    for name, subject in subjects.items():
        figures, values = {}, {}
        for split, kinds in SPLITS.items():
            videos = [video for video in subject.videos if video.held_out in kinds]
            for criterion, share in accuracies(videos).items() if videos else ():
                low, high = share.interval
                metric = f"{criterion} right, {split} pairs (%)"
                value = 100 * share.right / share.count
                figures[metric] = Figure(value, (100 * low, 100 * high), share.count)
        for criterion in CRITERIA:
            right = {(video.id, 0): 100.0 * video.right[criterion] for video in subject.videos}
            values[f"{criterion} right, all pairs (%)"] = right
        if subject.missing:
            notes.append(f"{name}: {len(subject.missing)} prompts have no video.")
        compared = subject.role in ("model", "base")  # real clips are the upper bound
        columns.append(Column(name, figures, values if compared else {}))
    better: dict[str, Better] = dict.fromkeys(columns[0].figures, "higher")
    return Section(f"Sprite score, version {version}", columns, better, notes=notes)


def _subjects(scores: Mapping[Path, Report]) -> dict[str, Subject]:
    """The subjects of all reports by name; a base or the real clips may be in several."""
    found: dict[str, tuple[Path, Subject]] = {}
    for file, report in scores.items():
        for subject in report.subjects:
            first, other = found.setdefault(subject.name, (file, subject))
            if first == file:
                continue
            if _seen(subject) != _seen(other) or subject.role == other.role == "model":
                raise EvaluationError(
                    f"{file}: scores {subject.name}, as {first} does; give one of the two"
                )
    return {name: subject for name, (_, subject) in found.items()}


def _seen(subject: Subject) -> list[tuple[str | None, ...]]:
    """What the videos show, without numbers, which differ by rounding between machines."""
    return [
        (video.id, video.seen_thing, video.seen_motion, video.seen_background)
        for video in subject.videos
    ]


def _with_tests(sections: Sequence[Section]) -> list[Section]:
    """The sections with the tests of all pairs of measured columns on all metrics."""
    tested = [[*_tests(section)] for section in sections]
    adjusted = iter(holm([each.test.p for tests in tested for each in tests]))
    return [
        replace(
            section,
            differences=[replace(each, p=next(adjusted)) for each in tests],
            notes=[*section.notes, *_untested(section, tests)],
        )
        for section, tests in zip(sections, tested, strict=True)
    ]


def _tests(section: Section) -> Iterator[ModelDifference]:
    """The tests of columns whose values are of the same videos, two or more."""
    for metric in section.better:
        for one, other in combinations(section.measured, 2):
            first, second = one.values.get(metric, {}), other.values.get(metric, {})
            if len(first) >= 2 and first.keys() == second.keys():
                test = paired_test(list(first.values()), [second[key] for key in first])
                yield ModelDifference(metric, one.name, other.name, test, test.p)


def _untested(section: Section, tests: Sequence[ModelDifference]) -> Iterator[str]:
    """Why there is no test of metrics that two columns have values of."""
    done = {test.metric for test in tests}
    several = [
        metric
        for metric in section.better
        if metric not in done and sum(bool(c.values.get(metric)) for c in section.measured) > 1
    ]
    if several:
        yield (
            f"{', '.join(several)}: no paired test, which takes two videos or more with the same "
            "prompts or names."
        )
