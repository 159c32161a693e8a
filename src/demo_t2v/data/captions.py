"""Caption tables: CSV files (UTF-8) whose rows name a video and its caption."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path
from unicodedata import normalize

from demo_t2v.core.errors import UserError
from demo_t2v.data.table import read_rows


class ClipError(UserError):
    """Videos or captions that training cannot use."""


def read_captions(file: Path, path_column: str, caption_column: str) -> Iterator[tuple[str, str]]:
    """The (path, caption) pairs of a CSV file with a header.

    `page_dir/videoid` as `path_column` joins two columns by a slash. Raises ClipError for a file
    that cannot be read, is no CSV or lacks a column.
    """
    rows = read_rows(file, ClipError)
    header = [name.strip() for name in next(rows, (1, []))[1]]
    for column in (*path_column.split("/"), caption_column):
        if column not in header:
            columns = ", ".join(header) or "none"
            raise ClipError(f"{file}: has no column {column!r}; the columns are {columns}")
    paths = [header.index(column) for column in path_column.split("/")]
    caption = header.index(caption_column)
    for line, cells in rows:
        if cells and len(cells) != len(header):
            raise ClipError(
                f"{file}, line {line}: has {len(cells)} columns, not {len(header)}; "
                "quote cells with commas"
            )
        if cells:
            path = "/".join(filter(None, (cells[column].strip() for column in paths)))
            yield path, cells[caption].strip()


def find_video(folder: Path, key: str) -> Path:
    """The file below `folder` for a path of a caption table, with or without the suffix `.mp4`.

    Suffixes may be upper case, and names composed or decomposed Unicode, as on macOS. If no such
    file exists, the result is its most likely name.
    """
    for name in Path(key).parts[:-1]:
        forms = [folder / form for form in _forms(name)]
        folder = next(filter(Path.is_dir, forms), forms[0])
    name = Path(key).name
    for form in _forms(name):
        suffix = Path(form).suffix
        stem = form.removesuffix(suffix)
        suffixes = (suffix, f"{suffix}.mp4", f"{suffix}.MP4", suffix.lower(), suffix.upper())
        for file in (folder / f"{stem}{other}" for other in suffixes):
            if file.is_file():
                return file
    return folder / f"{name}.mp4"


def _forms(name: str) -> list[str]:
    """A name unchanged, composed and decomposed, without repetitions."""
    return [*dict.fromkeys([name, normalize("NFC", name), normalize("NFD", name)])]


class TextList:
    """A list of texts in two buffers, which forked processes share without copying."""

    def __init__(self) -> None:
        self._bytes, self._ends = bytearray(), array("q", [0])

    def append(self, text: str) -> None:
        self._bytes += text.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        text = self._bytes[self._ends[index] : self._ends[index + 1]]
        return text.decode("utf-8", "surrogatepass")
