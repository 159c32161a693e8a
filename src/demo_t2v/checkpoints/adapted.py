"""Adapted models: folders that hold only what differs from another model, their base.

`model_index.json` names the base (`base_model`, as for `--model`) and the defaults of a call,
`scheduler` is a scheduler's folder, and `unet` holds an adapter (LoRA, arXiv 2106.09685) in place
of the weights. The complete model is put together once, in the cache.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Final

from demo_t2v.checkpoints.fingerprint import cache, fingerprint
from demo_t2v.checkpoints.readers import read_object
from demo_t2v.core.atomic_io import atomic_write, make_folder
from demo_t2v.model_folder import ModelError, first_line
from demo_t2v.pipeline import DemoPipeline

BASE_KEY: Final = "base_model"
_DEFAULTS: Final = ("num_inference_steps", "guidance_scale", "negative_prompt")
_VERSION: Final = 1  # raised where the same files become another model


def save_adapted(pipeline: DemoPipeline, folder: Path, base: str) -> None:
    """Save the adapter of a pipeline's denoiser, its scheduler and its defaults.

    `base` is the name of the model that the adapter was trained on.
    """
    make_folder(folder)
    pipeline.save_lora_weights(folder / "unet")
    pipeline.scheduler.save_pretrained(folder / "scheduler")
    index = {"_class_name": type(pipeline).__name__, BASE_KEY: base}
    index |= {key: pipeline.config[key] for key in _DEFAULTS}
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    (folder / "model_index.json").write_text(text, encoding="utf-8")


def assembled(folder: Path, base: Path) -> Path:
    """The complete model of an adapted one and its base's folder. Raises ModelError, LoraError."""
    from filelock import FileLock

    files = f"{_VERSION} {fingerprint(folder)} {fingerprint(base)}"
    complete = cache() / hashlib.sha256(files.encode()).hexdigest()[:16]
    make_folder(cache())
    with FileLock(complete.with_suffix(".lock")):  # of several processes one writes
        if not complete.exists():
            pipeline = _assemble(folder, base)
            with atomic_write(complete) as partial:
                pipeline.save_pretrained(partial)
    return complete


def _assemble(folder: Path, base: Path) -> DemoPipeline:
    import torch
    from diffusers import DDIMScheduler

    from demo_t2v.lora import merge_lora

    index = read_object(folder / "model_index.json")
    missing = [key for key in _DEFAULTS if key not in index]
    if missing:
        raise ModelError(f"{folder / 'model_index.json'}: has no {' and no '.join(missing)}")
    try:
        scheduler = DDIMScheduler.from_pretrained(folder / "scheduler")
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / 'scheduler'}: cannot be read ({first_line(error)})") from None
    pipeline = DemoPipeline.from_pretrained(base, dtype=torch.float32)
    merge_lora(pipeline.unet, folder / "unet", "unet")
    pipeline.register_modules(scheduler=scheduler)
    pipeline.register_to_config(**{key: index[key] for key in _DEFAULTS})
    return pipeline
