"""The results of one visitor."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from demo_t2v.config.inference import label
from demo_t2v.web.request import GenerationRequest

HISTORY_LENGTH: Final = 24
"""Results of a visitor; older ones are deleted."""


@dataclass(frozen=True)
class VideoFiles:
    """One video; examples have no GIF."""

    mp4: Path
    gif: Path | None = None


@dataclass(frozen=True)
class GenerationResult:
    """The videos of a request. `folder` contains its files and nothing else."""

    request: GenerationRequest
    folder: Path
    videos: tuple[VideoFiles, ...]
    picture: Path | None
    """Optical flow (tab `compare`) or motion attention (tab `attention`) over the frames."""
    command: str
    """Command lines that make the same videos."""
    seconds: float

    @property
    def files_exist(self) -> bool:
        """Whether no file is deleted; the page's server deletes files after a day."""
        files = [file for video in self.videos for file in (video.mp4, video.gif)]
        return all(file.exists() for file in [*files, self.picture] if file is not None)

    @property
    def caption(self) -> str:
        """The prompt and the main settings, one line of plain text."""
        request = self.request
        words = [request.prompt, f"seed {request.seed}", f"{request.num_inference_steps} steps"]
        if request.tab == "compare":
            words.append("motion off and on")
        elif request.tab == "attention":
            words.append("attention")
        elif request.tab in ("decompose", "grid"):
            words += [f"“{request.motion_prompt}”"] if request.motion_prompt else []
            words += [f"{label(name).lower()} {value:g}" for name, value in request.handles.items()]
        return " · ".join(words).replace("\n", " / ")


@dataclass(frozen=True)
class History:
    """Results of one visitor, newest first. It is immutable; `add` returns a new one."""

    results: tuple[GenerationResult, ...] = ()

    def add(self, result: GenerationResult) -> History:
        """The history with one more result. Files of results beyond HISTORY_LENGTH are deleted."""
        results = (result, *self.results)
        History(results[HISTORY_LENGTH:]).delete_files()
        return History(results[:HISTORY_LENGTH])

    def delete_files(self) -> None:
        """Delete the files of all results."""
        for result in self.results:
            shutil.rmtree(result.folder, ignore_errors=True)

    def gallery(self) -> list[tuple[str, str]]:
        """The last video, as a GIF, and the caption of each result."""
        return [(str(result.videos[-1].gif), result.caption) for result in self.results]
