"""A checkout of the published code as its users have it, with small weights of no meaning."""

from __future__ import annotations

from pathlib import Path

from layouts import write_published

BASE_FILES = ("VQGAN_autoencoder.pth", "open_clip_pytorch_model.bin")


def write_models(models: Path) -> None:
    """`demo/` beside `modelscopet2v/`, as the published README has it."""
    base, demo = models / "modelscopet2v", models / "demo"
    base.mkdir(parents=True)
    demo.mkdir()
    write_published(base, motion=False)
    write_published(demo, motion=True)
    for name in BASE_FILES:
        (demo / name).unlink()


def write_steps(models: Path, checkpoints: Path, *steps: int) -> None:
    """What the published training writes after so many steps: here, DEMO's own weights."""
    checkpoints.mkdir(parents=True)
    for step in steps:
        for name, end in (("demo", ""), ("motion_encoder", "_motion_encoder")):
            target = checkpoints / f"non_ema_{step:08d}{end}.pth"
            target.hardlink_to(models / "demo" / f"{name}.pth")
