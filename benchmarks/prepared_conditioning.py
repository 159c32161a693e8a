"""Measures the gain of computing the prompt's keys and values once for all denoising steps.

Runs twenty forward passes of the built-in denoiser at batch 4, with keys and values prepared once
(A) and computed in each pass (B), in the order A B A B A B.
"""

from __future__ import annotations

import platform
import statistics
import time

import torch
from rich.console import Console
from rich.table import Table

from demo_t2v.checkpoints.resolve import load_pipeline

STEPS, BATCH, ROUNDS = 20, 4, 3


def main() -> None:
    pipe = load_pipeline("sprites")
    states, _ = pipe.encode_prompt(["a car moves to the left on the grass"] * BATCH)
    config = pipe.unet.config
    side, frames = config.sample_size, config.sample_frames
    latents = torch.randn(BATCH, config.in_channels, frames, side, side, device=pipe.device)

    def seconds(prepared: bool) -> float:
        started = time.perf_counter()
        conditioning = {"content": states.content, "motion": states.motion}
        if prepared:
            conditioning = {"conditioning": pipe.unet.prepare_conditioning(**conditioning)}
        for step in range(STEPS):
            pipe.unet(latents, 50 * step, **conditioning)
        return time.perf_counter() - started

    with torch.no_grad():
        seconds(prepared=True)  # warm up
        pairs = [(seconds(prepared=True), seconds(prepared=False)) for _ in range(ROUNDS)]
    table = Table(
        title=f"{STEPS} passes, {pipe.device}, {platform.machine()}, torch {torch.__version__}"
    )
    for column in ("round", "prepared, s", "each pass, s", "each pass / prepared"):
        table.add_column(column, justify="right")
    for number, (once, each) in enumerate(pairs, start=1):
        table.add_row(str(number), f"{once:.2f}", f"{each:.2f}", f"{each / once:.3f}")
    console = Console()
    console.print(table)
    median = statistics.median(each / once for once, each in pairs)
    console.print(f"median ratio {median:.3f}, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
