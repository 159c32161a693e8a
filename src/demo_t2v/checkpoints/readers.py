"""What every other file of this package needs: repository names, readers of JSON and tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from demo_t2v.model_folder import ModelError, first_line

if TYPE_CHECKING:
    from torch import Tensor

PUBLISHED: Final = ("ali-vilab/modelscope-damo-text-to-video-synthesis", "Ryan-PR/DEMO")
"""The hub's repositories of the published weights: the base model's, and DEMO's."""


def read_object(file: Path) -> dict[str, Any]:
    """The object in one of a model's JSON files. Raises ModelError."""
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ModelError(f"{file}: is missing; the model folder is incomplete") from None
    except (ValueError, RecursionError):
        tree = None
    if not isinstance(tree, dict):
        raise ModelError(f"{file}: is not the JSON of a model")
    return tree


def read_tensors(file: Path) -> dict[str, Tensor]:
    """A safetensors file's tensors by name, mapped into memory. Raises ModelError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file}: cannot be read ({first_line(error)})") from None
    return tensors
