"""What was seen in the videos, counted: shares with 95 % intervals, as tables and as JSON."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import TypeAdapter

from demo_t2v.core.atomic_io import PathError, make_folder, reason, written_whole
from demo_t2v.core.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

NOTHING: Final = "none"


class ReportError(UserError):
    """A file that is no report of this kind; one line for a person."""


@dataclass(frozen=True)
class Judged:
    """One video: what was asked for and what was seen; None where nothing held over its frames."""

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
    """How much of the picture the best matching thing explains, the mean over the frames."""
    deviation: float
    """From the nearest motion, in units of its tolerance; infinite where no thing was seen."""

    @property
    def content_right(self) -> bool:
        return self.seen_thing == self.thing

    @property
    def motion_right(self) -> bool:
        return self.seen_motion == self.motion

    @property
    def both_right(self) -> bool:
        return self.content_right and self.motion_right

    @property
    def background_right(self) -> bool:
        return self.seen_background == self.background


@dataclass(frozen=True)
class Share:
    """`right` of `count` videos."""

    right: int
    count: int

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the share, in [0, 1]."""
        if not self.count:
            return 0.0, 1.0
        z, n, p = 1.959964, self.count, self.right / self.count
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        reach = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, middle - reach), min(1.0, middle + reach)

    def as_json(self) -> dict[str, Any]:
        share = self.right / self.count if self.count else None
        return {"right": self.right, "count": self.count, "share": share, "95%": self.interval}

    def __str__(self) -> str:
        if not self.count:
            return "-"
        low, high = self.interval
        return f"{self.right / self.count:.1%} ({low:.0%} to {high:.0%})"


_FIGURES: Final[dict[str, Callable[[Judged], bool]]] = {
    "motion": lambda video: video.motion_right,
    "content": lambda video: video.content_right,
    "both": lambda video: video.both_right,
    "background": lambda video: video.background_right,
}


@dataclass(frozen=True)
class Subject:
    """One maker of videos: the model, the base denoiser, or the sprite world itself."""

    role: str
    name: str
    videos: list[Judged]

    def part(self, held_out: bool) -> list[Judged]:
        return [video for video in self.videos if video.held_out == held_out]

    def motions(self) -> dict[str, tuple[Share, Counter[str]]]:
        """By the motion asked for: how often it was right, and what else was seen how often."""
        found: dict[str, tuple[Share, Counter[str]]] = {}
        for motion in dict.fromkeys(video.motion for video in self.videos):
            seen = Counter(v.seen_motion or NOTHING for v in self.videos if v.motion == motion)
            share = Share(seen.pop(motion, 0), seen.total())
            found[motion] = Share(share.right, share.right + share.count), seen
        return found

    def as_json(self) -> dict[str, Any]:
        parts = {"trained": self.part(False), "held-out": self.part(True)}
        return {
            "role": self.role,
            "name": self.name,
            **{name: {k: s.as_json() for k, s in figures(v).items()} for name, v in parts.items()},
            "motions": {
                motion: {**share.as_json(), "seen instead": dict(others.most_common())}
                for motion, (share, others) in self.motions().items()
            },
            "videos": [_finite(asdict(video)) for video in self.videos],
        }


@dataclass(frozen=True)
class Report:
    """All subjects on the same prompts, the real clips (the ceiling) last."""

    seed: int
    subjects: list[Subject]

    def as_json(self) -> dict[str, Any]:
        """JSON values only."""
        return {"seed": self.seed, "subjects": [subject.as_json() for subject in self.subjects]}


def figures(videos: Iterable[Judged]) -> dict[str, Share]:
    """How often motion, content, both and background are right."""
    every = list(videos)
    return {name: Share(sum(map(right, every)), len(every)) for name, right in _FIGURES.items()}


def tables(report: Report) -> list[Table]:
    """The report for people: one table of shares, and one of motions for each subject."""
    from rich.table import Table

    top = Table("", "pairs", "videos", *_FIGURES, title="Right, with 95 % intervals")
    for subject in report.subjects:
        for label, held_out in (("trained", False), ("held out", True)):
            part = subject.part(held_out)
            shares = figures(part).values()
            top.add_row(subject.role, label, str(len(part)), *map(str, shares))
    return [top, *map(_motion_table, report.subjects)]


def _motion_table(subject: Subject) -> Table:
    from rich.table import Table

    table = Table("asked for", "right", "seen instead", title=f"Motions: {subject.role}")
    for motion, (share, others) in subject.motions().items():
        instead = ", ".join(f"{name} {count}" for name, count in others.most_common())
        table.add_row(motion, f"{share.right}/{share.count}", instead)
    return table


def check_writable(file: Path) -> None:
    """Make the folder of a file that will be written. Raises PathError, OSError."""
    make_folder(file.parent)
    if file.is_dir():
        raise PathError(f"{file}: is a folder; name a file")


def save(report: Report, file: Path) -> None:
    """Write the report as JSON; the file appears whole or not at all. Raises OSError."""
    with written_whole(file) as partial:
        partial.write_text(json.dumps(report.as_json(), indent=1, allow_nan=False) + "\n", "utf-8")


def read_report(file: Path) -> Report:
    """The report that `save` wrote. Raises ReportError."""
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
        for subject in tree["subjects"]:
            for video in subject["videos"]:
                if video["deviation"] is None:  # what JSON has no number for
                    video["deviation"] = math.inf
        report = TypeAdapter(Report).validate_python(tree)
    except OSError as error:
        raise ReportError(f"{file}: cannot be read ({reason(error, file)})") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        report = None
    if report is None or all(subject.role != "model" for subject in report.subjects):
        raise ReportError(f"{file}: is no file that `demo-t2v evaluate sprites --out` wrote")
    return report


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v
            for k, v in values.items()}  # fmt: skip
