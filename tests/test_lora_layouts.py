"""Adapters of MCM and T2V-Turbo for ModelScopeT2V, in files of their layouts."""

from __future__ import annotations

import json
import logging
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from diffusers import UNet3DConditionModel
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from demo_t2v.lora import LoraError
from demo_t2v.pipeline import DemoPipeline
from helpers import in_process
from helpers.pipelines import differ, latents_of
from helpers.tiny_networks import TINY, tiny_unet

SIZES = {
    "block_out_channels": (32, 64),
    "attention": (True, False),
    "norm_num_groups": 8,
    "num_input_heads": 8,  # as in diffusers' network
}
GUIDANCE = "time_embedding.cond_proj"
EXAMPLES = (
    "conv_in",
    "time_embedding.linear_1",
    "transformer_in.proj_in",
    "down_blocks.0.resnets.0.time_emb_proj",
    "down_blocks.0.temp_convs.0.conv1.2",
    "down_blocks.0.downsamplers.0.conv",
    "mid_block.temp_attentions.0.transformer_blocks.0.attn2.to_k",
    "up_blocks.1.attentions.1.transformer_blocks.0.ff.net.0.proj",
    "up_blocks.1.resnets.0.conv_shortcut",
    "conv_out",
)


def diffusers_network() -> UNet3DConditionModel:
    """diffusers' network of the same sizes, with an embedding of the guidance scale."""
    return UNet3DConditionModel(
        block_out_channels=SIZES["block_out_channels"], layers_per_block=1, norm_num_groups=8,
        cross_attention_dim=TINY["cross_attention_dim"], attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"), time_cond_proj_dim=256,
    )  # fmt: skip


def layers(network: nn.Module) -> dict[str, nn.Module]:
    kinds = nn.Linear | nn.Conv2d | nn.Conv3d
    return {name: each for name, each in network.named_modules() if isinstance(each, kinds)}


@pytest.fixture
def pipeline(tiny_pipeline: DemoPipeline) -> DemoPipeline:
    """A DEMO pipeline with the layers of diffusers' network."""
    components = {**tiny_pipeline.components, "unet": tiny_unet(motion=True, **SIZES)}
    made = DemoPipeline(**components, num_inference_steps=2)
    made.set_progress_bar_config(disable=True)
    return made


def assert_merged(pipeline: DemoPipeline, before: nn.Module, updates: dict[str, Tensor]) -> None:
    """Fused, the weights in `updates` have moved by them, and no other weight has."""
    moved = dict(before.named_parameters())
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    for name, weight in pipeline.unet.named_parameters():
        wanted = moved[name] + updates.get(name.removesuffix(".weight"), torch.zeros(()))
        torch.testing.assert_close(weight, wanted, rtol=1e-3, atol=1e-4)


def write_list(file: Path, rank: int = 5) -> dict[str, Tensor]:
    """T2V-Turbo's file, and each layer's update: B and A as matrices, multiplied.

    The rank is at most a layer's number of input and of output channels.
    """
    generator, tensors, updates = torch.Generator().manual_seed(0), [], {}
    for name, layer in layers(diffusers_network()).items():
        out, into, *kernel = layer.weight.shape
        own = min(rank, out, into)
        up = torch.randn(out, own, *[1] * len(kernel), generator=generator) / 10
        down = torch.randn(own, into, *kernel, generator=generator) / 10
        tensors += [nn.Parameter(up), nn.Parameter(down)]
        updates[name] = (up.flatten(1) @ down.flatten(1)).view(layer.weight.shape)
    torch.save(tensors, file)
    return updates


