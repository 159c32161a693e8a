"""The report of a benchmark: accuracies with 95 % intervals, as tables and as JSON."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import TypeAdapter

from demo_t2v.core.atomic_io import PathError, atomic_write, make_folder, reason
from demo_t2v.evaluation.errors import EvaluationError

if TYPE_CHECKING:
    from rich.table import Table

BENCHMARK_VERSION: Final = 1
"""Version of the prompts, of the sprite world and of the classification.

Scores of different versions are not comparable.
"""
CRITERIA: Final = ("motion", "content", "both", "background")
"""What can be right in a video; content is the thing, both are motion and content."""
NO_MOTION: Final = "none"
"""Name in the confusions of a video without a recognized motion."""


@dataclass(frozen=True)
class VideoScore:
    """One video: the requested and the recognized thing, motion and background.

    `seen_thing` and `seen_motion` are None where none was recognized.
    """

    id: str
    prompt: str
    held_out: bool
    thing: str
    motion: str
    background: str
    seen_thing: str | None
    seen_motion: str | None
    seen_background: str
    share: float
    """Share of the picture that the best matching thing explains, mean over the frames."""
    deviation: float
    """Distance to the nearest motion in units of its tolerance; infinite without a thing."""

    @property
    def right(self) -> dict[str, bool]:
        """Which of CRITERIA the video meets."""
        motion, content = self.seen_motion == self.motion, self.seen_thing == self.thing
        background = self.seen_background == self.background
        return dict(zip(CRITERIA, (motion, content, motion and content, background), strict=True))


@dataclass(frozen=True)
class Proportion:
    """`right` of `count` videos."""

    right: int
    count: int

    @property
    def interval(self) -> tuple[float, float]:
        """95 % score interval (Wilson, 1927), both ends in [0, 1]."""
        if not self.count:
            return 0.0, 1.0
        z, n, p = 1.959964, self.count, self.right / self.count
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half_width = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, centre - half_width), min(1.0, centre + half_width)

    def as_json(self) -> dict[str, Any]:
        share = self.right / self.count if self.count else None
        return {"right": self.right, "count": self.count, "share": share, "95%": self.interval}

    def __str__(self) -> str:
        if not self.count:
            return "-"
        low, high = self.interval
        return f"{self.right / self.count:.1%} ({low:.0%} to {high:.0%})"


@dataclass(frozen=True)
class Subject:
    """One source of videos and their scores; `role` is `model`, `base` or `real clips`."""

    role: str
    name: str
    videos: list[VideoScore]
    missing: list[str] = field(default_factory=list)
    """Ids of prompts without a video."""

    def subset(self, held_out: bool) -> list[VideoScore]:
        """The videos of held-out pairs, or of trained pairs."""
        return [video for video in self.videos if video.held_out == held_out]

    def per_motion(self) -> dict[str, tuple[Proportion, Counter[str]]]:
        """For each requested motion: its accuracy, and the counts of the wrong motions."""
        found: dict[str, tuple[Proportion, Counter[str]]] = {}
        for motion in dict.fromkeys(video.motion for video in self.videos):
            seen = Counter(v.seen_motion or NO_MOTION for v in self.videos if v.motion == motion)
            count, right = seen.total(), seen.pop(motion, 0)
            found[motion] = Proportion(right, count), seen
        return found

    def as_json(self) -> dict[str, Any]:
        subsets = {"trained": self.subset(False), "held-out": self.subset(True)}
        return {
            "role": self.role,
            "name": self.name,
            "missing": self.missing,
            **{
                label: {name: share.as_json() for name, share in accuracies(videos).items()}
                for label, videos in subsets.items()
            },
            "motions": {
                motion: {**share.as_json(), "seen instead": dict(confusions.most_common())}
                for motion, (share, confusions) in self.per_motion().items()
            },
            "videos": [_without_infinity(asdict(video)) for video in self.videos],
        }


@dataclass(frozen=True)
class Report:
    """All subjects on the same prompts, the real clips (upper bound) last."""

    seed: int | None
    """The seed of the models' videos; None for videos that another program made."""
    subjects: list[Subject]
    version: int = 1
    """Version of the benchmark; a file without one has version 1."""

    def as_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        subjects = [subject.as_json() for subject in self.subjects]
        return {"version": self.version, "seed": self.seed, "subjects": subjects}


def accuracies(videos: Iterable[VideoScore]) -> dict[str, Proportion]:
    """How many of the videos meet each of CRITERIA."""
    right = [video.right for video in videos]
    return {name: Proportion(sum(each[name] for each in right), len(right)) for name in CRITERIA}


def tables(report: Report) -> list[Table]:
    """The report as tables: the accuracies, then one table of motions for each subject."""
    from rich.table import Table

    top = Table("", "pairs", "videos", *CRITERIA, title="Right, with 95 % intervals")
    for subject in report.subjects:
        for label, held_out in (("trained", False), ("held out", True)):
            videos = subject.subset(held_out)
            top.add_row(
                subject.role, label, str(len(videos)), *map(str, accuracies(videos).values())
            )
    return [top, *map(_motion_table, report.subjects)]


def _motion_table(subject: Subject) -> Table:
    from rich.table import Table

    table = Table("requested", "right", "seen instead", title=f"Motions: {subject.role}")
    for motion, (share, confusions) in subject.per_motion().items():
        instead = ", ".join(f"{name} {count}" for name, count in confusions.most_common())
        table.add_row(motion, f"{share.right}/{share.count}", instead)
    return table


def check_writable(file: Path) -> None:
    """Make the parent folder of a file to write. Raises PathError, OSError."""
    make_folder(file.parent)
    if file.is_dir():
        raise PathError(f"{file}: is a folder; name a file")


def check_picture(option: str, file: Path) -> None:
    """As `check_writable`, for a picture. Raises EvaluationError for another ending than .png."""
    if file.suffix.lower() != ".png":
        raise EvaluationError(f"{option} {file}: should be a .png file")
    check_writable(file)


def save_report(report: Report, file: Path) -> None:
    """Write the report as JSON, atomically. Raises OSError."""
    with atomic_write(file) as partial:
        partial.write_text(json.dumps(report.as_json(), indent=1, allow_nan=False) + "\n", "utf-8")


def is_report(file: Path) -> bool:
    """Whether a file looks like one of `save_report`; False for one that cannot be read."""
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(tree, dict) and "subjects" in tree


def read_report(file: Path) -> Report:
    """Read a report that `save_report` wrote. Raises EvaluationError."""
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
        for subject in tree["subjects"]:
            for video in subject["videos"]:
                if video["deviation"] is None:  # JSON has no infinity
                    video["deviation"] = math.inf
        report = TypeAdapter(Report).validate_python(tree)
    except OSError as error:
        raise EvaluationError(f"{file}: cannot be read ({reason(error, file)})") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        report = None
    if report is None or all(subject.role != "model" for subject in report.subjects):
        raise EvaluationError(f"{file}: is not a report of `demo-t2v evaluate sprites --out`")
    if report.version != BENCHMARK_VERSION:
        raise EvaluationError(
            f"{file}: has version {report.version} of the sprite score; "
            f"this program has version {BENCHMARK_VERSION}"
        )
    return report


def _without_infinity(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in values.items()
    }
