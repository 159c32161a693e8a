"""This project's folders and checkpoints -> the published `.pth` files, for the published code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from demo_t2v.models.tensors import NamesError, below
from demo_t2v.outputs import whole_or_nothing
from demo_t2v.weights.hub import ModelError, read_tensors
from demo_t2v.weights.names import denoiser_to_published, publishable_denoiser
from demo_t2v.weights.openclip import HEAD, to_openclip
from demo_t2v.weights.published import BASE, DEMO, MOTION_ENCODER, read_published

_STEM: Final = {"unet": "diffusion_pytorch_model", "motion_encoder": "model"}


@dataclass(frozen=True)
class _Trained:
    """What training changes: the tensors of the denoiser and, for DEMO, of its motion encoder."""

    denoiser: Mapping[str, Tensor]
    motion_encoder: Mapping[str, Tensor]


def export(source: Path, out: Path, clip: Path | None = None) -> None:
    """Write `demo.pth` and `motion_encoder.pth` into a new folder; of a base model, its one file.

    `source` is a pipeline's folder, a training run's `log_dir` or a checkpoint of one
    (`checkpoints/00000400`: the averaged weights if there are any). What follows OpenCLIP's text
    tower is no part of a pipeline, but of `motion_encoder.pth`; so it is taken from `clip`,
    OpenCLIP's published file. Raises ModelError, and then writes nothing.
    """
    trained = _read(source)
    try:
        with torch.device("meta"):
            unet = publishable_denoiser(trained.denoiser)
        denoiser = denoiser_to_published(trained.denoiser, unet)
    except NamesError as error:
        raise ModelError(f"{source}: has no published layout ({error})") from None
    files: dict[str, Any]
    if not unet.config.motion:
        files = {BASE: denoiser}
    else:
        if clip is None:
            raise ModelError(
                f"{MOTION_ENCODER}: holds {' and '.join(sorted(HEAD))} too; give --clip "
                "open_clip_pytorch_model.bin, which has them"
            )
        files = {DEMO: {"unet_state_dict": denoiser}, MOTION_ENCODER: _encoder(trained, clip)}
    with whole_or_nothing(out) as folder:
        for name, content in files.items():
            torch.save(content, folder / name)


def _read(source: Path) -> _Trained:
    folder = source / "final" if (source / "final").is_dir() else source
    if (folder / "unet").is_dir():
        return _Trained(_tensors(folder, "unet"), _tensors(folder, "motion_encoder"))
    found = [folder / f"{name}.safetensors" for name in ("average", "weights")]
    found = [file for file in found if file.is_file()]
    if not found:
        raise ModelError(
            f"{source}: is no pipeline's folder, no training run with a `final` and no checkpoint"
        )
    # A checkpoint's average has only what was trained.
    state = {
        name: tensor for file in reversed(found) for name, tensor in read_tensors(file).items()
    }
    return _Trained(below("unet", state), below("motion_encoder", state))


def _tensors(folder: Path, part: str) -> dict[str, Tensor]:
    """All tensors of one network; none where the pipeline has no such network."""
    files = sorted((folder / part).glob(f"{_STEM[part]}*.safetensors"))
    return {name: tensor for file in files for name, tensor in read_tensors(file).items()}


def _encoder(trained: _Trained, clip: Path) -> dict[str, Tensor]:
    published = read_published(clip)
    missing = [name for name in HEAD if name not in published]
    if missing:
        raise ModelError(f"{clip}: has no {', '.join(missing)}; it is no file of OpenCLIP's")
    return {**to_openclip(trained.motion_encoder), **{name: published[name] for name in HEAD}}