def test_t2v_turbos_list_of_matrices_is_added_to_the_layers_in_diffusers_order(
    pipeline: DemoPipeline, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    updates = write_list(tmp_path / "unet_lora.pt")
    before, base = deepcopy(pipeline.unet), latents_of(pipeline)
    with caplog.at_level(logging.WARNING):
        pipeline.load_lora_weights(tmp_path)
    assert "embedding of the guidance scale (time_embedding.cond_proj) has no counterpart" in (
        caplog.text
    )
    adapted = latents_of(pipeline)
    assert differ(adapted, base)
    del updates[GUIDANCE]
    assert set(EXAMPLES) <= updates.keys()
    assert_merged(pipeline, before, updates)
    torch.testing.assert_close(latents_of(pipeline), adapted, rtol=1e-3, atol=1e-3)


def write_peft(folder: Path) -> dict[str, Tensor]:
    """MCM's folder, written by peft, and each layer's update: alpha / r B A with alpha 8 and r 4.

    MCM adapts all layers but the temporal convolutions.
    """
    ends = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
    ends += ("conv1", "conv2", "conv_shortcut", "samplers.0.conv", "time_emb_proj")
    network = diffusers_network()
    adapted = [
        name for name in layers(network) if name.endswith(ends) and ".temp_convs." not in name
    ]
    student = get_peft_model(network, LoraConfig(r=4, lora_alpha=8, target_modules=adapted))
    generator = torch.Generator().manual_seed(0)
    for name, weight in student.named_parameters():
        if ".lora_B." in name:
            weight.data = torch.randn(weight.shape, generator=generator) / 10
    student.save_pretrained(folder)
    tensors, updates = load_file(folder / "adapter_model.safetensors"), {}
    for name in adapted:
        down, up = (tensors[f"base_model.model.{name}.lora_{which}.weight"] for which in "AB")
        shape = (len(up), *down.shape[1:])
        updates[name] = 2 * (up.flatten(1) @ down.flatten(1)).view(shape)
    return updates


def test_mcms_folder_of_peft_is_an_adapter(pipeline: DemoPipeline, tmp_path: Path) -> None:
    updates = write_peft(tmp_path)
    before, base = deepcopy(pipeline.unet), latents_of(pipeline)
    pipeline.load_lora_weights(tmp_path)
    adapted = latents_of(pipeline)
    assert differ(adapted, base)
    assert "mid_block.temp_attentions.0.proj_in" in updates
    assert_merged(pipeline, before, updates)
    torch.testing.assert_close(latents_of(pipeline), adapted, rtol=1e-3, atol=1e-3)


def test_the_command_line_takes_both(pipeline: DemoPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "model")
    write_peft(tmp_path / "mcm")
    write_list(tmp_path / "turbo.pt")
    for lora in ("mcm", "turbo.pt"):
        words = ["a car falls", "--model", "model", "--lora", lora, "--out", f"out-{lora}"]
        words += ["--scheduler", "lcm", "--steps", 4, "--guidance", 1]
        done = in_process.run(tmp_path, "generate", *words)
        assert done.returncode == 0, done.stderr


def test_layers_without_a_counterpart_are_refused(pipeline: DemoPipeline, tmp_path: Path) -> None:
    write_peft(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    for which in "AB":
        tensors[f"base_model.model.mid_block.temp_convs.7.conv1.2.lora_{which}.weight"] = (
            torch.zeros(4, 4)
        )
    save_file(tensors, file)
    with pytest.raises(LoraError, match=r"2 surplus: unet\.mid_block\.temp_convs\.7\.conv1\.2"):
        pipeline.load_lora_weights(tmp_path)
    assert pipeline.get_list_adapters() == {}


def test_what_is_no_adapter_of_these_is_refused(pipeline: DemoPipeline, tmp_path: Path) -> None:
    write_peft(tmp_path / "mcm")
    settings = tmp_path / "mcm" / "adapter_config.json"
    settings.write_text("[]")
    with pytest.raises(LoraError, match=r"adapter_config\.json: is no JSON object"):
        pipeline.load_lora_weights(tmp_path / "mcm")
    settings.unlink()
    with pytest.raises(LoraError, match=r"adapter_config\.json: is missing"):
        pipeline.load_lora_weights(tmp_path / "mcm")
    file = tmp_path / "unet_lora.pt"
    write_list(file)
    tensors = torch.load(file)
    count = len(tensors)
    for wrong, message in (
        (tensors[:-4], rf"list of {count - 4} tensors; an adapter of this denoiser has"),
        ([*tensors[:2][::-1], *tensors[2:]], "conv_in: matrices of shapes"),
        ({"a": tensors[0]}, "no torch file with a list of tensors"),
        ([json.JSONDecoder], "no torch file with a list of tensors"),
    ):
        torch.save(wrong, file)
        with pytest.raises(LoraError, match=message):
            pipeline.load_lora_weights(file)
    assert pipeline.get_list_adapters() == {}
