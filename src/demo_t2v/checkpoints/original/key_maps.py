"""Published names and shapes <-> this project's: pure functions on state dicts.

A published name is derived from the name that the same parameter has here, and the list of names
from the network itself; so the two directions cannot drift apart.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from demo_t2v.models.state_dicts import NamesError, Shape, check
from demo_t2v.models.unet import DemoUNet

# The published autoencoder (Latent Diffusion's names; `state_dict` in VQGAN_autoencoder.pth)
AUTOENCODER_PREFIX = "first_stage_model."
AUTOENCODER_LEVELS = 4

# Ours (diffusers') -> published, applied one after another.
_AUTOENCODER_RULES: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"\bdown_blocks\.", "down."),
    # The decoder's levels are counted from the finest.
    (r"\bup_blocks\.(\d+)", lambda found: f"up.{AUTOENCODER_LEVELS - 1 - int(found[1])}"),
    (r"\bmid_block\.resnets\.(\d+)", lambda found: f"mid.block_{int(found[1]) + 1}"),
    (r"\bmid_block\.attentions\.0", "mid.attn_1"),
    (r"\bresnets\.", "block."),
    (r"\b(down|up)samplers\.0\.", r"\1sample."),
    (r"\bconv_shortcut\b", "nin_shortcut"),
    (r"\bgroup_norm\b", "norm"),
    (r"\bto_out\.0\b", "proj_out"),
    (r"\bto_([qkv])\b", r"\1"),
    (r"\bconv_norm_out\b", "norm_out"),
)


def published_autoencoder(width: int = 128) -> AutoencoderKL:
    """The published autoencoder's network, untrained; `width` is its first level's channels."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * AUTOENCODER_LEVELS,
        up_block_types=("UpDecoderBlock2D",) * AUTOENCODER_LEVELS,
        block_out_channels=(width, 2 * width, 4 * width, 4 * width),
        layers_per_block=2,
        latent_channels=4,
        scaling_factor=0.18215,
    )


def published_autoencoder_width(state: Mapping[str, Tensor]) -> int:
    """The `width` of a published autoencoder's tensors, or NamesError."""
    first = state.get(AUTOENCODER_PREFIX + "encoder.conv_in.weight")
    if first is None:
        raise NamesError(f"is no published autoencoder; it has no {AUTOENCODER_PREFIX}encoder")
    return first.shape[0]


def autoencoder_from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published file's `state_dict` as a state dict of `published_autoencoder()`.

    Only the names under `first_stage_model.` are looked at; the width is read from the tensors.
    Raises NamesError for a missing, surplus or misshapen tensor.
    """
    published = {
        name.removeprefix(AUTOENCODER_PREFIX): tensor
        for name, tensor in state.items()
        if name.startswith(AUTOENCODER_PREFIX)
    }
    ours = _autoencoder_shapes(published)
    names = {name: _autoencoder_name(name) for name in ours}
    check(published, {names[name]: _as_convolution(names[name], ours[name]) for name in ours})
    return {name: published[names[name]].reshape(shape) for name, shape in ours.items()}


def autoencoder_to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse: the `state_dict` of the published file, every name with its prefix.

    Raises NamesError for a missing, surplus or misshapen tensor.
    """
    check(state, _autoencoder_shapes(state))
    published = {_autoencoder_name(name): tensor for name, tensor in state.items()}
    return {
        AUTOENCODER_PREFIX + name: tensor.reshape(_as_convolution(name, tuple(tensor.shape)))
        for name, tensor in published.items()
    }


def _autoencoder_shapes(state: Mapping[str, Tensor]) -> dict[str, Shape]:
    """Our names and shapes, for the width of the autoencoder in `state` (in either naming)."""
    first = state.get("encoder.conv_in.weight")
    width = 128 if first is None else first.shape[0]
    with torch.device("meta"):
        tensors = published_autoencoder(width).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _autoencoder_name(ours: str) -> str:
    for pattern, replacement in _AUTOENCODER_RULES:
        ours = re.sub(pattern, replacement, ours)
    return ours


def _as_convolution(published: str, shape: Shape) -> Shape:
    """Attention's linear maps are published as 1x1 convolutions: (C, C) -> (C, C, 1, 1)."""
    return (*shape, 1, 1) if ".attn_1." in published and len(shape) == 2 else shape


# The denoiser: ModelScopeT2V's names, and DEMO's, which insert a motion transformer in each group
_RESNET: Final[Mapping[str, str]] = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_ENDS: Final[Mapping[str, str]] = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "input_blocks.0.1": "transformer_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_TRANSFORMERS: Final = ("attentions", "motion_attentions", "temp_attentions")


def has_motion(published: Iterable[str]) -> bool:
    """Whether a denoiser's tensors, by their published names, are DEMO's: its middle is longer."""
    return any(name.startswith("middle_block.4.") for name in published)


