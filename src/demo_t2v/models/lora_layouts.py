"""Adapters of other programs for ModelScopeT2V, in this project's names.

- peft's own folder, as of MCM (arXiv 2406.06890, huggingface.co/yhzhai/mcm): tensors
  `base_model.model.<layer>.lora_A.weight`, and settings in `adapter_config.json`.
- A list of tensors without names, as of T2V-Turbo (arXiv 2405.18750,
  huggingface.co/jiachenli-ucsb/T2V-Turbo-MS): the matrices B and A of each linear layer and
  convolution of diffusers' `UNet3DConditionModel`, in the order of its modules.

Layers of diffusers' network have the names of DemoUNet's.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from demo_t2v.models.state_dicts import StateDictError
from demo_t2v.models.unet import DemoUNet

_log = logging.getLogger(__name__)
_PEFT_PREFIX: Final = "base_model.model."
_GUIDANCE_EMBEDDING: Final = "time_embedding.cond_proj"
_GUIDANCE_CHANNELS: Final = 256  # `time_cond_proj_dim` of T2V-Turbo


def layers_of(network: nn.Module) -> list[str]:
    """The names of a network's linear layers and convolutions, which LoRA can adapt."""
    kinds = nn.Linear | nn.Conv2d | nn.Conv3d
    return [name for name, layer in network.named_modules() if isinstance(layer, kinds)]


def is_peft(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are tensors that peft itself has saved."""
    return any(name.startswith(_PEFT_PREFIX) for name in tensors)


def from_peft(
    tensors: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and settings of peft's folder as those of the component `unet`."""
    renamed = {f"unet.{name.removeprefix(_PEFT_PREFIX)}": w for name, w in tensors.items()}
    return renamed, {f"unet.{key}": value for key, value in settings.items()}


def from_list(
    tensors: Sequence[Tensor], unet: DemoUNet
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors without names as those of the component `unet`, and settings by which B A is added.

    The embedding of a guidance scale, which the student has in addition, has no counterpart: it is
    left out with a warning. Raises StateDictError for a list of another network.
    """
    layers = _layers(unet, _GUIDANCE_CHANNELS)
    if len(tensors) != 2 * len(layers):
        layers.pop(_GUIDANCE_EMBEDDING)
    if len(tensors) != 2 * len(layers):
        raise StateDictError(
            f"is a list of {len(tensors)} tensors; an adapter of this denoiser has "
            f"{2 * len(layers)}, or {2 * len(layers) + 2} with an embedding of the guidance scale"
        )
    named, ranks = dict[str, Tensor](), dict[str, int]()
    pairs = zip(tensors[::2], tensors[1::2], strict=True)
    for (name, shape), (up, down) in zip(layers.items(), pairs, strict=True):
        if (up.shape[:1], down.shape[1:]) != (shape[:1], shape[1:]) or len(down) != up.shape[1]:
            raise StateDictError(
                f"{name}: matrices of shapes {tuple(up.shape)} and {tuple(down.shape)} do not fit "
                f"its weight of shape {tuple(shape)}"
            )
        if name == _GUIDANCE_EMBEDDING:
            _log.warning(
                "the adapter's embedding of the guidance scale (%s) has no counterpart in this "
                "denoiser and is left out; use guidance_scale 1",
                name,
            )
            continue
        named |= {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}
        ranks[name] = len(down)
    settings = {"rank_pattern": ranks, "alpha_pattern": ranks}  # so that B A is added unscaled
    return named, {f"unet.{key}": value for key, value in settings.items()}


def _layers(unet: DemoUNet, guidance_channels: int) -> dict[str, torch.Size]:
    """The layers of diffusers' network of the same sizes, in order, with their weights' shapes."""
    from diffusers import UNet3DConditionModel  # loads slowly, and few adapters need it

    sizes = unet.config
    down = ["CrossAttnDownBlock3D" if each else "DownBlock3D" for each in sizes.attention]
    up = ["CrossAttnUpBlock3D" if each else "UpBlock3D" for each in reversed(sizes.attention)]
    keys = ["in_channels", "out_channels", "layers_per_block", "cross_attention_dim"]
    keys += ["attention_head_dim", "norm_num_groups", "block_out_channels"]
    with torch.device("meta"):
        network = UNet3DConditionModel(
            down_block_types=tuple(down),
            up_block_types=tuple(up),
            time_cond_proj_dim=guidance_channels,
            **{key: sizes[key] for key in keys},
        )
    return {name: network.get_parameter(f"{name}.weight").shape for name in layers_of(network)}
