"""Key maps between the original checkpoints and this project's networks, on state dicts.

They cover the autoencoder (`VQGAN_autoencoder.pth`, Latent Diffusion's names) and the denoisers
(`text2video_pytorch_model.pth`, `demo.pth`, ModelScopeT2V's names).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from torch import Tensor

from demo_t2v.models.state_dicts import Shape, StateDictError, check_state_dict, shapes_of
from demo_t2v.models.unet import DemoUNet

AUTOENCODER_PREFIX: Final = "first_stage_model."


def modelscope_autoencoder(width: int = 128) -> AutoencoderKL:
    """ModelScopeT2V's autoencoder, untrained; `width` is the channels of its first level."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(width, 2 * width, 4 * width, 4 * width),
        layers_per_block=2,
        latent_channels=4,
        scaling_factor=0.18215,
    )


def infer_autoencoder(state: Mapping[str, Tensor]) -> AutoencoderKL:
    """The untrained network of an original autoencoder's tensors, in their width.

    Raises StateDictError for tensors of something else.
    """
    first = state.get(AUTOENCODER_PREFIX + "encoder.conv_in.weight")
    if first is None:
        raise StateDictError(f"is no published autoencoder; it has no {AUTOENCODER_PREFIX}encoder")
    return modelscope_autoencoder(first.shape[0])


def autoencoder_from_original(
    state: Mapping[str, Tensor], network: AutoencoderKL
) -> dict[str, Tensor]:
    """The original `state_dict` as a state dict of `network` (which may be on the meta device).

    Names outside `first_stage_model.` are ignored. Raises StateDictError for a missing, surplus or
    misshapen tensor.
    """
    original = {
        name.removeprefix(AUTOENCODER_PREFIX): tensor
        for name, tensor in state.items()
        if name.startswith(AUTOENCODER_PREFIX)
    }
    # The converter reads one number of each kernel of the attention's 1x1 convolutions; as matrices
    # (C, C), which it only renames, kernels of another size are found by their shape.
    original = {
        name: tensor.flatten(1) if ".attn_1." in name and tensor.ndim == 4 else tensor
        for name, tensor in original.items()
    }
    converted = convert_ldm_vae_checkpoint(original, network.config)
    converted = {name: tensor for name, tensor in converted.items() if tensor is not None}
    # It skips unknown tensors without a word.
    used = {id(tensor) for tensor in converted.values()}
    surplus = {name: tensor for name, tensor in original.items() if id(tensor) not in used}
    check_state_dict(converted | surplus, shapes_of(network.state_dict()))
    return converted


# This project's module names -> ModelScopeT2V's. A resnet's are relative to it.
_RESNET: Final = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_INPUT_AND_OUTPUT: Final = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "transformer_in": "input_blocks.0.1",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_LAYER: Final = ("resnets", "attentions", "motion_attentions", "temp_attentions")
"""The modules of a layer in the original order. Only DEMO has motion transformers."""


def has_motion(names: Iterable[str]) -> bool:
    """Whether the original tensor names are those of DEMO: its middle block is longer."""
    return any(name.startswith("middle_block.4.") for name in names)


def infer_denoiser_from_original(state: Mapping[str, Tensor]) -> DemoUNet:
    """The untrained network of an original denoiser's tensors, in their width, with 64-wide heads.

    Raises StateDictError for tensors of something else.
    """
    names = (
        "input_blocks.0.0.weight",
        "input_blocks.0.1.proj_in.weight",
        "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
    )
    return _infer_denoiser(state, names, has_motion(state))


def infer_denoiser(state: Mapping[str, Tensor]) -> DemoUNet:
    """The same for the tensors of a DemoUNet.

    The original layout has four levels. Tensors of a DemoUNet with other levels do not fit the
    result: `denoiser_to_original` refuses them.
    """
    names = (
        "conv_in.weight",
        "transformer_in.proj_in.weight",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight",
    )
    return _infer_denoiser(state, names, any("motion_attentions." in name for name in state))


