"""Captioned clips from videos on disk: a caption CSV and a folder (the WebVid layout).

Any other layout is a class of one's own with `__len__` and `clip`, some twenty lines: see
docs/own_dataset.md.
"""

from __future__ import annotations

import csv
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from demo_t2v.core.atomic_io import atomic_write, make_folder
from demo_t2v.core.errors import UserError
from demo_t2v.data.sprites import draw_clip, draw_pose
from demo_t2v.data.table import read_rows
from demo_t2v.data.video import Sampling, VideoError, sample_video, write_video

_ENOUGH: Final = 100
"""Videos to be tried before the share of bad ones means anything; and at most for one clip."""
_EXAMPLES: Final = 3
"""Bad videos that a message names."""


class ClipError(UserError):
    """Videos or captions that cannot be trained on; the message is one line for a person."""


@dataclass(frozen=True)
class CaptionedClip:
    """One clip; `frames` is uint8 RGB of shape (F, H, W, 3), `key` names the video.

    `skipped` has a line for each bad video that was passed over to get this clip.
    """

    frames: NDArray[np.uint8]
    caption: str
    key: str
    skipped: tuple[str, ...] = ()


class ClipSource(Protocol):
    """What training reads: anything with a length that cuts a clip from its n-th video."""

    def __len__(self) -> int: ...

    def clip(self, index: int, seed: int) -> CaptionedClip:
        """A clip of video `index`, below the length; the same for the same (index, seed)."""
        ...


@dataclass(frozen=True)
class ClipItems:
    """A source as torch's DataLoader takes it: the sampler yields pairs (index, seed)."""

    source: ClipSource

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, item: tuple[int, int]) -> CaptionedClip:
        return self.source.clip(*item)


@dataclass
class BadVideos:
    """Counts the videos that this process tried, and keeps the bad ones' reasons by their keys.

    `where` names the data in messages. Of the videos at most `max_share` may be bad; that is
    judged as soon as a hundred were tried.
    """

    where: str
    max_share: float
    tried: int = 0
    failed: int = 0
    reasons: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.max_share <= 1:
            raise ClipError(f"max_bad_share is a share from 0 to 1, not {self.max_share:g}")

    def add(self, key: str, error: OSError | ValueError) -> str:
        """Note a bad video; returns its line. Raises ClipError when there are too many."""
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        self.failed += 1
        self.reasons[key] = reason
        if self.tried >= _ENOUGH and self.failed > self.max_share * self.tried:
            raise ClipError(
                f"{self.where}: {self.failed} of {self.tried} videos could not be used, more than "
                f"the share of {self.max_share:g} that may be bad: {self.examples()}"
            )
        return f"{key}: {reason}"

    def examples(self) -> str:
        """The first few, as a part of a message."""
        named = [f"{key} ({reason})" for key, reason in list(self.reasons.items())[:_EXAMPLES]]
        return ", ".join(named) + (", ..." if len(self.reasons) > _EXAMPLES else "")


class VideoClips:
    """Clips of the videos that a caption CSV (UTF-8) names: `clip(index, seed)`.

    The defaults are WebVid's layout: the file is `<videos>/<videoid>.mp4`, the caption stands in
    `name`. `path_column` names the column of a path below `videos` (`find_video`);
    `page_dir/videoid` joins two columns. How a clip is cut: `Sampling`.

    A video that is missing, damaged or too short is passed over: the same (index, seed) then
    draws other videos until one is good. `bad` counts and lists them; where more than
    `max_bad_share` of the videos are bad, or none is good in a row of a hundred, that is a
    ClipError. So is a CSV that cannot be used, at once. Nothing stays open, and nothing but
    `bad` changes while reading, which every worker process keeps for itself.
    """

    def __init__(
        self,
        captions: Path,
        videos: Path,
        *,
        frames: int = Sampling.frames,
        fps: float = Sampling.fps,
        resolution: int = Sampling.resolution,
        path_column: str = "videoid",
        caption_column: str = "name",
        max_bad_share: float = 0.1,
        repeat_frames: bool = False,
    ) -> None:
        self.sampling = Sampling(frames, fps, resolution, repeat_frames)
        self.bad = BadVideos(str(captions), max_bad_share)
        self._videos = videos
        if not videos.is_dir():
            raise ClipError(f"{videos}: is no folder of videos")
        self._keys, self._captions = _Texts(), _Texts()
        for key, caption in read_captions(captions, path_column, caption_column):
            self._keys.append(key)
            self._captions.append(caption)
        if not len(self):
            raise ClipError(f"{captions}: names no videos, it has only a header")

    def __len__(self) -> int:
        return len(self._keys)

    def video(self, index: int) -> tuple[str, Path, str]:
        """Key, file and caption of a row. Raises ClipError when one of them is empty."""
        key, caption = self._keys[index], self._captions[index]
        if not key or not caption:
            raise ClipError("has no caption" if key else "has no path")
        return key, find_video(self._videos, key), caption

    def name(self, index: int) -> str:
        """What a message calls a row."""
        return self._keys[index] or f"row {index + 1}"

    def clip(self, index: int, seed: int) -> CaptionedClip:
        """A clip from row `index`, or from another where that is bad; `seed` is not negative."""
        skipped: list[str] = []
        for row in self._candidates(index, seed):
            self.bad.tried += 1
            try:
                key, file, caption = self.video(row)
                rng = np.random.default_rng([seed, row])
                frames = sample_video(file, self.sampling, rng)
            except (ClipError, VideoError, OSError) as error:
                skipped.append(self.bad.add(self.name(row), error))
            else:
                return CaptionedClip(frames, caption, key, tuple(skipped))
        raise ClipError(
            f"{self.bad.where}: none of {len(skipped)} videos in a row could be used: "
            f"{self.bad.examples()}"
        )

    def _candidates(self, index: int, seed: int) -> Iterator[int]:
        """The row asked for, then random ones: a gap in the data wears out no neighbour of it."""
        if not 0 <= index < len(self):
            raise IndexError(f"there is no row {index} of {len(self)}")
        yield index
        rng = np.random.default_rng([seed, index, len(self)])
        yield from rng.integers(len(self), size=_ENOUGH - 1).tolist()


