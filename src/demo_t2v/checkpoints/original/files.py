"""The published files: where they lie, and their tensors, read without running what is in them.

Of ali-vilab/modelscope-damo-text-to-video-synthesis on the hub:

    text2video_pytorch_model.pth    the base denoiser
    VQGAN_autoencoder.pth           the autoencoder, below `state_dict`
    open_clip_pytorch_model.bin     OpenCLIP ViT-H-14, both towers

Of Ryan-PR/DEMO:

    demo.pth                        DEMO's denoiser, below `unet_state_dict`
    motion_encoder.pth              OpenCLIP's text tower

The published training writes `non_ema_<step>.pth`, as `demo.pth`, and
`non_ema_<step>_motion_encoder.pth`.
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

from demo_t2v.checkpoints.original.key_maps import has_motion
from demo_t2v.checkpoints.resolve import PUBLISHED, ModelError, first_line

BASE: Final = "text2video_pytorch_model.pth"
AUTOENCODER: Final = "VQGAN_autoencoder.pth"
CLIP: Final = "open_clip_pytorch_model.bin"
DEMO: Final = "demo.pth"
MOTION_ENCODER: Final = "motion_encoder.pth"
BASE_REPOSITORY, DEMO_REPOSITORY = PUBLISHED
BASE_FOLDERS: Final = ("modelscopet2v", BASE_REPOSITORY.rpartition("/")[2])
"""What the base model's folder is called in the published code, and after a `git clone`."""

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
        """The files in a folder, or of a denoiser's file; None where there is no denoiser.

        `place` is one of these, or files with commas between them: the denoiser's, the
        autoencoder's, OpenCLIP's and the motion encoder's. What is not listed is taken from beside
        the denoiser, or from the base model's folder (`modelscopet2v`) beside its own folder or in
        `models`. A folder with both denoisers is DEMO; of a training's steps the last one counts.
        Raises ModelError, with one line, if some of the others are missing, or if a denoiser's
        file is not what its name says.
        """
        first, *others = [str(place)] if place.exists() else str(place).split(",")
        denoiser = _denoiser_in(Path(first)) if Path(first).is_dir() else Path(first)
        if denoiser is None or denoiser.suffix != ".pth":
            return None
        if len(others) > 3:
            raise ModelError(f"{place}: lists {len(others) + 1} files; a model has four at most")
        names = (AUTOENCODER, CLIP, MOTION_ENCODER)
        listed = {name: Path(file) for name, file in zip(names, others, strict=False) if file}
        return cls.of(denoiser, _company(denoiser) | listed)

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
            files = ", ".join(company[name].name for name in missing)
            base = f", or in {BASE_FOLDERS[0]}" if {AUTOENCODER, CLIP} & {*missing} else ""
            raise ModelError(f"{denoiser}: needs {files} beside it{base}")
        return cls(
            denoiser,
            company[AUTOENCODER],
            company[CLIP],
            company[MOTION_ENCODER] if motion else None,
        )

    def __iter__(self) -> Iterator[Path]:
        files = (self.denoiser, self.autoencoder, self.clip, self.motion_encoder)
        return (file for file in files if file is not None)


def _denoiser_in(folder: Path) -> Path | None:
    """The denoiser's file in a folder, or in one of the folders below that the release has."""
    for below in (folder, *(folder / name for name in ("demo", "checkpoints", *BASE_FOLDERS))):
        named = [below / name for name in (DEMO, BASE) if (below / name).is_file()]
        steps = [file for file in below.glob("non_ema_*.pth") if file.stem[-1].isdigit()]
        if named or steps:
            return named[0] if named else max(steps, key=lambda file: file.stem)
    return None


def _company(denoiser: Path) -> dict[str, Path]:
    """Where the files that a denoiser needs are, or else should be."""
    home = denoiser.parent
    own = home / f"{denoiser.stem}_{MOTION_ENCODER}"
    of_a_step = own.is_file() or denoiser.stem.startswith("non_ema_")
    near = (home.absolute().parent, Path("models"))
    places = (home, *(folder / name for folder in near for name in BASE_FOLDERS))

    def first(name: str) -> Path:
        return next((p / name for p in places if (p / name).is_file()), home / name)

    return {
        AUTOENCODER: first(AUTOENCODER),
        CLIP: first(CLIP),
        MOTION_ENCODER: own if of_a_step else home / MOTION_ENCODER,
    }


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
