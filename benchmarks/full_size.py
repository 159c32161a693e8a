"""What does a video of the published size take, in seconds and in memory?

    python benchmarks/full_size.py                            # weights of no meaning
    python benchmarks/full_size.py --model Ryan-PR/DEMO       # the published ones

256x256, 16 frames, guidance 9. One run; the raw figures go to benchmarks/results/ too.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import ModelMixin
from rich.console import Console
from transformers import CLIPTextConfig, CLIPTextModel

from demo_t2v.models.unet import DemoUNet
from demo_t2v.pipeline import DemoPipeline
from demo_t2v.weights.convert import published_scheduler
from demo_t2v.weights.hub import load_pipeline
from demo_t2v.weights.names import published_autoencoder
from demo_t2v.weights.openclip import clip_tokenizer

TEXT = CLIPTextConfig(
    hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
    hidden_act="gelu", vocab_size=49_408, bos_token_id=49_406, eos_token_id=49_407, pad_token_id=0,
)  # fmt: skip
RESULTS = Path(__file__).parent / "results"


def meaningless(network: Any, seed: int, folder: Path) -> None:
    """Save a network of the meta device with random weights in half precision."""
    rng = torch.Generator().manual_seed(seed)
    pool = torch.randn(1 << 22, generator=rng)
    network.to_empty(device="cpu")
    for weight in network.parameters():
        width = weight[0].numel() if weight.ndim > 1 else 1
        values = pool.to(weight.dtype).repeat(weight.numel() // len(pool) + 1)[: weight.numel()]
        weight.data = values.reshape(weight.shape) * (width**-0.5 if weight.ndim > 1 else 0.02)
        if weight.ndim == 1:
            weight.data += 1
    if not isinstance(network, ModelMixin):  # transformers makes its buffers itself
        network.embeddings.position_ids = torch.arange(77)[None]
    network.save_pretrained(folder)


def make_model(folder: Path) -> None:
    """A pipeline's folder of the published sizes."""
    with torch.device("meta"), torch.no_grad():
        parts = {
            "unet": DemoUNet(),
            "vae": published_autoencoder(),
            "content_encoder": CLIPTextModel(TEXT),
            "motion_encoder": CLIPTextModel(TEXT),
        }
    others = {"tokenizer": clip_tokenizer(), "scheduler": published_scheduler()}
    DemoPipeline(**parts, **others).save_config(folder)
    for name, part in others.items():
        part.save_pretrained(folder / name)
    for seed, (name, network) in enumerate(parts.items()):
        meaningless(network.half(), seed, folder / name)


def measure(model: str, asked: argparse.Namespace) -> dict[str, Any]:
    pipe = load_pipeline(model, dtype=asked.dtype, offload=asked.offload)
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    times: list[float] = []

    def note(_pipe: Any, _step: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        times.append(time.perf_counter())
        return tensors

    started = time.perf_counter()
    frames = pipe(
        ["a dog runs over a beach"] * asked.batch,
        num_inference_steps=asked.steps,
        generator=[torch.Generator().manual_seed(seed) for seed in range(asked.batch)],
        decode_chunk_size=asked.decode,
        callback_on_step_end=note,
    ).frames
    ended = time.perf_counter()
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # as Linux counts
    peak = torch.cuda.max_memory_allocated() if cuda else own
    return {
        "seconds": round(ended - started, 1),
        "seconds_a_step": [round(b - a, 1) for a, b in zip([started, *times], times, strict=False)],
        "seconds_to_decode": round(ended - times[-1], 1),
        "peak_gib": round(peak / 2**30, 2),
        "of": "GPU tensors" if cuda else "the process",
        "frames": list(frames.shape),
        "all_finite": bool(np.isfinite(frames).all()),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", help="default: the published sizes, weights of no meaning")
    steps = 50 if torch.cuda.is_available() else 2
    parser.add_argument("--steps", type=int, default=steps, help=f"default: {steps}")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--decode", type=int, default=1, help="frames decoded at once")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--offload", default="none")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if asked.model is None:
            make_model(Path(folder))
        figures = measure(asked.model or folder, asked)
    ran = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "python": platform.python_version(),
    }
    text = json.dumps({**ran, "asked": vars(asked), **figures}, indent=2)
    RESULTS.mkdir(exist_ok=True)
    name = f"full_size-{ran['device'].replace(' ', '_')}-{ran['date'][:10]}"
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    Console().print_json(text)


if __name__ == "__main__":
    main()
