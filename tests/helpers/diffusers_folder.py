"""A small folder of diffusers' `TextToVideoSDPipeline`, the base model in diffusers' layout."""

from __future__ import annotations

from pathlib import Path

from diffusers import AutoencoderKL, UNet3DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from helpers.tiny_networks import shake


def write_text_to_video_folder(
    folder: Path,
) -> tuple[UNet3DConditionModel, CLIPTextModel, AutoencoderKL]:
    """Save networks of random weights without a scheduler; returns them."""
    unet = UNet3DConditionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=24,
        attention_head_dim=8, norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
    ).eval()  # fmt: skip
    tower = CLIPTextConfig(
        hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        hidden_act="gelu", pad_token_id=0, bos_token_id=49406, eos_token_id=49407,
        vocab_size=49408,
    )  # fmt: skip
    text = CLIPTextModel(tower).eval()
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).eval()
    for seed, network in enumerate((unet, text, vae)):
        shake(network, seed)
    for name, network in (("unet", unet), ("text_encoder", text), ("vae", vae)):
        network.save_pretrained(folder / name)
    (folder / "model_index.json").write_text('{"_class_name": "TextToVideoSDPipeline"}')
    return unet, text, vae