class SpriteClips:
    """The sprite world without files: video `index` is a drawing, and its one clip all of it.

    A clip of one frame shows a moment of a clip of 16.
    """

    def __init__(
        self,
        clips: int,
        *,
        seed: int = 0,
        resolution: int = 64,
        frames: int = 16,
        emphasis: Mapping[str, int] | None = None,
        poses: float = 0.0,
    ) -> None:
        self._clips, self._seed = clips, seed
        self._resolution, self._frames = resolution, frames
        self._emphasis, self._poses = emphasis, poses

    def __len__(self) -> int:
        return self._clips

    def clip(self, index: int, seed: int) -> CaptionedClip:  # noqa: ARG002
        """Drawing `index`, whatever the seed."""
        rng = np.random.default_rng([self._seed, index])
        if self._poses and rng.random() < self._poses:
            drawn = draw_pose(rng, self._resolution, self._frames)
        else:
            drawn = draw_clip(
                rng,
                self._resolution,
                self._frames,
                still=self._frames == 1,
                emphasis=self._emphasis,
            )
        return CaptionedClip(drawn.frames, drawn.caption, f"sprite {index}")


class _Texts:
    """A list of texts in two blocks of memory, which forked workers share and never copy."""

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


def find_video(folder: Path, key: str) -> Path:
    """The file below `folder` that a caption table names, with or without the ending `.mp4`.

    Endings may be upper case, and names composed or decomposed Unicode, as on macOS. Where there
    is no such file, its most likely name.
    """
    for name in Path(key).parts[:-1]:
        forms = [folder / form for form in _forms(name)]
        folder = next(filter(Path.is_dir, forms), forms[0])
    name = Path(key).name
    for form in _forms(name):
        stem, ending = form[: len(form) - len(Path(form).suffix)], Path(form).suffix
        endings = (ending, f"{ending}.mp4", f"{ending}.MP4", ending.lower(), ending.upper())
        for file in (folder / f"{stem}{other}" for other in endings):
            if file.is_file():
                return file
    return folder / f"{name}.mp4"


def _forms(name: str) -> list[str]:
    """A name as it is, composed and decomposed."""
    return [*dict.fromkeys([name, normalize("NFC", name), normalize("NFD", name)])]


def read_captions(file: Path, path_column: str, caption_column: str) -> Iterator[tuple[str, str]]:
    """The (path, caption) pairs of a CSV file with a header; slashes in `path_column` join columns.

    Raises ClipError for a file that is no such CSV.
    """
    rows = read_rows(file, ClipError)
    header = [name.strip() for name in next(rows, (1, []))[1]]
    for column in (*path_column.split("/"), caption_column):
        if column not in header:
            there = ", ".join(header) or "none"
            raise ClipError(f"{file}: has no column {column!r}; the columns are {there}")
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


def write_sprite_dataset(
    folder: Path,
    clips: int,
    *,
    seed: int = 0,
    resolution: int = 64,
    frames: int = Sampling.frames,
    fps: int = int(Sampling.fps),
    on_clip: Callable[[], None] | None = None,
) -> Path:
    """Write the sprite world as a data set of WebVid's layout; returns the caption CSV.

    `folder` gets `videos/<videoid>.mp4` and `captions.csv` with the columns `videoid,name`. The
    same arguments always mean the same drawings and captions (x264 may encode them a little
    differently), and videos that are there already are kept, so an interrupted run goes on;
    `on_clip` hears of each clip. Raises ClipError, VideoError for a size that mp4 cannot hold,
    PathError, OSError.
    """
    if clips < 1:
        raise ClipError(f"a data set needs at least one clip, not {clips}")
    make_folder(folder / "videos")
    captions = folder / "captions.csv"
    with (
        atomic_write(captions) as partial,
        partial.open("w", encoding="utf-8", newline="") as stream,
    ):
        table = csv.writer(stream)
        table.writerow(["videoid", "name"])
        for number in range(clips):
            # All that shapes a clip is in its name: one of another run is never taken for it.
            name = f"sprites-{seed}-{resolution}-{frames}-{fps}-{number:06d}"
            video = folder / "videos" / f"{name}.mp4"
            there = video.exists()
            # Captions do not depend on the resolution: of a clip that is there, draw little.
            clip = draw_clip(
                np.random.default_rng([seed, number]), 8 if there else resolution, frames
            )
            if not there:
                with atomic_write(video) as unfinished:
                    write_video(clip.frames, unfinished, fps, "mp4")
            table.writerow([name, clip.caption])
            if on_clip:
                on_clip()
    return captions
