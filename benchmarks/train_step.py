"""Measures the cost of the motion losses in a training step, and the gain of our optimizations.

Steps of the built-in model's size on clips of the sprite world, in three variants:
- lean: only the diffusion loss, from cached latents;
- full: the text-motion and the video-motion loss too, from cached latents and optical flow. One
  attention pass gives output and maps, and the flow of all frame pairs is computed at once;
- plain: the same losses without optimizations. The autoencoder and the real clip's flow run in
  every step, attention is computed again for the maps, and flow one frame pair at a time.
The regularization loss, a cosine between two vectors, has no measurable cost.
The order is lean, full, plain, lean, full, plain, in one process.

    python benchmarks/train_step.py [--batch 8] [--rounds 3]
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from einops import rearrange
from rich.console import Console
from rich.table import Table
from torch import Tensor

from demo_t2v.checkpoints.resolve import load_pipeline
from demo_t2v.data.sprites import draw_clip
from demo_t2v.losses.motion import diffusion, text_motion, video_motion
from demo_t2v.losses.optical_flow import lucas_kanade, resize_flow, video_flow
from demo_t2v.models.attention import Attention, KeysValues
from demo_t2v.training.data.pixels import to_pixels

FLOW_SIDE = 32


def pairwise(first: Tensor, second: Tensor) -> Tensor:
    """Lucas-Kanade, one frame pair at a time."""
    return torch.cat([lucas_kanade(a[None], b[None]) for a, b in zip(first, second, strict=True)])


class TwoPassAttention(Attention):
    """Attention that computes the same products again for the map."""

    def with_map(self, x: Tensor, kv: KeysValues, token_index: Tensor) -> tuple[Tensor, Tensor]:
        return self.forward(x, kv), super().with_map(x, kv, token_index)[1]


class Step:
    """One training step on a fixed batch, forward and backward."""

    def __init__(self, batch: int) -> None:
        self.pipe = load_pipeline("sprites", device="cpu", dtype="float32")
        self.unet = self.pipe.unet.train()
        clips = [draw_clip(np.random.default_rng(n)) for n in range(batch)]
        pixels = to_pixels(torch.from_numpy(np.concatenate([clip.frames for clip in clips])))
        self.pixels = rearrange(pixels, "(b f) c h w -> b c f h w", b=batch)
        with torch.no_grad():
            states, _ = self.pipe.encode_prompt([clip.caption for clip in clips])
            self.latents = self.encode()
            self.flow = self.real_flow(lucas_kanade)
        self.states, self.ends = states, states.eot_index
        self.noise = torch.randn_like(self.latents)
        self.times = torch.randint(0, 1000, (batch,))

    def encode(self) -> Tensor:
        frames = rearrange(self.pixels, "b c f h w -> (b f) c h w")
        means = self.pipe.vae.encode(frames).latent_dist.mean * self.pipe.vae.config.scaling_factor
        return rearrange(means, "(b f) c h w -> b c f h w", b=len(self.pixels))

    def real_flow(self, estimator: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        flow = video_flow(estimator, self.pixels)
        small = resize_flow(rearrange(flow, "b f d h w -> (b f) d h w"), (FLOW_SIDE, FLOW_SIDE))
        return rearrange(small, "(b f) d h w -> b f d h w", b=len(flow))

    def lean(self) -> Tensor:
        return self.loss(self.latents, None, lucas_kanade)

    def full(self) -> Tensor:
        return self.loss(self.latents, self.flow, lucas_kanade)

    def plain(self) -> Tensor:
        with torch.no_grad():
            latents, flow = self.encode(), self.real_flow(pairwise)
        self.set_attention(TwoPassAttention)
        try:
            return self.loss(latents, flow, pairwise)
        finally:
            self.set_attention(Attention)

    def set_attention(self, kind: type[Attention]) -> None:
        for name, module in self.unet.named_modules():
            if name.endswith("attn2") and "motion_attentions" in name:
                module.__class__ = kind

    def loss(
        self,
        latents: Tensor,
        flow: Tensor | None,
        estimator: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        scheduler = self.pipe.scheduler
        noisy = scheduler.add_noise(latents, self.noise, self.times)
        output = self.unet(
            noisy,
            self.times,
            self.states.content,
            self.states.motion,
            eot_index=None if flow is None else self.ends,
        )
        # The prediction is compared with the clean latents; its type does not change the time.
        total = diffusion(output.sample, latents)
        if flow is None:
            return total
        total = total + 0.1 * video_motion(output.sample, latents)
        return total + 0.1 * text_motion(output.eot_attention, estimator, flow)


def seconds(run: Callable[[], Tensor]) -> float:
    started = time.perf_counter()
    run().backward()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    step = Step(args.batch)
    variants = {"lean": step.lean, "full": step.full, "plain": step.plain}
    for run in variants.values():
        seconds(run)  # warm up
    rounds = [{name: seconds(run) for name, run in variants.items()} for _ in range(args.rounds)]
    table = Table(
        title=f"batch {args.batch}, {platform.machine()}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads"
    )
    for column in ("round", *(f"{name}, s" for name in variants), "plain / full", "full / lean"):
        table.add_column(column, justify="right")
    for number, took in enumerate(rounds, start=1):
        cells = [f"{value:.2f}" for value in took.values()]
        ratios = took["plain"] / took["full"], took["full"] / took["lean"]
        table.add_row(str(number), *cells, *(f"{ratio:.2f}" for ratio in ratios))
    console = Console()
    console.print(table)
    saved = statistics.median(took["plain"] / took["full"] for took in rounds)
    cost = statistics.median(took["full"] / took["lean"] for took in rounds)
    console.print(f"median plain / full {saved:.2f}, full / lean {cost:.2f}")


if __name__ == "__main__":
    main()