def _infer_denoiser(
    state: Mapping[str, Tensor], names: tuple[str, str, str], motion: bool
) -> DemoUNet:
    """The network whose sizes the three named weights have.

    They are the first convolution, the input projection of the first transformer, and the first
    projection of text states to keys.
    """
    missing = [name for name in names if name not in state or state[name].ndim < 2]
    if missing:
        raise StateDictError(f"is no video denoiser; it has no {', '.join(missing)}")
    conv_in, proj_in, to_k = (state[name].shape for name in names)
    network: DemoUNet = DemoUNet(
        in_channels=conv_in[1],
        out_channels=conv_in[1],
        block_out_channels=[conv_in[0] * multiple for multiple in (1, 2, 4, 4)],
        num_input_heads=proj_in[0] // 64,
        cross_attention_dim=to_k[1],
        motion=motion,
    )
    return network


def denoiser_from_original(state: Mapping[str, Tensor], unet: DemoUNet) -> dict[str, Tensor]:
    """An original denoiser's tensors as a state dict of `unet` (which may be on the meta device).

    Raises StateDictError for a missing, surplus or misshapen tensor.
    """
    ours, names = shapes_of(unet.state_dict()), _original_names(unet)
    check_state_dict(state, {names[n]: _original_shape(n, shape) for n, shape in ours.items()})
    return {name: state[names[name]].reshape(shape) for name, shape in ours.items()}


def denoiser_to_original(state: Mapping[str, Tensor], unet: DemoUNet) -> dict[str, Tensor]:
    """The inverse: tensors of `unet` under their original names and in the original shapes."""
    ours, names = shapes_of(unet.state_dict()), _original_names(unet)
    check_state_dict(state, ours)
    return {names[n]: w.reshape(_original_shape(n, ours[n])) for n, w in state.items()}


def _original_names(unet: DemoUNet) -> dict[str, str]:
    """This project's parameter name -> the original one."""
    modules = _original_modules(unet)
    names = {}
    for name in unet.state_dict():
        # The longest module name that is in the table: the rest is the same on both sides.
        module = name
        while module not in modules:
            module = module.rpartition(".")[0]
        names[name] = modules[module] + name.removeprefix(module)
    return names


def _original_modules(unet: DemoUNet) -> dict[str, str]:
    """This project's module name -> the original one, for the modules of `unet` with tensors."""
    modules = dict(_INPUT_AND_OUTPUT)
    layers: dict[str, list[str]] = {}
    number = 1
    for level, down in enumerate(unet.down_blocks):
        for index in range(len(down.resnets)):
            layers[f"input_blocks.{number}"] = _layer(unet, f"down_blocks.{level}", index)
            number += 1
        if hasattr(down, "downsamplers"):
            modules[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{number}.op"
            number += 1
    layers["middle_block"] = [*_layer(unet, "mid_block", 0), "mid_block.resnets.1"]
    number = 0
    for level, up in enumerate(unet.up_blocks):
        for index in range(len(up.resnets)):
            layers[f"output_blocks.{number}"] = _layer(unet, f"up_blocks.{level}", index)
            number += 1
        if hasattr(up, "upsamplers"):
            layers[f"output_blocks.{number - 1}"].append(f"up_blocks.{level}.upsamplers.0")
    for layer, members in layers.items():
        for position, module in enumerate(members):
            modules[module] = f"{layer}.{position}"
            if ".resnets." in module:
                ends = {f"{module}.{ours}": theirs for ours, theirs in _RESNET.items()}
                # The original name is misspelled.
                ends[module.replace("resnets", "temp_convs")] = "temopral_conv"
                modules |= {ours: f"{layer}.{position}.{theirs}" for ours, theirs in ends.items()}
    return modules


def _layer(unet: DemoUNet, block: str, index: int) -> list[str]:
    """The names of one layer's modules, in the original order."""
    lists = unet.get_submodule(block)
    return [f"{block}.{kind}.{index}" for kind in _LAYER if len(getattr(lists, kind, ())) > index]


def _original_shape(name: str, shape: Shape) -> Shape:
    """A parameter's original shape; `name` is this project's.

    The temporal transformers' projections (C, C) are convolutions over the frames there.
    """
    temporal = "temp_attentions." in name or name.startswith("transformer_in.")
    projection = name.endswith(("proj_in.weight", "proj_out.weight"))
    return (*shape, 1) if temporal and projection else shape
