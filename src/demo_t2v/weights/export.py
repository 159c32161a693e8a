"""This project's folders and checkpoints -> the published `.pth` files, for the published code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from demo_t2v.models.tensors import NamesError
from demo_t2v.models.unet import DemoUNet
from demo_t2v.outputs import whole_or_nothing
from demo_t2v.weights.hub import ModelError, first_line
from demo_t2v.weights.names import denoiser_to_published
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
    unet = _network(source, trained.denoiser)
    try:
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
    state = {name: tensor for file in reversed(found) for name, tensor in _load(file).items()}
    return _Trained(_below("unet.", state), _below("motion_encoder.", state))


def _below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): w for k, w in state.items() if k.startswith(prefix)}


def _tensors(folder: Path, part: str) -> dict[str, Tensor]:
    """All tensors of one network; none where the pipeline has no such network."""
    files = sorted((folder / part).glob(f"{_STEM[part]}*.safetensors"))
    return {name: tensor for file in files for name, tensor in _load(file).items()}


def _load(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file}: cannot be read ({first_line(error)})") from None


def _network(source: Path, denoiser: Mapping[str, Tensor]) -> DemoUNet:
    """The denoiser of these tensors on the meta device, as far as its names depend on it."""
    first, into = denoiser.get("conv_in.weight"), denoiser.get("transformer_in.proj_in.weight")
    if first is None or into is None:
        raise ModelError(f"{source}: holds no video denoiser; only such a one can be published")
    listening = denoiser.get("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight")
    with torch.device("meta"):
        network: DemoUNet = DemoUNet(
            in_channels=first.shape[1],
            out_channels=first.shape[1],
            block_out_channels=[len(first) * times for times in (1, 2, 4, 4)],
            num_input_heads=len(into) // 64,
            cross_attention_dim=1024 if listening is None else listening.shape[1],
            motion=any("motion_attentions." in name for name in denoiser),
        )
    return network


def _encoder(trained: _Trained, clip: Path) -> dict[str, Tensor]:
    published = read_published(clip)
    missing = [name for name in HEAD if name not in published]
    if missing:
        raise ModelError(f"{clip}: has no {', '.join(missing)}; it is no file of OpenCLIP's")
    return {**to_openclip(trained.motion_encoder), **{name: published[name] for name in HEAD}}
