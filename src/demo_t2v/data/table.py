"""CSV files row by row, with one-line errors."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path

from demo_t2v.core.atomic_io import reason

Rows = Iterator[tuple[int, list[str]]]
"""Rows, including the header and empty lines, each with the number of its last line."""


def read_rows(file: Path, error_type: type[ValueError]) -> Rows:
    """The rows of a UTF-8 file.

    Raises `error_type` when the file cannot be read, is not UTF-8 or no CSV.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            yield from parse_rows(stream, str(file), error_type)
    except OSError as error:
        raise error_type(f"{file}: cannot be read ({reason(error, file)})") from None
    except UnicodeDecodeError:
        raise error_type(f"{file}: is not UTF-8 text; save it as UTF-8") from None


def parse_rows(lines: Iterable[str], name: str, error_type: type[ValueError]) -> Rows:
    """The rows of lines; `name` stands in messages. Raises `error_type` when they are no CSV."""
    reader = csv.reader(lines, strict=True)
    try:
        for cells in reader:
            yield reader.line_num, cells
    except csv.Error as error:
        where = f"{name}, line {reader.line_num}"
        if "field limit" in str(error):
            most = f"{csv.field_size_limit():,}"
            raise error_type(
                f"{where}: has a cell of more than {most} characters; shorten it"
            ) from None
        raise error_type(f"{where}: is not valid CSV ({error}); double inner quotes") from None
