"""Prompts from files, and jobs: one video each, with a seed of its own."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from demo_t2v.core.atomic_io import reason
from demo_t2v.core.errors import UserError
from demo_t2v.core.launch import rank, world_size
from demo_t2v.data.table import parse_rows

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LONGEST: Final = 10_000
"""Characters in a prompt; CLIP's text encoder reads 77 tokens of it, some 300 characters."""
STANDARD_INPUT: Final = Path("-")

Cells = TypeVar("Cells")
Item = TypeVar("Item")
_log = logging.getLogger(__name__)


class PromptError(UserError):
    """Prompts that cannot be used; the message is one line that names file, row and column."""


@dataclass(frozen=True)
class Job:
    """One video to be made. `repeat` counts from 0; `seed` is this sample's own.

    `motion` is its motion prompt or timeline as one text, as in a file's column `motion`.
    """

    id: str
    prompt: str
    repeat: int
    seed: int
    motion: str = ""

    @property
    def texts(self) -> tuple[str, str]:
        """What the text encoders read."""
        return self.prompt, self.motion

    @property
    def entry(self) -> dict[str, Any]:
        """Its fields, for the manifest."""
        fields = asdict(self)
        return fields if self.motion else {k: v for k, v in fields.items() if k != "motion"}


@dataclass(frozen=True)
class Video:
    """A finished video: RGB frames (F, H, W, 3).

    `seconds` are those of its batch, divided by the number of videos.
    """

    job: Job
    frames: NDArray[np.uint8]
    seconds: float


@dataclass(frozen=True)
class Failure:
    """A job that cannot be done, and why."""

    job: Job
    error: Exception

    @property
    def entry(self) -> dict[str, Any]:
        """The job's fields and the `reason`, as one line of text."""
        reason = " ".join(str(self.error).split()) or type(self.error).__name__
        return {**self.job.entry, "reason": reason}


def describe(job: Mapping[str, Any]) -> str:
    """A job for a person, who has the list: id, repeat, and the prompt's beginning."""
    return f"id {job['id']!r}, repeat {job['repeat']} ({job['prompt'][:60]!r})"


def split_batches(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """The items in batches of `size`; the last batch has the rest."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def read_prompts(file: Path) -> list[tuple[str, ...]]:
    """The (id, prompt) pairs of a file: `.jsonl`, `.parquet`, anything else is CSV.

    Where the file has a column `motion` with a text, a motion prompt or a timeline such as
    `0: rises; 8: falls`, that is the third of a row.

    A CSV's first line is `id,prompt` or `prompt`; where `prompt` is its last column, commas in it
    need no quotes. JSON lines are objects with `prompt` and, if wanted, `id`; Parquet has these
    columns. Without ids, or where one is empty, the row's number counts (the first row below the
    header is 1). Blank rows at the end and whatever else is in the file are ignored. A repeated id
    gets a number, with a warning. The file `-` is standard input: CSV or JSON lines. Raises
    PromptError.
    """
    rows = [
        (
            where,
            _text(name, where, "id").strip() or str(number),
            _prompt(prompt, where),
            *filter(None, [_text(motion, where, "motion").strip()]),
        )
        for number, (where, name, prompt, motion) in enumerate(_read(file), start=1)
    ]
    if not rows:
        raise PromptError(f"{_called(file)}: has no prompts")
    return _numbered(file, rows)


def check_prompt(prompt: str, where: str = "the prompt") -> str:
    """The prompt without space round it. Raises PromptError for an empty or an endless one."""
    prompt = prompt.strip()
    if not prompt:
        raise PromptError(f"{where} is empty; write what the video shows")
    if len(prompt) > LONGEST:
        raise PromptError(f"{where} has {len(prompt):,} characters; write at most {LONGEST:,}")
    return prompt


def sample_seed(seed: int, name: str, repeat: int) -> int:
    """The seed of one sample, in [0, 2^48): the same whatever else is made with it, and when."""
    digest = hashlib.sha256(f"{seed}/{repeat}/{name}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big")


def make_jobs(prompts: Iterable[tuple[str, ...]], repeat: int, seed: int) -> list[Job]:
    """`repeat` jobs for each (id, prompt) or (id, prompt, motion), with seeds from `seed`."""
    return [
        Job(name, prompt, index, sample_seed(seed, name, index), *motion)
        for name, prompt, *motion in prompts
        for index in range(repeat)
    ]


Row = tuple[str, Any, Any, Any]
"""Where a row stands, for a person; its id, prompt and motion as they are written."""


def _read(file: Path) -> Iterator[Row]:
    if file.suffix.lower() == ".parquet":
        return _read_parquet(file)
    name, text = _called(file), _content(file)
    piped_objects = file == STANDARD_INPUT and text.lstrip().startswith("{")
    if piped_objects or file.suffix.lower() == ".jsonl":
        return _read_jsonl(name, text)
    return _read_csv(name, text)


def _called(file: Path) -> str:
    return "standard input" if file == STANDARD_INPUT else str(file)


def _content(file: Path) -> str:
    if file == STANDARD_INPUT and world_size() > 1:
        raise PromptError("several processes need a file of prompts, not standard input")
    try:
        content = sys.stdin.buffer.read() if file == STANDARD_INPUT else file.read_bytes()
    except OSError as error:
        raise PromptError(f"{_called(file)}: cannot be read ({reason(error, file)})") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise PromptError(f"{_called(file)}: is not UTF-8 text; save it as UTF-8") from None


def _numbered(file: Path, rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The pairs, with ids of their own: the second `cat` is `cat-2`, unless that one is there."""
    taken = {name.casefold() for _, name, *_ in rows}
    seen: set[str] = set()
    pairs: list[tuple[str, ...]] = []
    changed: list[str] = []
    for where, name, *texts in rows:
        own = name
        if name.casefold() in seen:
            tries = (f"{name}-{number}" for number in count(2))
            own = next(new for new in tries if new.casefold() not in taken)
            taken.add(own.casefold())
            changed.append(f"{where.removeprefix(f'{_called(file)}, ')} is {own}")
        seen.add(own.casefold())
        pairs.append((own, *texts))
    if changed and rank() == 0:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        listed = "; ".join(changed[:3]) + more
        _log.warning("%s: column `id` has repeated ids; %s", _called(file), listed)
    return pairs


