"""The similarity of frames and a prompt by the open_clip package, with random weights.

As a program: `python openclip_similarity.py PACKAGES FRAMES.npy PROMPT OUT` takes the package from
the folder PACKAGES and writes `weights.safetensors` and `similarity.json` into OUT.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from helpers.openclip_package import import_package
from helpers.tiny_clip import HEADS, LAYERS, PATCH, SHARED, SIDE, WIDTH


@torch.no_grad()
def main(packages: Path, frames: Path, prompt: str, out: Path) -> None:
    operators = torch.library.Library("torchvision", "FRAGMENT")  # keeps the operators defined
    package = import_package(packages, operators)
    torch.manual_seed(0)
    vision = package.CLIPVisionCfg(
        layers=LAYERS, width=WIDTH, head_width=WIDTH // HEADS, image_size=SIDE, patch_size=PATCH
    )
    text = package.CLIPTextCfg(width=WIDTH, heads=HEADS, layers=LAYERS)
    model = package.CLIP(SHARED, vision, text).eval()
    for weight in model.parameters():
        weight += 0.1 * torch.randn_like(weight)
    save_file(model.state_dict(), out / "weights.safetensors")
    preprocess = package.image_transform(SIDE, is_train=False)
    pictures = torch.stack([preprocess(Image.fromarray(frame)) for frame in np.load(frames)])
    images = model.encode_image(pictures, normalize=True)
    words = model.encode_text(package.get_tokenizer("ViT-H-14")([prompt]), normalize=True)
    (out / "similarity.json").write_text(json.dumps((images @ words.T)[:, 0].tolist()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
