"""Reference outputs of the open_clip package for ViT-H-14 with random weights.

As a program: `python openclip_package.py PACKAGES OUT` takes the package from the folder PACKAGES
and writes `weights.safetensors` and `outputs.safetensors` into OUT. It runs in a separate process,
since transformers fails with the package's torchvision if torch has no CUDA.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

DATA = Path(__file__).parent.parent / "data"
PROMPTS = ["A car moves to the left, slowly!", "a café at night: 2 dogs don't run", "snow " * 90]


def import_package(packages: Path, operators: torch.library.Library) -> Any:
    """`open_clip` from this folder, with dependencies from there if they are not installed."""
    sys.path.append(str(packages))
    try:
        torch.ops.load_library(packages / "torchvision/_C.so")
    except OSError:  # built for CUDA; the import needs two of its operators
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import open_clip

    return open_clip


@torch.no_grad()
def main(packages: Path, out: Path) -> None:
    operators = torch.library.Library("torchvision", "FRAGMENT")  # keeps the operators defined
    package = import_package(packages, operators)
    torch.manual_seed(0)
    model = package.create_model("ViT-H-14").eval()
    for weight in model.parameters():
        if weight.ndim == 1:  # equal ones and zeros would hide a mix-up
            weight += 0.1 * torch.randn_like(weight)
    save_file(model.state_dict(), out / "weights.safetensors")
    tokenize = package.get_tokenizer("ViT-H-14")
    ids: Tensor = tokenize(PROMPTS)
    cleaning = json.loads((DATA / "openclip_cleaning.json").read_text(encoding="utf-8"))
    images = torch.randn(2, 3, 224, 224)
    outputs = model.forward_intermediates(
        text=ids, text_indices=[-2], normalize_intermediates=True, intermediates_only=True
    )
    (states,) = outputs["text_intermediates"]
    reference = {
        "ids": ids,
        "cleaning_ids": tokenize(list(cleaning)),
        "images": images,
        "states": states,
        "ends": package.transformer.text_global_pool(states, ids),
        "embeddings": model.encode_image(images),
    }
    contiguous = {name: tensor.contiguous() for name, tensor in reference.items()}
    save_file(contiguous, out / "outputs.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
