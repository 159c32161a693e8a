"""Checks the requirements of `scripts/gpu_run.sh`; prints JSON about the machine."""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys

NEEDED = (
    *("torch", "diffusers", "transformers", "accelerate", "tokenizers", "safetensors"),
    *("huggingface_hub", "pydantic", "einops", "numpy", "PIL", "yaml", "rich", "typer", "filelock"),
    *("demo_t2v.training.tasks", "demo_t2v.evaluation.sprites.benchmark", "demo_t2v.cli"),
)


def main(device: str) -> int:
    known: dict[str, object] = {"python": platform.python_version(), "cores": os.cpu_count()}
    missing = []
    for name in NEEDED:
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            missing.append(f"{name} ({error})")
        else:
            known[name] = getattr(module, "__version__", "there")
    if "torch" in known:
        import torch

        if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):
            missing.append("torch 2.6 or newer")
        if torch.cuda.is_available():
            card = torch.cuda.get_device_properties(0)
            known |= {"gpu": card.name, "gpu_gib": round(card.total_memory / 2**30, 1)}
            known |= {"gpus": torch.cuda.device_count(), "cuda": torch.version.cuda}
        elif device == "cuda":
            missing.append("a GPU that torch sees")
    print(json.dumps(known | {"missing": missing}, indent=2))
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
