"""How much memory a model takes, read from its folder, and the cheapest way to make it fit.

Nothing is loaded. The formulas were fitted to the live tensor bytes of forward passes, counted on
torch's meta device: of the full-size network, Stable Diffusion's autoencoder and small ones.
`tests/test_memory.py` counts again. Attention is counted as fused kernels do it, without its table
of scores. What cannot be counted so is in `RESERVE` and `OVERHEAD`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from safetensors import SafetensorError, safe_open

from demo_t2v.checkpoints.resolve import ResolvedModel, read_defaults
from demo_t2v.config import ConfigError, InferenceConfig
from demo_t2v.core.devices import SHARED_MEMORY, resolve_device
from demo_t2v.diffusion.guidance import make_guidance
from demo_t2v.model_folder import ModelError, only_variant, weight_files

Offload = Literal["none", "model", "sequential"]

TEXT: Final = ("content_encoder", "motion_encoder")
DENOISING: Final = ("unet", "vae")
ITEM_BYTES: Final[Mapping[str, int]] = {"float32": 4, "bfloat16": 2, "float16": 2}
RESERVE: Final[Mapping[str, int]] = {"cpu": 512 << 20, "gpu": 768 << 20}
"""Bytes beside weights and tensors. On the CPU Python and its libraries: about 400 MiB were seen.
On a GPU the driver's context and the libraries' workspaces: a guess, measured nowhere yet."""
OVERHEAD: Final[Mapping[str, float]] = {"cpu": 2.3, "gpu": 1.2}
"""What the device holds for each live byte of a pass. On the CPU the resident size of the built-in
model grew by 2.2 bytes a byte, between 4 frames of 64x64 and four videos of 16 frames of
128x128; what the convolutions reorder and what the allocator keeps. On a GPU a guess."""


@dataclass(frozen=True)
class Network:
    """One network of a model: its class, its parameters, and those of its largest tensor."""

    name: str
    kind: str
    parameters: int
    largest: int
    config: Mapping[str, Any]


Networks = Mapping[str, Network]
"""A model's networks by their names in its folder."""


@dataclass(frozen=True)
class Request:
    """What is to be made at once: `batch` videos, sizes in pixels, `item` bytes a number.

    The network makes `predictions` for each video in a step: 2 with guidance. It gets at
    most `window` of the frames at once (None: all).
    """

    batch: int
    frames: int
    height: int
    width: int
    predictions: int
    item: int
    window: int | None = None


@dataclass(frozen=True)
class Plan:
    """One way to run: what stays off the device, and how many frames are decoded at once."""

    decode_chunk_size: int
    drop_text: bool = False
    offload: Offload = "none"

    def __str__(self) -> str:
        way = "all parts in memory"
        if self.offload != "none":
            way = f"{self.offload} offload"
        elif self.drop_text:
            way = "text encoders dropped after encoding"
        frames = "1 frame" if self.decode_chunk_size == 1 else f"{self.decode_chunk_size} frames"
        return f"{way}, {frames} decoded at once"


def read_networks(folder: Path) -> dict[str, Network]:
    """The networks of the model in `folder`, from the headers of its files. Raises ModelError."""
    read_defaults(folder)
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    names = [name for name in (*TEXT, *DENOISING) if (index.get(name) or [None])[0] is not None]
    return {name: _read_network(folder / name, index[name][1]) for name in names}


def plans(decode_chunk_size: int, device: str) -> Iterator[Plan]:
    """Every plan for at most `decode_chunk_size` frames decoded at once, the fastest first.

    Where a device has the CPU's memory, there is nothing to offload to. On the CPU a plan also has
    no use for a lower precision: without instructions for it, it is far slower.
    """
    chunks = [decode_chunk_size, *(size for size in (4, 1) if size < decode_chunk_size)]
    yield from map(Plan, chunks)
    yield Plan(chunks[-1], drop_text=True)
    if device.partition(":")[0] not in SHARED_MEMORY:
        yield Plan(chunks[-1], offload="model")
        yield Plan(chunks[-1], offload="sequential")


def peak(networks: Networks, request: Request, plan: Plan, device: str) -> int:
    """Bytes on the device at the worst moment of a run; on the CPU, of the process."""
    kind = "cpu" if device == "cpu" else "gpu"
    weights = {name: network.parameters * request.item for name, network in networks.items()}
    if plan.offload == "sequential":
        weights = {name: network.largest * request.item for name, network in networks.items()}
    states, active = (
        conditioning_bytes(networks, request),
        activation_bytes(networks, request, plan),
    )
    needs = {
        name: int((active[name] + (states if name in DENOISING else 0)) * OVERHEAD[kind])
        for name in networks
    }
    if plan.offload != "none":
        total = max(weights[name] + needs[name] for name in networks)
    elif plan.drop_text:
        groups = [[name for name in group if name in networks] for group in (TEXT, DENOISING)]
        total = max(
            sum(weights[name] for name in group) + max(needs[name] for name in group)
            for group in groups
        )
    else:
        total = sum(weights.values()) + max(needs.values())
    return total + RESERVE[kind]


def choose(
    networks: Networks,
    request: Request,
    decode_chunk_size: int,
    device: str,
    limit: int,
) -> tuple[Plan, int]:
    """The fastest plan whose peak is within `limit` bytes, and the peak. Raises ModelError."""
    every = plans(decode_chunk_size, device)
    peaks = [(plan, peak(networks, request, plan, device)) for plan in every]
    for plan, need in peaks:
        if need <= limit:
            return plan, need
    least = min(need for _, need in peaks)
    raise ModelError(
        f"max_memory {show(limit)}: the least for this model is {show(least)} "
        f"({request.batch} videos of {request.frames} frames, {request.height}x{request.width}); "
        "lower batch_size, num_frames, height or width"
    )


