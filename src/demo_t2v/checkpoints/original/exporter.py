"""This project's folders and checkpoints -> the published `.pth` files, for the published code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from demo_t2v.checkpoints.original.files import BASE, DEMO, MOTION_ENCODER, read_published
from demo_t2v.checkpoints.original.importer import check_published_noise
from demo_t2v.checkpoints.original.key_maps import denoiser_to_published, publishable_denoiser
from demo_t2v.checkpoints.original.openclip import HEAD, text_tower, to_openclip
from demo_t2v.checkpoints.resolve import ModelError, read_tensors
from demo_t2v.core.atomic_io import whole_or_nothing
from demo_t2v.models.state_dicts import NamesError, below, check

_STEM: Final = {
    "unet": "diffusion_pytorch_model",
    "motion_encoder": "model",
    "content_encoder": "model",
}


@dataclass(frozen=True)
class _Trained:
    """What training changes: the tensors of the denoiser and, for DEMO, of its motion encoder."""

    denoiser: Mapping[str, Tensor]
    motion_encoder: Mapping[str, Tensor]


def export(source: Path, out: Path, clip: Path | None = None, base: Path | None = None) -> None:
    """Write `demo.pth` and `motion_encoder.pth` into a new folder; of a base model, its one file.

    `source` is a pipeline's folder, a training run's `log_dir` or a checkpoint of one
    (`checkpoints/00000400`: the averaged weights if there are any). A checkpoint holds only what is
    trained; the rest is taken from `base`, the folder that the training began from. What follows
    OpenCLIP's text tower is no part of a pipeline, but of `motion_encoder.pth`; so it is taken from
    `clip`, OpenCLIP's published file. Raises ModelError, also for a model of other noise than the
    published code samples with, and then writes nothing.
    """
    trained = _read(source, base)
    try:
        with torch.device("meta"):
            unet = publishable_denoiser(trained.denoiser)
        denoiser = denoiser_to_published(trained.denoiser, unet)
    except NamesError as error:
        raise _no_layout(source, error) from None
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
            MOTION_ENCODER: _encoder(source, trained, clip),
        }
    with whole_or_nothing(out) as folder:
        for name, content in files.items():
            torch.save(content, folder / name)


def _read(source: Path, base: Path | None) -> _Trained:
    folder = source / "final" if (source / "final").is_dir() else source
    if (folder / "unet").is_dir():
        check_published_noise(folder / "scheduler" / "scheduler_config.json")
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
    denoiser, encoder = below("unet", state), below("motion_encoder", state)
    if base is None:
        return _Trained(denoiser, encoder)
    if not (base / "unet").is_dir():
        raise ModelError(f"{base}: is no pipeline's folder; --base is what the training began from")
    check_published_noise(base / "scheduler" / "scheduler_config.json")
    # As training does: a motion encoder begins as a copy of the content encoder.
    copied = _tensors(base, "motion_encoder") or _tensors(base, "content_encoder")
    return _Trained(_filled(denoiser, _tensors(base, "unet")), _filled(encoder, copied))


def _filled(trained: Mapping[str, Tensor], frozen: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Both together, in the precision of what is trained; nothing where nothing is trained."""
    kind = next((tensor.dtype for tensor in trained.values()), None)
    return {name: frozen[name].to(kind) for name in frozen if kind} | dict(trained)


def _tensors(folder: Path, part: str) -> dict[str, Tensor]:
    """All tensors of one network; none where the pipeline has no such network."""
    files = sorted((folder / part).glob(f"{_STEM[part]}*.safetensors"))
    return {name: tensor for file in files for name, tensor in read_tensors(file).items()}


def _encoder(source: Path, trained: _Trained, clip: Path) -> dict[str, Tensor]:
    published = read_published(clip)
    missing = [name for name in HEAD if name not in published]
    if missing:
        raise ModelError(f"{clip}: has no {', '.join(missing)}; it is no file of OpenCLIP's")
    encoder = to_openclip(trained.motion_encoder)
    try:
        check(encoder, {name: tuple(t.shape) for name, t in text_tower(published).items()})
    except NamesError as error:
        raise _no_layout(source, error) from None
    return {**encoder, **{name: published[name] for name in HEAD}}


def _no_layout(source: Path, error: NamesError) -> ModelError:
    checkpoint = (source / "state.json").is_file()
    hint = "; what was frozen is in no checkpoint: see --base" if checkpoint else ""
    return ModelError(f"{source}: has no published layout ({error}){hint}")
