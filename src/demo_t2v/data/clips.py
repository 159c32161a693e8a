"""Captioned clips: from videos on disk in WebVid's layout, and from the sprite world.

A class for another layout has `__len__` and `clip`, about twenty lines: see docs/own_dataset.md.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from demo_t2v.core.atomic_io import atomic_write, make_folder
from demo_t2v.data.captions import ClipError as ClipError
from demo_t2v.data.captions import TextList, find_video, read_captions
from demo_t2v.data.sprites import draw_clip, draw_pose
from demo_t2v.data.video import Sampling, VideoError, sample_video, write_video

_MIN_TRIED: Final = 100
"""Videos to be tried before the fraction of bad ones is judged; also the most for one clip."""
_EXAMPLES: Final = 3
"""Bad videos listed in a message."""


@dataclass(frozen=True)
class CaptionedClip:
    """One clip; `frames` is uint8 RGB of shape (F, H, W, 3), `key` identifies the video.

    `skipped` has a line for each bad video that was tried before this clip.
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


@dataclass
class BadVideos:
    """Counts of the videos that this process tried, and the reasons of bad ones by their keys.

    `where` names the data in messages. At most the fraction `max_share` of the videos may be bad;
    it is judged once a hundred were tried.
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
        """Record a bad video; returns its line. Raises ClipError when there are too many."""
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        self.failed += 1
        self.reasons[key] = reason
        if self.tried >= _MIN_TRIED and self.failed > self.max_share * self.tried:
            raise ClipError(
                f"{self.where}: {self.failed} of {self.tried} videos could not be used, more than "
                f"the share of {self.max_share:g} that may be bad: {self.examples()}"
            )
        return f"{key}: {reason}"

    def examples(self) -> str:
        """The first few bad videos with their reasons, for a message."""
        first = [f"{key} ({reason})" for key, reason in list(self.reasons.items())[:_EXAMPLES]]
        return ", ".join(first) + (", ..." if len(self.reasons) > _EXAMPLES else "")


class VideoClips:
    """Clips of the videos in a caption CSV (UTF-8): `clip(index, seed)`.

    The defaults are WebVid's layout: the file is `<videos>/<videoid>.mp4`, the caption is in the
    column `name`. `path_column` is the column of a path below `videos` (`find_video`);
    `page_dir/videoid` joins two columns. `Sampling` describes how clips are cut.

    A video that is missing, damaged or too short is skipped: the same (index, seed) draws other
    videos until one is good. `bad` counts and lists skipped videos, in each process separately.
    Raises ClipError for an unusable CSV, when more than the fraction `max_bad_share` of the videos
    is bad, and when a hundred in a row are. No file stays open.
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
        self._keys, self._captions = TextList(), TextList()
        for key, caption in read_captions(captions, path_column, caption_column):
            self._keys.append(key)
            self._captions.append(caption)
        if not len(self):
            raise ClipError(f"{captions}: names no videos, it has only a header")

    def __len__(self) -> int:
        return len(self._keys)

    def video(self, index: int) -> tuple[str, Path, str]:
        """Key, file and caption of a row. Raises ClipError for an empty key or caption."""
        key, caption = self._keys[index], self._captions[index]
        if not key or not caption:
            raise ClipError("has no caption" if key else "has no path")
        return key, find_video(self._videos, key), caption

    def name(self, index: int) -> str:
        """Name of a row in messages."""
        return self._keys[index] or f"row {index + 1}"

    def clip(self, index: int, seed: int) -> CaptionedClip:
        """A clip of row `index`, or of another row if it is bad; `seed` is not negative."""
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
        """Row `index`, then random rows, so that no neighbour of bad rows is used more often."""
        if not 0 <= index < len(self):
            raise IndexError(f"there is no row {index} of {len(self)}")
        yield index
        rng = np.random.default_rng([seed, index, len(self)])
        yield from rng.integers(len(self), size=_MIN_TRIED - 1).tolist()


class SpriteClips:
    """Clips of the sprite world, drawn without files: `clip(index, seed)` is drawing `index`.

    A clip of one frame is a frame of a clip of 16. `emphasis`: see `draw_clip`. `poses` is the
    fraction of clips that `draw_pose` draws.
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
        """Drawing `index`; `seed` is not used."""
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
    """Write a data set of the sprite world in WebVid's layout; returns the caption CSV.

    `folder` gets `videos/<videoid>.mp4` and `captions.csv` with the columns `videoid,name`. The
    same arguments give the same drawings and captions (x264 may encode them slightly differently).
    Existing videos are not written again, so that interrupted runs can be resumed. `on_clip` is
    called after each clip. Raises ClipError for less than one clip, VideoError for a size that mp4
    cannot hold, PathError, OSError.
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
            # The name contains all settings: a clip of other settings is not reused.
            name = f"sprites-{seed}-{resolution}-{frames}-{fps}-{number:06d}"
            video = folder / "videos" / f"{name}.mp4"
            exists = video.exists()
            # Captions do not depend on the resolution: for existing videos, draw 8 pixels.
            clip = draw_clip(
                np.random.default_rng([seed, number]), 8 if exists else resolution, frames
            )
            if not exists:
                with atomic_write(video) as unfinished:
                    write_video(clip.frames, unfinished, fps, "mp4")
            table.writerow([name, clip.caption])
            if on_clip:
                on_clip()
    return captions