def pick(model: ResolvedModel, config: InferenceConfig, videos: int) -> tuple[Plan, str]:
    """How to make so many videos with `config`, and one line about it where `max_memory` is set.

    Raises ModelError where nothing fits, ConfigError where `offload` is set too.
    """
    if config.max_memory is None:
        return Plan(config.decode_chunk_size, offload=config.offload), ""
    if config.offload != "none":
        raise ConfigError("max_memory: picks the offload by itself; leave offload out")
    device, dtype = resolve_device(config.device, config.dtype)
    networks, request = read_networks(model.folder), requested(model, config, videos)
    plan, need = choose(networks, request, config.decode_chunk_size, device, config.max_memory)
    line = f"{plan}: about {show(need)} of {show(config.max_memory)}"
    return plan, f"max_memory on {device}, {dtype}: {line}"


def requested(model: ResolvedModel, config: InferenceConfig, videos: int) -> Request:
    """What one batch of so many videos is; the model's own values where `config` has none."""
    complete = model.defaults.complete(config)
    assert complete.num_frames
    assert complete.height
    assert complete.width
    return Request(
        batch=min(complete.batch_size, videos),
        frames=complete.num_frames,
        height=complete.height,
        width=complete.width,
        predictions=make_guidance(**complete.guidance).max_predictions,
        item=ITEM_BYTES[resolve_device(config.device, config.dtype)[1]],
        window=complete.window_frames or model.defaults.frames,
    )


def activation_bytes(networks: Networks, request: Request, plan: Plan) -> dict[str, int]:
    """What each network adds to its weights while it runs."""
    pixels = request.height * request.width
    active = {}
    for name in TEXT:
        if name in networks:
            config = networks[name].config
            width, layers = config["hidden_size"], config["num_hidden_layers"]
            per_token = (layers + 6) * width + 3 * config["intermediate_size"]
            active[name] = _rows(request) * config["max_position_embeddings"] * per_token
    unet, vae = (networks[name].config for name in DENOISING)
    positions = pixels // 4 ** (len(vae["block_out_channels"]) - 1)
    window = min(request.window or request.frames, request.frames)
    active["unet"] = _rows(request) * window * positions * _denoiser_width(unet)
    first, second = _first_two(vae)
    chunk = min(plan.decode_chunk_size, request.batch * request.frames)
    active["vae"] = chunk * pixels * (4 * first + second + 1)
    sizes = {name: count * request.item for name, count in active.items()}
    # The chunk's frames: in the network's precision twice, in float32 twice. All frames: as bytes.
    sizes["vae"] += chunk * pixels * 3 * (2 * request.item + 8)
    sizes["vae"] += request.batch * request.frames * pixels * 3
    return sizes


def conditioning_bytes(networks: Networks, request: Request) -> int:
    """The keys and values of the prompts, which stay for all steps."""
    config = networks["unet"].config
    depth, levels = config["layers_per_block"], config["block_out_channels"]
    widths = sum(
        (2 * depth + 1) * width
        for width, attention in zip(levels, config["attention"], strict=True)
        if attention
    )
    branches = 2 if config["motion"] else 1
    tokens = networks["content_encoder"].config["max_position_embeddings"]
    return int(_rows(request) * tokens * 2 * branches * (widths + levels[-1]) * request.item)


def show(size: int) -> str:
    """Bytes as a person reads them: 7.5GiB, 512MiB; never less than they are."""
    if size >= 1 << 30:
        return f"{math.ceil(size / (1 << 30) * 10) / 10:.1f}GiB"
    return f"{math.ceil(size / (1 << 20))}MiB"


def _rows(request: Request) -> int:
    """Samples that a network processes at once."""
    return request.batch * request.predictions


def _denoiser_width(config: Mapping[str, Any]) -> int:
    """Numbers for each position of the latents, at the worst moment of a forward pass.

    At the full side that is a feed-forward in the first transformer, or the end of the way up,
    where the skip connections weigh too: a feed-forward there, or a residual block.
    """
    first, second = _first_two(config)
    layer = 21 if config["attention"][0] else 8
    inner = config["num_input_heads"] * config["attention_head_dim"] if config["temporal"] else 0
    last = (layer + config["layers_per_block"]) * first + 2 * second
    return int(max(15 * inner + 3 * first, last))


def _first_two(config: Mapping[str, Any]) -> tuple[int, int]:
    widths = config["block_out_channels"]
    return widths[0], widths[min(1, len(widths) - 1)]


def _read_network(folder: Path, kind: str) -> Network:
    files = weight_files(folder, only_variant(folder.parent))
    sizes = [size for file in files if file.suffix == ".safetensors" for size in _tensors(file)]
    if not sizes:
        raise ModelError(f"{folder}: has no *.safetensors, from which its size could be read")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return Network(folder.name, kind, sum(sizes), max(sizes), config)


def _tensors(file: Path) -> Iterator[int]:
    """How many numbers each tensor of a safetensors file has; of the file, its header is read."""
    try:
        with safe_open(file, "np") as stored:
            yield from (math.prod(stored.get_slice(k).get_shape()) for k in stored.keys())  # noqa: SIM118
    except SafetensorError:
        raise ModelError(f"{file}: is not a safetensors file") from None
