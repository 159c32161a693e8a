"""Adapted models (`demo_t2v.model_folder.base_folder`): saving one, and making a complete one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Final

from demo_t2v.checkpoints.fingerprint import cache, fingerprint
from demo_t2v.core.atomic_io import atomic_write, make_folder
from demo_t2v.model_folder import BASE_KEY, DEFAULT_KEYS
from demo_t2v.pipeline import DemoPipeline

_VERSION: Final = 1  # raised where the same files become another model


def save_adapted(pipeline: DemoPipeline, folder: Path, base: Path) -> None:
    """Save the adapter of a pipeline's denoiser, its scheduler and its defaults.

    `base` is the folder of the model that the adapter was trained on.
    """
    make_folder(folder)
    pipeline.save_lora_weights(folder / "unet")
    pipeline.scheduler.save_pretrained(folder / "scheduler")
    index = {"_class_name": type(pipeline).__name__, BASE_KEY: str(base)}
    index |= {key: pipeline.config[key] for key in DEFAULT_KEYS}
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    (folder / "model_index.json").write_text(text, encoding="utf-8")


def complete_folder(folder: Path, base: Path) -> Path:
    """The complete model of an adapted folder and its base, written once, in the cache.

    Raises ModelError, LoraError.
    """
    import torch
    from filelock import FileLock

    files = f"{_VERSION} {fingerprint(folder)} {fingerprint(base)}"
    complete = cache() / hashlib.sha256(files.encode()).hexdigest()[:16]
    cache().mkdir(parents=True, exist_ok=True)
    with FileLock(complete.with_suffix(".lock")):  # of several processes one writes
        if not complete.exists():
            pipeline = DemoPipeline.from_pretrained(folder, dtype=torch.float32)
            with atomic_write(complete) as partial:
                pipeline.save_pretrained(partial)
    return complete
