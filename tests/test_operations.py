"""How much one forward pass and one default video compute: no figure may grow unnoticed.

A change that computes less lowers the figure: run the test, and write what it prints. A change
that computes more says in its commit what the growth is for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from demo_t2v.checkpoints.resolve import load_pipeline
from demo_t2v.models.unet import DemoUNet, DemoUNetOutput
from demo_t2v.pipeline import DemoPipeline
from helpers.tiny_networks import tiny_unet

# FLOPs (a product and a sum are two) and operator calls of one forward pass with prepared keys and
# values, for one sample of the network's own size.
BUILT_IN = 3_696_519_168, 774
TINY_DEMO = 25_798_656, 782

# Samples that the denoiser computes for one default video of the built-in model: two, with prompt
# and negative prompt, in each of six steps with guidance, and one in each of two without.
DEFAULT_VIDEO = 14


class OperatorCounter(TorchDispatchMode):
    """Counts calls of operators that compute or copy; views do neither."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.calls += not func.is_view
        return func(*args, **(kwargs or {}))


def count(run: Callable[[], object]) -> tuple[int, int]:
    """FLOPs and operator calls."""
    with FlopCounterMode(display=False) as flops:
        run()
    with OperatorCounter() as operators:
        run()
    return flops.get_total_flops(), operators.calls


def forward(unet: DemoUNet) -> Callable[[], object]:
    """One forward pass of one sample."""
    sizes = unet.config
    side = sizes.sample_size
    sample = torch.zeros(1, sizes.in_channels, sizes.sample_frames, side, side)
    states = torch.zeros(1, 77, sizes.cross_attention_dim)
    conditioning = unet.prepare_conditioning(states, states)
    return lambda: unet(sample, 500, conditioning=conditioning)


@pytest.fixture(scope="module")
def built_in() -> DemoPipeline:
    return load_pipeline("sprites", device="cpu", dtype="float32")


@torch.no_grad()
def test_a_forward_pass_of_the_built_in_denoiser(built_in: DemoPipeline) -> None:
    flops, calls = count(forward(built_in.unet))
    assert flops <= BUILT_IN[0], (flops, calls)
    assert calls <= BUILT_IN[1], (flops, calls)


@torch.no_grad()
def test_a_forward_pass_of_a_small_demo_network() -> None:
    flops, calls = count(forward(tiny_unet()))
    assert flops <= TINY_DEMO[0], (flops, calls)
    assert calls <= TINY_DEMO[1], (flops, calls)


def test_the_forward_passes_of_a_default_video(
    built_in: DemoPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples: list[int] = []

    def counted(sample: torch.Tensor, *_: Any, **__: Any) -> DemoUNetOutput:
        samples.append(len(sample))
        return DemoUNetOutput(torch.zeros_like(sample))

    monkeypatch.setattr(built_in.unet, "forward", counted)
    built_in("a car moves to the left", output_type="latent")
    assert 0 < sum(samples) <= DEFAULT_VIDEO, samples
