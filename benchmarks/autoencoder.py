"""Measures how sharp the built-in autoencoder is, and whether the score recognizes its frames.

    python benchmarks/autoencoder.py
    python benchmarks/autoencoder.py --vae runs/sprites/encoder/final/vae --clips 324

Random frames with uniform angles are encoded and decoded; the figure is the error inside the thing.
Real clips of the scored prompts are encoded and decoded; the figures are the clips that show the
thing and the motion.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray

from demo_t2v.checkpoints.resolve import BUILT_IN
from demo_t2v.data.sprites import draw_pose, render, render_background, trajectory
from demo_t2v.evaluation.sprites.classification import classify_video
from demo_t2v.evaluation.sprites.prompts import list_prompts
from demo_t2v.training.data.pixels import to_pixels

FRAMES = 256
CONTRAST = 0.08


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 (F, H, W, 3), encoded to the mean latents and decoded."""
    decoded = vae.decode(vae.encode(to_pixels(torch.from_numpy(frames))).latent_dist.mean).sample
    levels = (decoded.clamp(-1, 1) + 1) * 127.5
    return levels.round().byte().permute(0, 2, 3, 1).numpy()


def errors(vae: AutoencoderKL, side: int) -> tuple[float, float]:
    """PSNR in dB inside the things of all frames, and over all of their pixels."""
    inside, over = np.empty(0), []
    for seed in range(2 * FRAMES):
        clip = draw_pose(np.random.default_rng([2024, seed]), side)
        if clip.truth.angle[0] == 0:
            continue  # the other clips have uniform angles
        background = render_background(clip.background, side)
        thing = np.abs(clip.frames[0] - background).max(-1) > CONTRAST * 255
        error = (reconstruct(vae, clip.frames)[0].astype(float) - clip.frames[0]) / 255
        inside = np.append(inside, error[thing] ** 2)
        over.append((error**2).mean())
        if len(over) == FRAMES:
            break
    return -10 * math.log10(inside.mean()), -10 * math.log10(np.mean(over))


def score(vae: AutoencoderKL, side: int, clips: int) -> tuple[int, int]:
    """Number of real clips that show their thing, and their motion, after the autoencoder."""
    things = motions = 0
    for case in list_prompts()[:clips]:
        path = trajectory(case.motion, case.speed, np.random.default_rng(case.seed))
        found = classify_video(reconstruct(vae, render(case.thing, case.background, path, side)))
        things += found.thing == case.thing
        motions += found.motion == case.motion
    return things, motions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vae", type=Path, default=BUILT_IN["sprites"] / "vae")
    parser.add_argument("--clips", type=int, default=324)
    args = parser.parse_args()
    vae = AutoencoderKL.from_pretrained(args.vae, dtype=torch.float32).eval()
    side = vae.config.sample_size
    inside, over = errors(vae, side)
    print(f"{FRAMES} frames of {side}x{side}, uniform angles: {inside:.2f} dB inside the thing, "
          f"{over:.2f} dB over the frame")  # fmt: skip
    things, motions = score(vae, side, args.clips)
    print(f"{args.clips} real clips: thing right in {things}, motion right in {motions}")


if __name__ == "__main__":
    main()
