"""Measures one forward pass of the denoiser against a plain one and against diffusers' network.

    python benchmarks/denoiser.py --rounds 2                    published size, 256x256, 16 frames
    python benchmarks/denoiser.py --dtype bfloat16 --json benchmarks/results/denoiser.json
    python benchmarks/denoiser.py --widths 320 640 --side 16    its first two levels, smaller

Variants, in turn, in one process, with random weights:
- demo: our network, with keys and values prepared once for a prompt;
- base: our network without motion transformers, as diffusers' one;
- plain demo: the same network with torch's linear layers and memory layout, the states repeated
  for each frame and position, and their keys and values computed in each pass;
- diffusers base: diffusers' UNet3DConditionModel, ModelScopeT2V's base network.

FLOPs are counted. Seconds per FLOP are compared, round by round.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet3DConditionModel
from rich.console import Console
from rich.table import Table
from timing import Ceiling, Measurement, Spread, count_flops, environment, in_turn, ratio
from torch import Tensor, nn
from torch.nn import functional as F

from demo_t2v.core.atomic_io import atomic_write
from demo_t2v.models.attention import GEGLU, FeedForward, KeysValues, Transformer
from demo_t2v.models.linear import Linear
from demo_t2v.models.unet import DemoUNet

TOKENS, STATE_WIDTH = 77, 1024
POOL = 1 << 26


class PlainGEGLU(GEGLU):
    """Keeps GELU's output beside the product."""

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class PlainFeedForward(FeedForward):
    """Computes all rows at once."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class PlainTransformer(Transformer):
    """Repeats the states for each frame or position, as the published code does."""

    def keys_values(self, states: Tensor) -> KeysValues:
        return KeysValues(states, states)

    def forward(
        self,
        x: Tensor,
        num_frames: int,
        encoder_kv: KeysValues | None = None,
        token_index: Tensor | None = None,
        strength: float = 1.0,
    ) -> tuple[Tensor, Tensor | None]:
        if encoder_kv is not None:
            states = encoder_kv.keys
            rows = len(x) if self.kind == "content" else x[:, 0].numel() // num_frames
            repeated = states.repeat_interleave(rows // len(states), dim=0)
            encoder_kv = self.transformer_blocks[0].attn2.keys_values(repeated)
        return super().forward(x, num_frames, encoder_kv, token_index, strength)


class PlainConv2d(nn.Conv2d):
    """Puts its input into torch's default layout, which all layers after it keep."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.contiguous())


PLAIN: dict[type[nn.Module], type[nn.Module]] = {
    GEGLU: PlainGEGLU,
    FeedForward: PlainFeedForward,
    Transformer: PlainTransformer,
    Linear: nn.Linear,
    nn.Conv2d: PlainConv2d,
}


@dataclass(frozen=True)
class Inputs:
    """Latents (1, 4, F, H, W) and states (1, L, D)."""

    sample: Tensor
    states: Tensor
    timestep: Tensor

    def to(self, device: str, dtype: torch.dtype) -> Inputs:
        return Inputs(
            self.sample.to(device, dtype), self.states.to(device, dtype), self.timestep.to(device)
        )


def make_ours(args: argparse.Namespace, motion: bool, plain: bool = False) -> DemoUNet:
    attention = [True] * (len(args.widths) - 1) + [False]
    unet = DemoUNet(
        block_out_channels=args.widths, layers_per_block=args.layers, attention=attention,
        motion=motion,
    )  # fmt: skip
    if plain:
        for module in unet.modules():
            module.__class__ = PLAIN.get(type(module), type(module))
    return unet


def make_theirs(args: argparse.Namespace) -> UNet3DConditionModel:
    deeper = len(args.widths) - 1
    return UNet3DConditionModel(
        block_out_channels=tuple(args.widths),
        layers_per_block=args.layers,
        down_block_types=("CrossAttnDownBlock3D",) * deeper + ("DownBlock3D",),
        up_block_types=("UpBlock3D",) + ("CrossAttnUpBlock3D",) * deeper,
    )


def fill(network: nn.Module, pool: Tensor) -> None:
    """Give a network of the meta device random weights: slices of one tensor, to save memory."""
    offset = 0
    for module in network.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            offset = (offset + weight.numel()) % (len(pool) - weight.numel())
            values = pool[offset : offset + weight.numel()].view(weight.shape)
            setattr(module, name, nn.Parameter(values, requires_grad=False))


