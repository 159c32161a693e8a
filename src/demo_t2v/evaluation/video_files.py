"""The videos of a folder, as they are measured: names, prompts, hashes and frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from demo_t2v.core.atomic_io import digest, reason
from demo_t2v.data.video import Sampling, VideoError, read_video
from demo_t2v.data.whole_clips import read_clip
from demo_t2v.evaluation.errors import EvaluationError
from demo_t2v.evaluation.frame_grids import read_frames
from demo_t2v.evaluation.metrics.metric import VideoClip
from demo_t2v.inference.outputs import read_manifest

ENDINGS: Final = frozenset(
    (".mp4", ".webm", ".gif", ".mov", ".avi", ".mkv", ".m4v", ".mpg", ".mpeg", ".ogv")
)
"""Endings of the files that are measured, in lower case."""
PICTURE_FPS: Final = 8.0
"""Frames a second of a folder of pictures, which states none: the default of `generate`."""


@dataclass(frozen=True)
class ClipFormat:
    """How a video is cut and scaled before it is measured; None leaves it as it is.

    With `frames`, `fps` and `resolution` a clip is cut from the start, `fps` frames a second; its
    short side is scaled to `resolution` pixels and the centre is cropped.
    """

    frames: int | None = None
    fps: float | None = None
    resolution: int | None = None

    def __post_init__(self) -> None:
        given = [value is not None for value in (self.frames, self.fps, self.resolution)]
        if any(given) and not all(given):
            raise EvaluationError("frames, fps and resolution: give all three or none")

    @property
    def sampling(self) -> Sampling | None:
        """The cut that the three values describe; None for complete videos."""
        if self.frames is None or self.fps is None or self.resolution is None:
            return None
        return Sampling(self.frames, self.fps, self.resolution)


@dataclass(frozen=True)
class VideoFile:
    """A video file, or a folder of PNG frames."""

    name: str
    path: Path
    prompt: str = ""
    id: str = ""
    """Its id in the manifest of `demo-t2v generate`, or else its name without the ending."""
    seed: int | None = None
    """Its seed in the manifest."""
    model: str = ""
    """The hash in the manifest of the model that made it."""

    @property
    def folder(self) -> Path:
        """The folder that `name` is a path in."""
        return self.path.parents[self.name.count("/")]

    @cached_property
    def sha256(self) -> str:
        """The hash of its content. Raises OSError."""
        return digest(self.path)

    def read(self, form: ClipFormat) -> VideoClip:
        """Its frames. Raises EvaluationError for a video that does not decode or is too short."""
        try:
            if form.sampling is not None:
                frames = read_clip(self.path, form.sampling, Fraction(PICTURE_FPS))
                return VideoClip(self.name, frames, form.sampling.fps, self.prompt)
            if self.path.is_dir():
                return VideoClip(self.name, read_frames(self.path), PICTURE_FPS, self.prompt)
            return VideoClip(self.name, *read_video(self.path), self.prompt)
        except OSError as error:
            problem = reason(error, self.path)
            raise EvaluationError(f"{self.path}: cannot be read ({problem})") from None
        except VideoError as error:
            raise EvaluationError(str(error)) from None


def list_videos(folder: Path, prompts: Mapping[str, str] | None = None) -> list[VideoFile]:
    """The videos of a folder and of folders in it, in the order of their names.

    A folder that holds PNG files is a video. Prompts are those of `prompts`, by the file's name
    without its ending, or else those of the manifest that `demo-t2v generate` writes. Raises
    EvaluationError for a folder without videos, and for one that cannot be read.
    """
    try:
        return _list(folder, prompts or {})
    except OSError as error:
        raise EvaluationError(f"{folder}: cannot be read ({reason(error, folder)})") from None


def _list(folder: Path, prompts: Mapping[str, str]) -> list[VideoFile]:
    if not folder.is_dir():
        raise EvaluationError(f"{folder}: is no folder of videos")
    pictures = {file.parent for file in folder.rglob("*.png")} - {folder}
    files = {file for file in folder.rglob("*") if file.suffix.lower() in ENDINGS}
    manifests: dict[Path, dict[str, dict[str, Any]]] = {}
    videos = []
    for path in sorted(pictures | {file for file in files if file.is_file()}):
        manifest = manifests.setdefault(path.parent, read_manifest(path.parent))
        entry = manifest.get(path.name, {})
        prompt = prompts.get(path.stem, entry.get("prompt", ""))
        key = str(entry.get("id", path.stem))
        name, seed = path.relative_to(folder).as_posix(), entry.get("seed")
        videos.append(VideoFile(name, path, prompt, key, seed, entry.get("model_hash", "")))
    if not videos:
        kinds = ", ".join(sorted(ending[1:] for ending in ENDINGS))
        raise EvaluationError(f"{folder}: holds no videos ({kinds}, or folders of png)")
    return videos
