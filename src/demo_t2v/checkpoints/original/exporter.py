"""A model folder or a training checkpoint -> original `.pth` files, for the published code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from demo_t2v.checkpoints.original.files import BASE, DEMO, MOTION_ENCODER, read_torch_file
from demo_t2v.checkpoints.original.importer import check_noise_schedule
from demo_t2v.checkpoints.original.key_maps import denoiser_to_original, infer_denoiser
from demo_t2v.checkpoints.original.openclip import HEAD, text_tower, to_openclip
from demo_t2v.checkpoints.readers import read_tensors
from demo_t2v.core.atomic_io import atomic_write
from demo_t2v.model_folder import ModelError
from demo_t2v.models.state_dicts import (
    StateDictError,
    check_state_dict,
    select_component,
    shapes_of,
)

_STEMS: Final = {
    "unet": "diffusion_pytorch_model",
    "motion_encoder": "model",
    "content_encoder": "model",
}
"""File names of the weights by component, without suffix."""


@dataclass(frozen=True)
class _TrainedWeights:
    """The tensors that training changes; `motion_encoder` is empty for a base model."""

    denoiser: Mapping[str, Tensor]
    motion_encoder: Mapping[str, Tensor]


def export(source: Path, out: Path, clip: Path | None = None, base: Path | None = None) -> None:
    """Write `demo.pth` and `motion_encoder.pth`, or a base model's file, into a new folder.

    `source` is a model folder, a training run's `log_dir` or one of its checkpoints
    (`checkpoints/00000400`; its averaged weights are preferred). A checkpoint holds only what is
    trained; the rest is taken from `base`, the model folder that the training started from.
    `motion_encoder.pth` also holds OpenCLIP's text head, which a pipeline has not; it is taken
    from `clip`, `open_clip_pytorch_model.bin`.

    Raises ModelError, also for a model of another noise schedule than the published code's, and
    then writes nothing.
    """
    trained = _read(source, base)
    try:
        with torch.device("meta"):
            unet = infer_denoiser(trained.denoiser)
        denoiser = denoiser_to_original(trained.denoiser, unet)
    except StateDictError as error:
        raise _unexportable(source, error) from None
    files: dict[str, Any]
    if not unet.config.motion:
        files = {BASE: denoiser}
    else:
        if clip is None:
            raise ModelError(
                f"{MOTION_ENCODER}: holds {' and '.join(sorted(HEAD))} too; give --clip "
                "open_clip_pytorch_model.bin, which has them"
            )
        files = {
            DEMO: {"unet_state_dict": denoiser},
            MOTION_ENCODER: _motion_encoder(source, trained, clip),
        }
    with atomic_write(out, new_folder=True) as folder:
        for name, content in files.items():
            torch.save(content, folder / name)


def _read(source: Path, base: Path | None) -> _TrainedWeights:
    """The weights of a model folder, of a finished run or of a checkpoint completed by `base`."""
    folder = source / "final" if (source / "final").is_dir() else source
    if (folder / "unet").is_dir():
        check_noise_schedule(folder / "scheduler" / "scheduler_config.json")
        return _TrainedWeights(_tensors(folder, "unet"), _tensors(folder, "motion_encoder"))
    files = [folder / "weights.safetensors", folder / "average.safetensors"]
    files = [file for file in files if file.is_file()]
    if not files:
        raise ModelError(
            f"{source}: is no pipeline's folder, no training run with a `final` and no checkpoint"
        )
    # The average has only the trained tensors; they replace the ones of the same name.
    state = {name: tensor for file in files for name, tensor in read_tensors(file).items()}
    denoiser = select_component("unet", state)
    encoder = select_component("motion_encoder", state)
    if base is None:
        return _TrainedWeights(denoiser, encoder)
    if not (base / "unet").is_dir():
        raise ModelError(
            f"{base}: is no pipeline's folder; --base is the model that the training started from"
        )
    check_noise_schedule(base / "scheduler" / "scheduler_config.json")
    # Training starts the motion encoder of a base model as a copy of the content encoder.
    base_encoder = _tensors(base, "motion_encoder") or _tensors(base, "content_encoder")
    return _TrainedWeights(
        _complete(denoiser, _tensors(base, "unet")), _complete(encoder, base_encoder)
    )


def _complete(trained: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The trained tensors, and in their precision those of `base`; empty if none is trained."""
    dtype = next((tensor.dtype for tensor in trained.values()), None)
    return {name: base[name].to(dtype) for name in base if dtype} | dict(trained)


def _tensors(folder: Path, component: str) -> dict[str, Tensor]:
    """All tensors of one network; empty if the pipeline has no such network."""
    files = sorted((folder / component).glob(f"{_STEMS[component]}*.safetensors"))
    return {name: tensor for file in files for name, tensor in read_tensors(file).items()}


def _motion_encoder(source: Path, trained: _TrainedWeights, clip: Path) -> dict[str, Tensor]:
    """The content of `motion_encoder.pth`: the trained text tower and OpenCLIP's text head."""
    original = read_torch_file(clip)
    missing = [name for name in HEAD if name not in original]
    if missing:
        raise ModelError(f"{clip}: has no {', '.join(missing)}; it is no file of OpenCLIP's")
    encoder = to_openclip(trained.motion_encoder)
    try:
        check_state_dict(encoder, shapes_of(text_tower(original)))
    except StateDictError as error:
        raise _unexportable(source, error) from None
    return encoder | {name: original[name] for name in HEAD}


def _unexportable(source: Path, error: StateDictError) -> ModelError:
    is_checkpoint = (source / "state.json").is_file()
    hint = "; a checkpoint has only trained weights: see --base" if is_checkpoint else ""
    return ModelError(f"{source}: does not have the published layout ({error}){hint}")
