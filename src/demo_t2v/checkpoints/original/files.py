"""The original checkpoint files: where they are, and their tensors.

On the Hugging Face Hub, in ali-vilab/modelscope-damo-text-to-video-synthesis:

    text2video_pytorch_model.pth    the base denoiser
    VQGAN_autoencoder.pth           the autoencoder, under the key `state_dict`
    open_clip_pytorch_model.bin     OpenCLIP ViT-H-14, both towers

In Ryan-PR/DEMO:

    demo.pth                        DEMO's denoiser, under the key `unet_state_dict`
    motion_encoder.pth              OpenCLIP's text tower

DEMO's own training writes `non_ema_<step>.pth` in the format of `demo.pth`, and
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
from demo_t2v.checkpoints.readers import PUBLISHED
from demo_t2v.model_folder import ModelError, first_line

BASE: Final = "text2video_pytorch_model.pth"
AUTOENCODER: Final = "VQGAN_autoencoder.pth"
CLIP: Final = "open_clip_pytorch_model.bin"
DEMO: Final = "demo.pth"
MOTION_ENCODER: Final = "motion_encoder.pth"
BASE_REPOSITORY, DEMO_REPOSITORY = PUBLISHED
BASE_FOLDERS: Final = ("modelscopet2v", BASE_REPOSITORY.rpartition("/")[2])
"""Names of the base model's folder: in the published code, and after a `git clone`."""

_STATE_DICT_KEYS: Final = ("unet_state_dict", "state_dict")


@dataclass(frozen=True)
class PublishedFiles:
    """The files of one model; `motion_encoder` is None for the base model."""

    denoiser: Path
    autoencoder: Path
    clip: Path
    motion_encoder: Path | None = None

    @classmethod
    def find(cls, path: Path) -> PublishedFiles | None:
        """The files that belong to a path; None if it has no denoiser.

        `path` is a folder, the denoiser's file, or a list of files with commas: denoiser,
        autoencoder, OpenCLIP, motion encoder. Files that are not listed are looked for beside the
        denoiser, then in the base model's folder (`modelscopet2v`) beside the denoiser's folder or
        in `models`. A folder with both denoisers is DEMO's; of several training steps the last one
        is taken. Raises ModelError if one of the other files is missing, or if the denoiser's
        tensors are those of the other model.
        """
        first, *others = [str(path)] if path.exists() else str(path).split(",")
        denoiser = _denoiser_in(Path(first)) if Path(first).is_dir() else Path(first)
        if denoiser is None or denoiser.suffix != ".pth":
            return None
        if len(others) > 3:
            raise ModelError(f"{path}: lists {len(others) + 1} files; a model has four at most")
        names = (AUTOENCODER, CLIP, MOTION_ENCODER)
        listed = {name: Path(file) for name, file in zip(names, others, strict=False) if file}
        return cls.of(denoiser, _companion_files(denoiser) | listed)

    @classmethod
    def of(cls, denoiser: Path, companions: Mapping[str, Path]) -> PublishedFiles:
        """The denoiser's file with those of `companions`, by published name, that it needs.

        Raises ModelError as `find` does.
        """
        motion = has_motion(read_torch_file(denoiser))
        if motion and denoiser.name == BASE:
            raise ModelError(f"{denoiser}: holds DEMO's denoiser, not the base one; call it {DEMO}")
        if not motion and denoiser.name == DEMO:
            raise ModelError(
                f"{denoiser}: holds the base denoiser, which has no motion transformers; it is "
                f"{BASE} under another name"
            )
        needed = (AUTOENCODER, CLIP, MOTION_ENCODER)[: 3 if motion else 2]
        missing = [name for name in needed if not companions[name].is_file()]
        if missing:
            files = ", ".join(companions[name].name for name in missing)
            base = f", or in {BASE_FOLDERS[0]}" if {AUTOENCODER, CLIP} & {*missing} else ""
            raise ModelError(f"{denoiser}: needs {files} beside it{base}")
        return cls(
            denoiser,
            companions[AUTOENCODER],
            companions[CLIP],
            companions[MOTION_ENCODER] if motion else None,
        )

    def __iter__(self) -> Iterator[Path]:
        files = (self.denoiser, self.autoencoder, self.clip, self.motion_encoder)
        return (file for file in files if file is not None)


def _denoiser_in(folder: Path) -> Path | None:
    """The denoiser's file in a folder, or in a subfolder of the published code's layout."""
    subfolders = (folder / name for name in ("demo", "checkpoints", *BASE_FOLDERS))
    for parent in (folder, *subfolders):
        named = [parent / name for name in (DEMO, BASE) if (parent / name).is_file()]
        steps = [file for file in parent.glob("non_ema_*.pth") if file.stem[-1].isdigit()]
        if named or steps:
            return named[0] if named else max(steps, key=lambda file: file.stem)
    return None


def _companion_files(denoiser: Path) -> dict[str, Path]:
    """The paths of the files that a denoiser needs, whether they exist or not."""
    own_folder = denoiser.parent
    of_step = own_folder / f"{denoiser.stem}_{MOTION_ENCODER}"
    is_step = of_step.is_file() or denoiser.stem.startswith("non_ema_")
    base_parents = (own_folder.absolute().parent, Path("models"))
    folders = (own_folder, *(parent / name for parent in base_parents for name in BASE_FOLDERS))

    def first(name: str) -> Path:
        found = (folder / name for folder in folders if (folder / name).is_file())
        return next(found, own_folder / name)

    return {
        AUTOENCODER: first(AUTOENCODER),
        CLIP: first(CLIP),
        MOTION_ENCODER: of_step if is_step else own_folder / MOTION_ENCODER,
    }


def read_torch_file(file: Path) -> dict[str, Tensor]:
    """The tensors of a `.pth` or `.bin` file by name, mapped into memory; runs no code of the file.

    Raises ModelError for a file that does not exist, is damaged, or holds anything but tensors.
    """
    content = _load(file)
    for key in _STATE_DICT_KEYS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
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
    # Files of PyTorch before 1.6 are no zip archives and cannot be mapped.
    zipped = zipfile.is_zipfile(file)
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        if "unsupported global" in str(error).lower():  # a class or function other than a tensor's
            raise ModelError(
                f"{file}: would run code when it is read, or holds more than tensors; refused"
            ) from None
        raise ModelError(f"{file}: is damaged, or no file of weights; download it again") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        problem = f"is damaged or cut short ({first_line(error)})"
        raise ModelError(f"{file}: {problem}; download it again") from None
