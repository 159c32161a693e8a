"""A small denoiser of random weights, and captions for a small tokenizer."""

from __future__ import annotations

import torch

from demo_t2v.models.unet import DemoUNet

TINY = {
    "block_out_channels": (16, 32),
    "attention": (True, True),
    "layers_per_block": 1,
    "cross_attention_dim": 24,
    "attention_head_dim": 8,
    "num_input_heads": 2,
    "norm_num_groups": 4,
}
CAPTIONS = ["a car moves to the left", "a fish falls", "the pear grows slowly in the snow"]


def shake(module: torch.nn.Module, seed: int) -> None:
    """Give every weight a random value, the zero-initialised ones too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(noise / max(1, weight[0].numel()) ** 0.5 if weight.ndim > 1 else noise / 9)


def tiny_unet(motion: bool = True, **sizes: object) -> DemoUNet:
    """Two levels, 4 frames of 4x4 latents, every weight random; in eval mode."""
    unet = DemoUNet(**{**TINY, "sample_size": 4, "sample_frames": 4, "motion": motion, **sizes})
    shake(unet, seed=1)
    return unet.eval()
