"""What does each part of DEMO's training bring? The paper's Table 6 and its ablations in small.

Every run begins where the paper's do, with a denoiser that can move things and does not know which
way, and with a text tower that knows the words: the DEMO that comes with the package, its motion
transformers taken out. (The tower that its own training began with had been taught with still
pictures, so to it "left" was as good as "right".) The denoiser goes on alone, or gets new motion
transformers: without motion losses, without each of them, with all, and with video-motion on noise,
as in the published code, rather than on clean latents. Clips, seeds and budget are the same. All 18
motions would take hours a run, so nearly all clips have one of four. The sprite world says how many
videos of these move as asked; beside that stands the error of v on clips that no run has seen. A
finished run is a file in --out; the script goes on where it was, and ends with the table of all
files. Text-motion and regularization need a text tower with an image tower beside it
(docs/sprites_training.md).
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
FOUR = dict.fromkeys(("left", "right", "up", "down"), 1000)  # times as often as each other motion
TIMESTEPS = (450, 900)
CLIPS = 64


def start(folder: Path) -> Path:
    """The built-in DEMO without its motion transformers, saved as a model."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # of scripts side by side one makes it
        if not folder.exists():
            trained = load_pipeline("sprites", "cpu")
            unet = DemoUNet(**init_arguments(trained.unet) | {"motion": False})
            learned = trained.unet.state_dict()
            unet.load_state_dict({name: learned[name] for name in unet.state_dict()})
            trained.register_modules(unet=unet)
            with atomic_write(folder) as partial:
                trained.save_pretrained(partial)
    return folder


def train(name: str, seed: int, asked: argparse.Namespace, folder: Path) -> Path:
    """The trained model's folder."""
    terms = RUNS[name] or ()
    keys: dict[str, object] = {
        "base": start(asked.work / "start"),
        "autoencoder": asked.work / "start",
        "resolution": 128,
        "clip": asked.clip,
        "motion_clip": "null",
        "latents": asked.latents,
        "log_dir": folder,
        "seed": seed,
        "num_steps": asked.steps,
        "batch_size": asked.batch,
        "ema_decay": "null",  # an average over so few steps would be of the beginning
        "save_ckp_interval": 50,
        "keep_last": 1,
        "tensorboard": "null",
        "timestep_shift": 3,  # much noise is where it is decided which way things move
        "train_dataset.clips": asked.clips,
        "train_dataset.data_seed": 31,  # clips that no other training of the built-in model saw
        "train_dataset.emphasis": json.dumps(FOUR),
        "model.motion": str(RUNS[name] is not None).lower(),
        **{f"{term}_weight": 0.1 if term in terms else 0 for term in TERMS},
    }
    if name.endswith("on noise"):
        keys["video_motion_space"] = "eps"
    command = [sys.executable, "-m", "demo_t2v", "train", "--config", asked.config]
    command += [f"{key}={value}" for key, value in keys.items()] + asked.keys
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return folder / "final"


@torch.no_grad()
def errors(pipe: DemoPipeline) -> dict[int, float]:
    """The mean squared error of v at each of TIMESTEPS, over clips, noise and prompts."""
    rng, noise = np.random.default_rng(2410), torch.Generator().manual_seed(24219)
    noising = DDPMScheduler.from_config(pipe.scheduler.config)
    found: dict[int, list[float]] = defaultdict(list)
    for _ in range(CLIPS):
        clip = draw_clip(rng, pipe.vae.config.sample_size, emphasis=FOUR)
        frames = torch.from_numpy(clip.frames).float() / 127.5 - 1
        means = pipe.vae.encode(rearrange(frames, "f h w c -> f c h w")).latent_dist.mean
        clean = rearrange(means * pipe.vae.config.scaling_factor, "f c h w -> 1 c f h w")
        states, _ = pipe.encode_prompt(clip.caption)
        for timestep in TIMESTEPS:
            drawn = torch.randn(clean.shape, generator=noise)
            when = torch.tensor([timestep])
            noisy = noising.add_noise(clean, drawn, when)
            wanted = noising.get_velocity(clean, drawn, when)
            given = pipe.unet(noisy, when, states.content, states.motion).sample
            found[timestep].append((given - wanted).square().mean().item())
    return {timestep: statistics.fmean(values) for timestep, values in found.items()}


def score(folder: Path) -> dict[str, object]:
    """How many videos of the four motions have what was asked for, trained and held-out pairs."""
    settings = InferenceConfig(batch_size=16, model=str(folder), device="cpu")
    runner = Runner.load(resolve(settings.model), settings)
    cases = [case for case in list_prompts() if case.motion in FOUR]
    jobs = make_jobs([(case.id, case.prompt) for case in cases], 1, 0)
    settings = InferenceConfig(batch_size=16, pretrained=str(folder), device="cpu")
    right = {"motion": 0, "content": 0, "both": 0}
    for case, video in zip(cases, runner.videos(jobs), strict=True):
        found = classify_video(video.frames)
        motion, content = found.motion == case.motion, found.thing == case.thing
        right["motion"] += motion
        right["content"] += content
        right["both"] += motion and content
    return {"right": right, "videos": len(cases), "errors": errors(runner.pipeline)}


def table(out: Path) -> Table:
    made = Table(title="New motion transformers, seeds side by side")
    for column in ("run", "steps x clips", "motion", "content", "both", "v at 450", "v at 900"):
        made.add_column(column, justify="left" if column == "run" else "right")
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
        made.add_row(name, *rows)
    return made


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
    parser.add_argument("--clips", type=int, default=3000, help="to train with, again and again")
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--runs", nargs="*", choices=RUNS, help="default: all")
    parser.add_argument("keys", nargs="*", help="more of the training's key=value")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.out.mkdir(parents=True, exist_ok=True)
    for name in asked.runs or RUNS:
        for seed in asked.seeds:
            file = asked.out / f"{slug(name)}-{seed}.json"
            if file.exists():
                continue
            folder = train(name, seed, asked, asked.work / file.stem)
            told = {"run": name, "seed": seed, "steps": asked.steps, "batch": asked.batch}
            told |= score(folder)
            file.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    Console(width=120).print(table(asked.out))


if __name__ == "__main__":
    main()
