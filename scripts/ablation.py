"""Ablation of DEMO's motion branch and losses, a small version of the paper's Table 6.

Every run starts from the built-in DEMO without its motion transformers, whose text tower
distinguishes the words for directions. The denoiser is trained without a motion branch, or with new
motion transformers: without motion losses, without each of them, with all, and with the
video-motion loss on noise, as in the release. Clips, seeds and steps are the same. Most clips have
one of four motions, since all 18 need hours for a run. Figures are the videos with the requested
motion and content, and the error of v on unseen clips.

A finished run is a JSON file in --out. The script resumes after the last one, and prints a table of
all files. The text-motion and the regularization loss need a text tower that was trained with an
image tower (docs/sprites_training.md).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler
from einops import rearrange
from filelock import FileLock
from rich.console import Console
from rich.table import Table

from demo_t2v.checkpoints.resolve import load_pipeline, resolve
from demo_t2v.config import InferenceConfig
from demo_t2v.core.atomic_io import atomic_write
from demo_t2v.data.sprites import draw_clip
from demo_t2v.evaluation.sprites.classification import classify_video
from demo_t2v.evaluation.sprites.prompts import list_prompts
from demo_t2v.inference.jobs import make_jobs
from demo_t2v.inference.runner import Runner
from demo_t2v.model_folder import init_arguments
from demo_t2v.models.unet import DemoUNet
from demo_t2v.pipeline import DemoPipeline
from demo_t2v.training.data.pixels import to_pixels

TERMS = ("video_motion", "text_motion", "regularization")
RUNS: dict[str, tuple[str, ...] | None] = {
    "denoiser alone": None,
    "+ motion encoder": (),
    "without video-motion": TERMS[1:],
    "without text-motion": (TERMS[0], TERMS[2]),
    "without regularization": TERMS[:2],
    "all": TERMS,
    "all, video-motion on noise": TERMS,
}
FOUR = dict.fromkeys(
    ("left", "right", "up", "down"), 1000
)  # drawn so many times as often as the other motions
TIMESTEPS = (450, 900)
CLIPS = 64


def start(folder: Path) -> Path:
    """The built-in DEMO without its motion transformers, saved as a model."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # several scripts may run at once
        if not folder.exists():
            pipeline = load_pipeline("sprites", "cpu")
            unet = DemoUNet(**init_arguments(pipeline.unet) | {"motion": False})
            weights = pipeline.unet.state_dict()
            unet.load_state_dict({name: weights[name] for name in unet.state_dict()})
            pipeline.register_modules(unet=unet)
            with atomic_write(folder) as partial:
                pipeline.save_pretrained(partial)
    return folder


def train(name: str, seed: int, args: argparse.Namespace, folder: Path) -> Path:
    """Train a run of RUNS; returns the folder of the trained model."""
    terms = RUNS[name] or ()
    keys: dict[str, object] = {
        "base": start(args.work / "start"),
        "autoencoder": args.work / "start",
        "resolution": 128,
        "clip": args.clip,
        "motion_clip": "null",
        "latents": args.latents,
        "log_dir": folder,
        "seed": seed,
        "num_steps": args.steps,
        "batch_size": args.batch,
        "ema_decay": "null",  # too few steps for an average
        "save_ckp_interval": 50,
        "keep_last": 1,
        "tensorboard": "null",
        "timestep_shift": 3,  # the direction of motion is decided at high noise
        "train_dataset.clips": args.clips,
        "train_dataset.data_seed": 31,  # clips that the built-in model was not trained with
        "train_dataset.emphasis": json.dumps(FOUR),
        "model.motion": str(RUNS[name] is not None).lower(),
        **{f"{term}_weight": 0.1 if term in terms else 0 for term in TERMS},
    }
    if name.endswith("on noise"):
        keys["video_motion_space"] = "eps"
    command = [sys.executable, "-m", "demo_t2v", "train", "--config", args.config]
    command += [f"{key}={value}" for key, value in keys.items()] + args.keys
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return folder / "final"


