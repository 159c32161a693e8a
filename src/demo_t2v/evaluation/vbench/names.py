"""Names of the videos that VBench measures: `{prompt}-{index}.mp4`.

VBench reads the prompt from the name, unless a file of prompts by name is given
(`get_prompt_from_filename` and `--prompt_file` in Vchitect/VBench).
"""

from __future__ import annotations

import hashlib
import re
from pathlib import PurePath
from typing import Final

ENDING: Final = ".mp4"
"""The format that each dimension of VBench reads."""
_LONGEST: Final = 255
"""Bytes of a file's name on common file systems."""
_FORBIDDEN: Final = re.compile('[\x00-\x1f\x7f<>:"/\\\\|?*\ud800-\udfff]')
"""Characters that some file system has in no name."""
_INDEX: Final = re.compile(r"-(\d+)$")


def video_name(prompt: str, index: int) -> str:
    """The name of the video with this number of this prompt.

    A prompt that cannot be part of a name is cut to 255 bytes, with "_" for characters that
    cannot be in one, and a hash keeps different prompts apart. No prompt of VBench's own list
    needs that.
    """
    ending = f"-{index}{ENDING}"
    stem = _FORBIDDEN.sub("_", prompt)
    room = _LONGEST - len(ending)
    if stem != prompt or len(stem.encode()) > room:
        mark = "~" + hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:12]
        stem = stem.encode()[: room - len(mark)].decode("utf-8", "ignore") + mark
    return stem + ending


def split_name(name: str) -> tuple[str, int]:
    """The prompt that VBench reads from a video's name, and its number; -1 without one."""
    stem = PurePath(name).stem
    found = _INDEX.search(stem)
    return (stem[: found.start()], int(found[1])) if found else (stem, -1)
