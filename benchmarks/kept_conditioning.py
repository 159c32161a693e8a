"""What does it save to keep the prompt's keys and values over all denoising steps?

Twenty forward passes of the built-in denoiser at batch 4, with keys and values prepared once (A)
and computed anew in each pass (B), in the order A B A B A B.
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

    def seconds(kept: bool) -> float:
        started = time.perf_counter()
        heard = {"content": states.content, "motion": states.motion}
        if kept:
            heard = {"conditioning": pipe.unet.prepare_conditioning(**heard)}
        for step in range(STEPS):
            pipe.unet(latents, 50 * step, **heard)
        return time.perf_counter() - started

    with torch.no_grad():
        seconds(kept=True)  # warm up
        pairs = [(seconds(kept=True), seconds(kept=False)) for _ in range(ROUNDS)]
    table = Table(
        title=f"{STEPS} passes, {pipe.device}, {platform.machine()}, torch {torch.__version__}"
    )
    for column in ("round", "kept, s", "anew, s", "anew / kept"):
        table.add_column(column, justify="right")
    for number, (kept, anew) in enumerate(pairs, start=1):
        table.add_row(str(number), f"{kept:.2f}", f"{anew:.2f}", f"{anew / kept:.3f}")
    console = Console()
    console.print(table)
    middle = statistics.median(anew / kept for kept, anew in pairs)
    console.print(f"median ratio {middle:.3f}, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