def published_denoiser(state: Mapping[str, Tensor]) -> DemoUNet:
    """The network of a published denoiser's tensors, untrained, in the width that they have.

    Its heads are 64 wide, as published. Raises NamesError for tensors of something else.
    """
    names = (
        "input_blocks.0.0.weight",
        "input_blocks.0.1.proj_in.weight",
        "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
    )
    return _denoiser_like(state, names, has_motion(state))


def publishable_denoiser(state: Mapping[str, Tensor]) -> DemoUNet:
    """The same network of the tensors of a DemoUNet, which has the published levels or none."""
    names = (
        "conv_in.weight",
        "transformer_in.proj_in.weight",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight",
    )
    return _denoiser_like(state, names, any("motion_attentions." in name for name in state))


def _denoiser_like(
    state: Mapping[str, Tensor], names: tuple[str, str, str], motion: bool
) -> DemoUNet:
    """The network by the shapes of its first convolution, the way into its first transformer, and
    the keys of its states.
    """
    missing = [name for name in names if name not in state or state[name].ndim < 2]
    if missing:
        raise NamesError(f"is no video denoiser; it has no {', '.join(missing)}")
    first, into, listening = (state[name].shape for name in names)
    network: DemoUNet = DemoUNet(
        in_channels=first[1],
        out_channels=first[1],
        block_out_channels=[first[0] * times for times in (1, 2, 4, 4)],
        num_input_heads=into[0] // 64,
        cross_attention_dim=listening[1],
        motion=motion,
    )
    return network


def denoiser_modules(unet: DemoUNet) -> dict[str, str]:
    """Published module name -> this project's, for the modules of `unet` that hold tensors."""
    modules = dict(_ENDS)

    def resnet(published: str, block: str, index: int) -> None:
        for theirs, ours in _RESNET.items():
            modules[f"{published}.{theirs}"] = f"{block}.resnets.{index}.{ours}"
        # The published name is spelled like this.
        modules[f"{published}.temopral_conv"] = f"{block}.temp_convs.{index}"

    def layer(published: str, block: str, index: int) -> int:
        """One layer in its own list; returns the first place that is free behind it."""
        resnet(f"{published}.0", block, index)
        kinds = [k for k in _TRANSFORMERS if len(getattr(unet.get_submodule(block), k, ())) > index]
        for place, kind in enumerate(kinds, start=1):
            modules[f"{published}.{place}"] = f"{block}.{kind}.{index}"
        return len(kinds) + 1

    number = 1
    for level, down in enumerate(unet.down_blocks):
        for index in range(len(down.resnets)):
            layer(f"input_blocks.{number}", f"down_blocks.{level}", index)
            number += 1
        if hasattr(down, "downsamplers"):
            modules[f"input_blocks.{number}.op"] = f"down_blocks.{level}.downsamplers.0.conv"
            number += 1
    free = layer("middle_block", "mid_block", 0)
    resnet(f"middle_block.{free}", "mid_block", 1)
    number = 0
    for level, up in enumerate(unet.up_blocks):
        for index in range(len(up.resnets)):
            free = layer(f"output_blocks.{number}", f"up_blocks.{level}", index)
            number += 1
        if hasattr(up, "upsamplers"):
            last = f"output_blocks.{number - 1}.{free}.conv"
            modules[last] = f"up_blocks.{level}.upsamplers.0.conv"
    return modules


def denoiser_from_published(state: Mapping[str, Tensor], unet: DemoUNet) -> dict[str, Tensor]:
    """A published denoiser's tensors as a state dict of `unet` (which may be on the meta device).

    Raises NamesError for a missing, surplus or misshapen tensor.
    """
    ours = unet.state_dict()
    names = _denoiser_names(unet)
    check(state, {names[name]: _as_published(name, tuple(w.shape)) for name, w in ours.items()})
    return {name: state[names[name]].reshape(w.shape) for name, w in ours.items()}


def denoiser_to_published(state: Mapping[str, Tensor], unet: DemoUNet) -> dict[str, Tensor]:
    """The inverse: tensors of `unet` under their published names and in the published shapes."""
    check(state, {name: tuple(w.shape) for name, w in unet.state_dict().items()})
    names = _denoiser_names(unet)
    return {names[k]: w.reshape(_as_published(k, tuple(w.shape))) for k, w in state.items()}


def _denoiser_names(unet: DemoUNet) -> dict[str, str]:
    """Our parameter name -> the published one."""
    published = {ours: theirs for theirs, ours in denoiser_modules(unet).items()}
    names = {}
    for name in unet.state_dict():
        # The longest module name that is in the table: the rest is the same on both sides.
        module = name
        while module not in published:
            module = module.rpartition(".")[0]
        names[name] = published[module] + name.removeprefix(module)
    return names


def _as_published(ours: str, shape: Shape) -> Shape:
    """The temporal transformers' linear maps are published as convolutions over the frames."""
    temporal = "temp_attentions." in ours or ours.startswith("transformer_in.")
    projection = ours.endswith(("proj_in.weight", "proj_out.weight"))
    return (*shape, 1) if temporal and projection else shape
