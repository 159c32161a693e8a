"""The published `.pth` files: read without running what is in them, tensors left on the disk.

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
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from demo_t2v.weights.hub import ModelError, first_line

_BELOW: Final = ("unet_state_dict", "state_dict")
_AGAIN: Final = "download it again"


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
