"""From a file of prompts to jobs: one video each, with a seed of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from demo_t2v.data.table import read_rows
from demo_t2v.outputs import Job

LONGEST: Final = 10_000
"""Characters in a prompt; CLIP's text encoder hears 77 tokens of it, some 300 characters."""


class PromptError(ValueError):
    """Prompts that cannot be used; the message is one line that names file, row and column."""


def read_prompts(file: Path) -> list[tuple[str, str]]:
    """The (id, prompt) pairs of a file: `.jsonl`, `.parquet`, anything else is CSV.

    A CSV's first line is `id,prompt` or `prompt`; where `prompt` is its last column, commas in it
    need no quotes. JSON lines are objects with `prompt` and, if wanted, `id`; Parquet has these
    columns. Without ids, or where one is empty, the row's number counts (the first row below the
    header is 1). Whatever else is in the file is ignored. Raises PromptError.
    """
    readers = {".jsonl": _read_jsonl, ".parquet": _read_parquet}
    rows = list(_named(readers.get(file.suffix.lower(), _read_csv)(file)))
    if not rows:
        raise PromptError(f"{file}: has no prompts")
    return rows


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


def make_jobs(prompts: Iterable[tuple[str, str]], repeat: int, seed: int) -> list[Job]:
    """`repeat` jobs for each (id, prompt), each with a seed of its own derived from `seed`."""
    return [
        Job(name, prompt, index, sample_seed(seed, name, index))
        for name, prompt in prompts
        for index in range(repeat)
    ]


Row = tuple[str, Any, Any]
"""Where a row stands, for a person; its id and its prompt as they are written."""


def _named(rows: Iterable[Row]) -> Iterator[tuple[str, str]]:
    """Check all rows, and give those without an id their number."""
    seen: dict[str, int] = {}
    for number, (where, name, prompt) in enumerate(rows, start=1):
        prompt = check_prompt(_text(prompt, where, "prompt"), f"{where}: column `prompt`")
        name = _text(name, where, "id").strip() or str(number)
        if name.casefold() in seen:
            other = seen[name.casefold()]
            raise PromptError(
                f"{where}: column `id` repeats {name!r} of row {other}; each needs its own"
            )
        seen[name.casefold()] = number
        yield name, prompt


def _text(cell: Any, where: str, column: str) -> str:
    if cell is None:
        return ""
    if isinstance(cell, str) or (isinstance(cell, int) and column == "id"):
        return str(cell)
    raise PromptError(f"{where}: column `{column}` should be text, not {type(cell).__name__}")


def _read_csv(file: Path) -> Iterator[Row]:
    lines = read_rows(file, PromptError)
    header = [name.strip().lower() for name in next(lines, (1, []))[1]]
    if "prompt" not in header:
        raise PromptError(f"{file}: has no column `prompt`; begin it with `id,prompt`")
    column = header.index("prompt")
    for number, (line, cells) in enumerate(lines, start=1):
        where = f"{file}, row {number} (line {line})"
        if not any(cell.strip() for cell in cells):
            raise PromptError(f"{where}: has nothing in it; remove it")
        if len(cells) > len(header):
            if column != len(header) - 1:
                raise PromptError(
                    f"{where}: has {len(cells)} columns, not {len(header)}; quote cells with commas"
                )
            cells = [*cells[:column], ",".join(cells[column:])]
        row: Mapping[str, str] = dict(zip(header, cells, strict=False))
        yield where, row.get("id"), row.get("prompt")


def _read_jsonl(file: Path) -> Iterator[Row]:
    try:
        with file.open(encoding="utf-8-sig") as stream:
            lines = list(stream)
    except OSError as error:
        raise PromptError(f"{file}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise PromptError(f"{file}: is not UTF-8 text; save it as UTF-8") from None
    for number, line in enumerate(lines, start=1):
        where = f"{file}, row {number}"
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise PromptError(f'{where}: is no JSON object; write {{"id": "1", "prompt": "a car"}}')
        yield where, row.get("id"), row.get("prompt")


def _read_parquet(file: Path) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise PromptError(f"{file}: needs pyarrow; run pip install 'demo-t2v[cluster]'") from None
    try:
        table = parquet.read_table(file)
    except (OSError, ArrowException) as error:
        reason = getattr(error, "strerror", None) or "it is not Parquet"
        raise PromptError(f"{file}: cannot be read ({reason})") from None
    if "prompt" not in table.column_names:
        raise PromptError(f"{file}: has no column `prompt`; it has {', '.join(table.column_names)}")
    for number, row in enumerate(table.to_pylist(), start=1):
        yield f"{file}, row {number}", row.get("id"), row.get("prompt")
