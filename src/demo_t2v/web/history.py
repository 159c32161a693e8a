"""What a visitor made so far."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from demo_t2v.web.request import Wish

KEPT: Final = 24
"""Results a visitor, the newest; what is older is deleted."""


@dataclass(frozen=True)
class Clip:
    """One video, in both formats."""

    mp4: Path
    gif: Path


@dataclass(frozen=True)
class Made:
    """What came of a wish. All its files are in `folder`, which holds nothing else."""

    wish: Wish
    folder: Path
    clips: tuple[Clip, ...]
    picture: Path | None
    """The flow of a comparison, or the motion attention of a look inside."""
    command: str
    """What makes the same videos in a terminal."""
    seconds: float

    @property
    def there(self) -> bool:
        """Whether all its files still are: the page's server deletes them after a day."""
        files = [file for clip in self.clips for file in (clip.mp4, clip.gif)]
        return all(file.exists() for file in [*files, self.picture] if file is not None)

    @property
    def caption(self) -> str:
        """The prompt and the settings that matter most, as one line of plain text."""
        wish = self.wish
        words = [wish.prompt, f"seed {wish.seed}", f"{wish.steps} steps"]
        if wish.tab == "compare":
            words.append("motion off and on")
        elif wish.tab == "inside":
            words.append("attention")
        elif wish.tab == "apart":
            heard = f", “{wish.motion_prompt}”" if wish.motion_prompt else ""
            words.append(f"motion {wish.motion_strength:g}{heard}")
        return " · ".join(words)


@dataclass(frozen=True)
class History:
    """One visitor's results, the newest first; it does not change, `add` gives another."""

    made: tuple[Made, ...] = ()

    def add(self, made: Made) -> History:
        """The history with one result more; the files of those that are too many are deleted."""
        kept = (made, *self.made)
        for old in kept[KEPT:]:
            shutil.rmtree(old.folder, ignore_errors=True)
        return History(kept[:KEPT])

    def forget(self) -> None:
        """Delete all files."""
        for old in self.made:
            shutil.rmtree(old.folder, ignore_errors=True)

    def gallery(self) -> list[tuple[str, str]]:
        """A moving picture and a caption of each result."""
        return [(str(made.clips[-1].gif), made.caption) for made in self.made]