def _prompt(cell: Any, where: str) -> str:
    return check_prompt(_text(cell, where, "prompt"), f"{where}: column `prompt`")


def _text(cell: Any, where: str, column: str) -> str:
    if cell is None:
        return ""
    if isinstance(cell, str) or (isinstance(cell, int) and column == "id"):
        return str(cell)
    raise PromptError(f"{where}: column `{column}` should be text, not {type(cell).__name__}")


def _filled(
    rows: Iterable[tuple[str, Cells]], blank: Callable[[Cells], bool]
) -> Iterator[tuple[str, Cells]]:
    """The rows without blank ones at the end. Raises PromptError for one between others."""
    first = ""
    for where, row in rows:
        if blank(row):
            first = first or where
        elif first:
            raise PromptError(f"{first}: has nothing in it; remove it")
        else:
            yield where, row


def _read_csv(name: str, text: str) -> Iterator[Row]:
    _check_separator(name, text.partition("\n")[0].strip())
    lines = parse_rows(io.StringIO(text, newline=""), name, PromptError)
    header = [cell.strip().lower() for cell in next(lines, (1, []))[1]]
    if "prompt" not in header:
        raise PromptError(f"{name}: has no column `prompt`; begin it with `id,prompt`")
    column = header.index("prompt")
    rows = (
        (f"{name}, row {number} (line {line})", cells)
        for number, (line, cells) in enumerate(lines, start=1)
    )
    for where, cells in _filled(rows, lambda cells: not "".join(cells).strip()):
        if len(cells) > len(header):
            if column != len(header) - 1:
                raise PromptError(
                    f"{where}: has {len(cells)} columns, not {len(header)}; quote cells with commas"
                )
            cells[column:] = [",".join(cells[column:])]
        row: Mapping[str, str] = dict(zip(header, cells, strict=False))
        yield where, row.get("id"), row.get("prompt"), row.get("motion")


def _check_separator(name: str, header: str) -> None:
    """Raise PromptError for a first line of another separator than the comma."""
    right = "separate the columns by commas, as in `id,prompt`"
    if header.lower().startswith("sep="):
        raise PromptError(f"{name}: begins with `{header}`; remove this line, and {right}")
    for what, mark in (("semicolons", ";"), ("tabs", "\t"), ("bars", "|")):
        names = [cell.strip(' "').lower() for cell in header.split(mark)]
        if len(names) > 1 and "prompt" in names:
            raise PromptError(f"{name}: separates its columns by {what}; {right}")


def _read_jsonl(name: str, text: str) -> Iterator[Row]:
    lines = (
        (f"{name}, row {number}", line)
        for number, line in enumerate(io.StringIO(text, newline=None), start=1)
    )
    for where, line in _filled(lines, lambda line: not line.strip()):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise PromptError(f'{where}: is no JSON object; write {{"id": "1", "prompt": "a car"}}')
        yield where, row.get("id"), row.get("prompt"), row.get("motion")


def _read_parquet(file: Path) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise PromptError(f"{file}: needs pyarrow; run pip install 'demo-t2v[cluster]'") from None
    try:
        with file.open("rb") as stream:
            table = parquet.read_table(stream)
    except ArrowException:
        raise PromptError(f"{file}: cannot be read (it is not Parquet)") from None
    except OSError as error:
        raise PromptError(f"{file}: cannot be read ({reason(error, file)})") from None
    if "prompt" not in table.column_names:
        raise PromptError(f"{file}: has no column `prompt`; it has {', '.join(table.column_names)}")
    for number, row in enumerate(table.to_pylist(), start=1):
        yield f"{file}, row {number}", row.get("id"), row.get("prompt"), row.get("motion")
