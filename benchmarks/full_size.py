"""Measures time and memory of a video at the published size.

    python benchmarks/full_size.py                            # random weights
    python benchmarks/full_size.py --model Ryan-PR/DEMO       # published weights
    python benchmarks/full_size.py --dtype bfloat16 --compile
    python benchmarks/full_size.py --max-memory 8GB

256x256, 16 frames, guidance 9. One run, on a GPU after some warm-up steps; the figures are also
written to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import ModelMixin
from rich.console import Console
from transformers import CLIPTextConfig, CLIPTextModel

from demo_t2v.checkpoints.memory import pick
from demo_t2v.checkpoints.original.importer import modelscope_scheduler
from demo_t2v.checkpoints.original.key_maps import modelscope_autoencoder
from demo_t2v.checkpoints.original.openclip import clip_tokenizer
from demo_t2v.checkpoints.resolve import resolve
from demo_t2v.config import InferenceConfig
from demo_t2v.inference.jobs import make_jobs
from demo_t2v.inference.runner import Runner
from demo_t2v.models.unet import DemoUNet
from demo_t2v.pipeline import DemoPipeline

TEXT = CLIPTextConfig(
    hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
    hidden_act="gelu", vocab_size=49_408, bos_token_id=49_406, eos_token_id=49_407, pad_token_id=0,
)  # fmt: skip
RESULTS = Path(__file__).parent / "results"


def save_random(network: Any, seed: int, folder: Path) -> None:
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
    if not isinstance(network, ModelMixin):  # transformers' buffers have no values either
        network.embeddings.position_ids = torch.arange(77)[None]
    network.save_pretrained(folder)


def make_model(folder: Path) -> None:
    """Save a pipeline of the published sizes."""
    with torch.device("meta"), torch.no_grad():
        networks = {
            "unet": DemoUNet(),
            "vae": modelscope_autoencoder(),
            "content_encoder": CLIPTextModel(TEXT),
            "motion_encoder": CLIPTextModel(TEXT),
        }
    others = {"tokenizer": clip_tokenizer(), "scheduler": modelscope_scheduler()}
    DemoPipeline(**networks, **others).save_config(folder)
    for name, component in others.items():
        component.save_pretrained(folder / name)
    for seed, (name, network) in enumerate(networks.items()):
        save_random(network.half(), seed, folder / name)


def measure(model: str, args: argparse.Namespace) -> dict[str, Any]:
    config = InferenceConfig(
        model=model,
        dtype=args.dtype,
        offload=args.offload,
        max_memory=args.max_memory,
        compile=args.compile,
        batch_size=args.batch,
        decode_chunk_size=args.decode,
        num_inference_steps=args.steps,
    )
    resolved = resolve(model)
    plan, note = pick(resolved, config, args.batch)
    jobs = make_jobs([("1", "a dog runs over a beach")], args.batch, 0)
    runner = Runner.load(resolved, config, plan, [job.prompt for job in jobs])
    cuda = torch.cuda.is_available()
    figures: dict[str, Any] = {"plan": note} if note else {}
    if args.warm_up:  # the first steps select algorithms, or compile
        started = time.perf_counter()
        short = runner.config.model_copy(update={"num_inference_steps": args.warm_up})
        replace(runner, config=short).denoise(jobs)
        figures["seconds_to_warm_up"] = since(started)
    times: list[float] = []
    started = time.perf_counter()
    done = runner.denoise(jobs, lambda _: times.append(since(started)))
    if done.latents is None:
        raise RuntimeError("the batch could not be denoised") from done.error
    videos = runner.decode(done.latents)
    seconds = since(started)
    steps = [b - a for a, b in pairwise([0.0, *times])]
    process_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    peak = torch.cuda.max_memory_allocated() if cuda else process_bytes
    if cuda:  # memory of the driver and the allocator as well
        free, total = torch.cuda.mem_get_info()
        figures["reserved_gib"] = round(torch.cuda.max_memory_reserved() / 2**30, 2)
        figures["used_of_the_device_gib"] = round((total - free) / 2**30, 2)
    return figures | {
        "seconds": round(seconds, 3),
        "median_seconds_a_step": round(statistics.median(steps), 4),
        "seconds_a_step": [round(step, 4) for step in steps],
        "seconds_to_decode": round(seconds - times[-1], 3),
        "peak_gib": round(peak / 2**30, 2),
        "of": "GPU tensors" if cuda else "the process",
        "frames": [len(videos), *np.shape(videos[0])],
        "all_finite": not any(isinstance(video, ArithmeticError) for video in videos),
    }


def since(started: float) -> float:
    """Seconds until the GPU has finished all submitted work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", help="default: the published sizes, random weights")
    parser.add_argument("--make", type=Path, help="only save that default as a new folder")
    steps, warm_up = (50, 3) if cuda else (2, 0)
    parser.add_argument("--steps", type=int, default=steps, help=f"default: {steps}")
    parser.add_argument("--warm-up", type=int, default=warm_up, help=f"default: {warm_up} steps")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--decode", type=int, default=1, help="frames decoded at once")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--offload", default="none")
    parser.add_argument("--max-memory", help="such as 8GB")
    parser.add_argument("--compile", action="store_true", help="the blocks of the denoiser")
    parser.add_argument("--out", type=Path, help="default: a file in benchmarks/results/")
    args = parser.parse_args()
    if args.make is not None:
        make_model(args.make)
        return
    with tempfile.TemporaryDirectory() as folder:
        if args.model is None:
            make_model(Path(folder))
        figures = measure(args.model or folder, args)
    ran = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name() if cuda else "CPU",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "python": platform.python_version(),
    }
    text = json.dumps({**ran, "arguments": vars(args), **figures}, indent=2, default=str)
    name = f"full_size-{ran['device'].replace(' ', '_')}-{ran['date'][:10]}.json"
    out = args.out or RESULTS / name
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text + "\n", encoding="utf-8")
    Console().print_json(text)


if __name__ == "__main__":
    main()