@torch.no_grad()
def errors(pipe: DemoPipeline) -> dict[int, float]:
    """The mean squared error of v at each of TIMESTEPS, over clips, noise and prompts."""
    rng, generator = np.random.default_rng(2410), torch.Generator().manual_seed(24219)
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    squared: dict[int, list[float]] = defaultdict(list)
    for _ in range(CLIPS):
        clip = draw_clip(rng, pipe.vae.config.sample_size, emphasis=FOUR)
        means = pipe.vae.encode(to_pixels(torch.from_numpy(clip.frames))).latent_dist.mean
        clean = rearrange(means * pipe.vae.config.scaling_factor, "f c h w -> 1 c f h w")
        states, _ = pipe.encode_prompt(clip.caption)
        for timestep in TIMESTEPS:
            noise = torch.randn(clean.shape, generator=generator)
            timesteps = torch.tensor([timestep])
            noisy = scheduler.add_noise(clean, noise, timesteps)
            target = scheduler.get_velocity(clean, noise, timesteps)
            predicted = pipe.unet(noisy, timesteps, states.content, states.motion).sample
            squared[timestep].append((predicted - target).square().mean().item())
    return {timestep: statistics.fmean(values) for timestep, values in squared.items()}


def score(folder: Path) -> dict[str, object]:
    """Number of videos of the four motions with the requested motion, content, and both."""
    config = InferenceConfig(batch_size=16, model=str(folder), device="cpu")
    runner = Runner.load(resolve(config.model), config)
    cases = [case for case in list_prompts() if case.motion in FOUR]
    jobs = make_jobs([(case.id, case.prompt) for case in cases], 1, 0)
    right = {"motion": 0, "content": 0, "both": 0}
    for case, video in zip(cases, runner.videos(jobs), strict=True):
        found = classify_video(video.frames)
        motion, content = found.motion == case.motion, found.thing == case.thing
        right["motion"] += motion
        right["content"] += content
        right["both"] += motion and content
    return {"right": right, "videos": len(cases), "errors": errors(runner.pipeline)}


def table(out: Path) -> Table:
    results_table = Table(title="New motion transformers, one figure per seed")
    for column in ("run", "steps x clips", "motion", "content", "both", "v at 450", "v at 900"):
        results_table.add_column(column, justify="left" if column == "run" else "right")
    for name in RUNS:
        files = sorted(out.glob(f"{slug(name)}-[0-9]*.json"))
        results = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        if not results:
            continue
        rows = [f"{results[0]['steps']} x {results[0]['batch']}"]
        for figure in ("motion", "content", "both"):
            rows.append(", ".join(f"{r['right'][figure]}/{r['videos']}" for r in results))
        for timestep in TIMESTEPS:
            rows.append(", ".join(f"{r['errors'][str(timestep)]:.4f}" for r in results))
        results_table.add_row(name, *rows)
    return results_table


def slug(name: str) -> str:
    return "-".join(re.findall("[a-z]+", name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/sprites/demo.yaml")
    parser.add_argument("--clip", default="runs/sprites/image/final")
    parser.add_argument("--latents", default="runs/sprites/latents-ablation")
    parser.add_argument("--work", type=Path, default=Path("runs/sprites/ablation"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/ablation"))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--clips", type=int, default=3000, help="size of the data set")
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--runs", nargs="*", choices=RUNS, help="default: all")
    parser.add_argument("keys", nargs="*", help="further overrides of the training")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.runs or RUNS:
        for seed in args.seeds:
            file = args.out / f"{slug(name)}-{seed}.json"
            if file.exists():
                continue
            folder = train(name, seed, args, args.work / file.stem)
            run = {"run": name, "seed": seed, "steps": args.steps, "batch": args.batch}
            text = json.dumps(run | score(folder), indent=2)
            file.write_text(text + "\n", encoding="utf-8")
    Console(width=120).print(table(args.out))


if __name__ == "__main__":
    main()
