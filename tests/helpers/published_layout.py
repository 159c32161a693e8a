"""Files of the published layout with random weights, in small and in full size.

The small size reduces all widths and the depth of the towers, and keeps the denoiser's layers.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from demo_t2v.checkpoints.original.key_maps import AUTOENCODER_PREFIX, denoiser_to_original
from demo_t2v.checkpoints.original.openclip import to_openclip
from demo_t2v.models.unet import DemoUNet
from helpers.golden import manifest

SMALL_TEXT = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 1}
SMALL_PICTURE = {"hidden_size": 80, "intermediate_size": 160, "num_attention_heads": 1}
FULL_TEXT = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
FULL_PICTURE = {"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 16}

NEGATIVE_PROMPT = (
    "Distorted, discontinuous, Ugly, blurry, low resolution, motionless, static, disfigured, "
    "disconnected limbs, Ugly faces, incomplete arms"
)


def denoiser(motion: bool, full: bool) -> DemoUNet:
    """The published network, or one of a fifth of its width, on the meta device."""
    small = {"block_out_channels": (64, 128, 256, 256), "cross_attention_dim": 64}
    with torch.device("meta"):
        return DemoUNet(motion=motion, **({} if full else small))


def autoencoder_shapes(width: int) -> dict[str, tuple[int, ...]]:
    """Published names and shapes of an autoencoder whose first level has `width` channels, not 128.

    Colours, latents, their moments and 1x1 kernels are not scaled.
    """

    def scaled(shape: tuple[int, ...]) -> tuple[int, ...]:
        channels = tuple(c if c in (3, 4, 8, 1) else c * width // 128 for c in shape[:2])
        return (*channels, *shape[2:])

    shapes = manifest("vae_keys.json").items()
    return {AUTOENCODER_PREFIX + key: scaled(shape) for key, shape in shapes}


def values(state: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Half-precision numbers for tensors of these names and shapes, all of them different."""
    largest = max(w.numel() for w in state.values())
    rng = torch.Generator().manual_seed(seed)
    pool = (torch.randn(largest + len(state), generator=rng) * 0.03).half()
    numbers = {}
    for offset, (name, w) in enumerate(state.items()):
        tensor = pool[offset : offset + w.numel()].reshape(w.shape).clone()
        numbers[name] = tensor + 1 if w.ndim == 1 and name.endswith("weight") else tensor
    return numbers


def clip(full: bool) -> CLIPModel:
    """OpenCLIP ViT-H-14, or a small one, on the meta device."""
    text, picture = (FULL_TEXT, FULL_PICTURE) if full else (SMALL_TEXT, SMALL_PICTURE)
    depth = {"num_hidden_layers": 24 if full else 2, "hidden_act": "gelu"}
    deeper = {"num_hidden_layers": 32 if full else 2, "hidden_act": "gelu"}
    sizes = {"patch_size": 14, "image_size": 224 if full else 28}
    with torch.device("meta"):
        return CLIPModel(
            CLIPConfig(
                text_config={**text, **depth, "vocab_size": 49_408},
                vision_config={**picture, **deeper, **sizes},
                projection_dim=text["hidden_size"],
            )
        )


def write_published(folder: Path, motion: bool, full: bool = False) -> dict[str, dict[str, Tensor]]:
    """Write all files of the base model or of DEMO; returns their tensors by file name."""
    unet = denoiser(motion, full)
    with torch.device("meta"):
        shapes = autoencoder_shapes(128 if full else 32)
        vae = {name: torch.empty(shape) for name, shape in shapes.items()}
        towers = to_openclip(clip(full).state_dict())
    files = {
        "VQGAN_autoencoder.pth": values(vae, 2),
        "open_clip_pytorch_model.bin": values(towers, 3),
    }
    main = "demo.pth" if motion else "text2video_pytorch_model.pth"
    files[main] = values(denoiser_to_original(unet.state_dict(), unet), 1)
    if motion:
        text = {name: w for name, w in towers.items() if not name.startswith("visual.")}
        files["motion_encoder.pth"] = values(text, 4)
    below = {"VQGAN_autoencoder.pth": "state_dict", "demo.pth": "unet_state_dict"}
    for name, state in files.items():
        torch.save({below[name]: state} if name in below else state, folder / name)
    return files
