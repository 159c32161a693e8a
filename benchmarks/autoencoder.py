"""How sharp is the built-in autoencoder, and does the score still read what went through it?

    python benchmarks/autoencoder.py
    python benchmarks/autoencoder.py --vae runs/sprites/encoder/final/vae --clips 324

Random frames with uniform angles, encoded and decoded: the error inside the thing. Real clips of
the scored prompts, encoded and decoded: how many show the thing and the motion.
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

FRAMES = 256
CONTRAST = 0.08


@torch.no_grad()
def rebuild(vae: AutoencoderKL, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 (F, H, W, 3), encoded to the mean latents and decoded."""
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1
    decoded = vae.decode(vae.encode(pixels).latent_dist.mean).sample
    levels = (decoded.clamp(-1, 1) + 1) * 127.5
    return levels.round().byte().permute(0, 2, 3, 1).numpy()


def errors(vae: AutoencoderKL, side: int) -> tuple[float, float]:
    """PSNR in dB inside the things of all frames, and over all of their pixels."""
    inside, over = np.empty(0), []
    for seed in range(2 * FRAMES):
        clip = draw_pose(np.random.default_rng([2024, seed]), side)
        if clip.truth.angle[0] == 0:
            continue  # the rest has uniform angles
        background = render_background(clip.background, side)
        thing = np.abs(clip.frames[0] - background).max(-1) > CONTRAST * 255
        error = (rebuild(vae, clip.frames)[0].astype(float) - clip.frames[0]) / 255
        inside = np.append(inside, error[thing] ** 2)
        over.append((error**2).mean())
        if len(over) == FRAMES:
            break
    return -10 * math.log10(inside.mean()), -10 * math.log10(np.mean(over))


def score(vae: AutoencoderKL, side: int, clips: int) -> tuple[int, int]:
    """How many real clips show their thing, and their motion, after the autoencoder."""
    things = motions = 0
    for case in list_prompts()[:clips]:
        path = trajectory(case.motion, case.speed, np.random.default_rng(case.seed))
        found = classify_video(rebuild(vae, render(case.thing, case.background, path, side)))
        things += found.thing == case.thing
        motions += found.motion == case.motion
    return things, motions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vae", type=Path, default=BUILT_IN["sprites"] / "vae")
    parser.add_argument("--clips", type=int, default=324)
    asked = parser.parse_args()
    vae = AutoencoderKL.from_pretrained(asked.vae, dtype=torch.float32).eval()
    side = vae.config.sample_size
    inside, over = errors(vae, side)
    print(f"{FRAMES} frames of {side}x{side}, uniform angles: {inside:.2f} dB inside the thing, "
          f"{over:.2f} dB over the frame")  # fmt: skip
    things, motions = score(vae, side, asked.clips)
    print(f"{asked.clips} real clips: thing right in {things}, motion right in {motions}")


if __name__ == "__main__":
    main()