def forward(network: nn.Module, inputs: Inputs, prepare: bool) -> Callable[[], object]:
    """A forward pass; with `prepare` the prompt's keys and values are computed before it."""
    if not isinstance(network, DemoUNet):
        return lambda: network(inputs.sample, inputs.timestep, inputs.states)
    states = {"content": inputs.states, "motion": inputs.states}
    if prepare:
        conditioning = network.prepare_conditioning(**states)
        return lambda: network(inputs.sample, inputs.timestep, conditioning=conditioning)
    return lambda: network(inputs.sample, inputs.timestep, **states)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    dtype: torch.dtype = getattr(torch, args.dtype)
    inputs = Inputs(
        torch.randn(1, 4, args.frames, args.side, args.side),
        torch.randn(1, TOKENS, STATE_WIDTH),
        torch.tensor([500]),
    )
    with torch.device("meta"):
        networks = {
            "demo": make_ours(args, motion=True),
            "base": make_ours(args, motion=False),
            "plain demo": make_ours(args, motion=True, plain=True),
            "diffusers base": make_theirs(args),
        }
    networks = {name: networks[name].eval() for name in args.variants or networks}
    flops, variants = {}, {}
    abstract = inputs.to("meta", torch.float32)
    pool = (0.02 * torch.randn(POOL)).to(args.device, dtype)
    inputs = inputs.to(args.device, dtype)
    for name, network in networks.items():
        prepare = not name.startswith("plain")
        flops[name] = count_flops(forward(network, abstract, prepare))
        fill(network, pool)
        variants[name] = forward(network, inputs, prepare)
    ceiling = Ceiling(dtype, args.device)
    results = in_turn(variants | ceiling.variants, args.rounds, args.warm_up)
    return report(results, flops, ceiling.rates(results))


def report(
    results: dict[str, Measurement], flops: dict[str, int], rates: tuple[float, float]
) -> dict[str, Any]:
    figures = {}
    peer = "diffusers base" if "diffusers base" in flops else next(iter(flops))
    for name, count in flops.items():
        each = ratio(results[name], results[peer])
        scale = flops[peer] / count
        figures[name] = {
            "seconds": asdict(results[name].spread),
            "tflop": round(count / 1e12, 4),
            "ratio_of_seconds": asdict(each),
            "ratio_of_seconds_per_flop": asdict(
                Spread(each.median * scale, each.low * scale, each.high * scale)
            ),
            "share_of_ceiling": round(count / results[name].median / rates[0], 3),
            "peak_mib": round(results[name].peak_bytes / 2**20),
        }
    return {
        "ceiling_gflop_per_second": round(rates[0] / 1e9, 1),
        "ceiling_copy_gb_per_second": round(rates[1] / 1e9, 1),
        "compared_with": peer,
        "variants": figures,
    }


def show(figures: dict[str, Any]) -> None:
    table = Table(title=f"compared with {figures['compared_with']}")
    for column in ("variant", "seconds", "TFLOP", "seconds / FLOP, ratio", "ceiling", "peak, MiB"):
        table.add_column(column)
    for name, one in figures["variants"].items():
        table.add_row(
            name,
            str(Spread(**one["seconds"])),
            f"{one['tflop']:.3f}",
            str(Spread(**one["ratio_of_seconds_per_flop"])),
            f"{one['share_of_ceiling']:.0%}",
            str(one["peak_mib"]),
        )
    Console().print(table)
    rest = {key: value for key, value in figures.items() if key != "variants"}
    Console().print_json(data=rest, default=str)


@torch.no_grad()
def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--widths", type=int, nargs="+", default=[320, 640, 1280, 1280])
    parser.add_argument("--layers", type=int, default=2, help="layers of a block")
    parser.add_argument("--side", type=int, default=32, help="side of the latents")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--variants", nargs="+", help="default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warm-up", type=int, default=1, help="rounds that do not count")
    parser.add_argument("--json", type=Path, help="file for all figures")
    args = parser.parse_args()
    figures = {**environment(), "arguments": vars(args), **measure(args)}
    show(figures)
    if args.json:
        with atomic_write(args.json) as partial:
            partial.write_text(json.dumps(figures, indent=1, default=str) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
