"""The published files: where they lie, and their tensors, read without running what is in them.

Of ali-vilab/modelscope-damo-text-to-video-synthesis on the hub:

    text2video_pytorch_model.pth    the base denoiser
    VQGAN_autoencoder.pth           the autoencoder, below `state_dict`
    open_clip_pytorch_model.bin     OpenCLIP ViT-H-14, both towers

Of Ryan-PR/DEMO:

    demo.pth                        DEMO's denoiser, below `unet_state_dict`
    motion_encoder.pth              OpenCLIP's text tower
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from demo_t2v.weights.hub import PUBLISHED, ModelError, first_line
from demo_t2v.weights.names import has_motion

BASE: Final = "text2video_pytorch_model.pth"
AUTOENCODER: Final = "VQGAN_autoencoder.pth"
CLIP: Final = "open_clip_pytorch_model.bin"
DEMO: Final = "demo.pth"
MOTION_ENCODER: Final = "motion_encoder.pth"
BASE_REPOSITORY, DEMO_REPOSITORY = PUBLISHED

_BELOW: Final = ("unet_state_dict", "state_dict")
_AGAIN: Final = "download it again"


@dataclass(frozen=True)
class PublishedFiles:
    """The files of one model: the base model's, or DEMO's if there is a motion encoder."""

    denoiser: Path
    autoencoder: Path
    clip: Path
    motion_encoder: Path | None = None

    @classmethod
    def find(cls, place: Path) -> PublishedFiles | None:
        """The files in a folder, or beside a denoiser's file; None where there is no denoiser.

        A folder with both denoisers is DEMO. Raises ModelError, with one line, if some of the
        others are missing, or if a denoiser's file is not what its name says.
        """
        if place.is_file() and place.suffix == ".pth":
            denoiser = place
        else:
            found = [place / name for name in (DEMO, BASE) if (place / name).is_file()]
            if not found:
                return None
            denoiser = found[0]
        return cls.of(
            denoiser, {name: denoiser.parent / name for name in (AUTOENCODER, CLIP, MOTION_ENCODER)}
        )

    @classmethod
    def of(cls, denoiser: Path, company: Mapping[str, Path]) -> PublishedFiles:
        """The denoiser's file with the others that it needs, which are found by their names."""
        motion = has_motion(read_published(denoiser))
        if motion and denoiser.name == BASE:
            raise ModelError(f"{denoiser}: holds DEMO's denoiser, not the base one; call it {DEMO}")
        if not motion and denoiser.name == DEMO:
            raise ModelError(
                f"{denoiser}: holds the base denoiser, which has no motion transformers; it is "
                f"{BASE} under another name"
            )
        needed = (AUTOENCODER, CLIP, MOTION_ENCODER)[: 3 if motion else 2]
        missing = [name for name in needed if not company[name].is_file()]
        if missing:
            raise ModelError(f"{denoiser}: needs {', '.join(missing)} beside it")
        return cls(
            denoiser,
            company[AUTOENCODER],
            company[CLIP],
            company[MOTION_ENCODER] if motion else None,
        )

    def __iter__(self) -> Iterator[Path]:
        files = (self.denoiser, self.autoencoder, self.clip, self.motion_encoder)
        return (file for file in files if file is not None)


def read_published(file: Path) -> dict[str, Tensor]:
    """A published file's tensors by name, mapped into memory rather than read.

    Raises ModelError, with one line, for a file that is not there, is damaged or cut short, holds
    more than tensors, or holds none.
    """
    content = _load(file)
    for name in _BELOW:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not content:
        raise ModelError(f"{file}: holds no tensors by name; it is not one of the published files")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ModelError(
                f"{file}: {name} is no tensor but {type(value).__name__}; it is not one of the "
                "published files"
            )
    return content


def _load(file: Path) -> Any:
    if not file.is_file():
        raise ModelError(f"{file}: there is no such file")
    # Files of before 2020 are no zip archives, and can only be read whole.
    zipped = zipfile.is_zipfile(file)
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        if "unsupported global" in str(error).lower():  # a class or function by its name
            raise ModelError(
                f"{file}: would run code when it is read, or holds more than tensors; refused"
            ) from None
        raise ModelError(f"{file}: is damaged, or no file of weights; {_AGAIN}") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        problem = f"is damaged or cut short ({first_line(error)})"
        raise ModelError(f"{file}: {problem}; {_AGAIN}") from None
