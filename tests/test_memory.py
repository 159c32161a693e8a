"""Memory: estimates against counted bytes, and the choice of a plan."""

from __future__ import annotations

import json
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import CLIPTextConfig, CLIPTextModel

from demo_t2v.checkpoints.memory import (
    DENOISING,
    TEXT,
    Network,
    Plan,
    Request,
    activation_bytes,
    choose,
    conditioning_bytes,
    peak,
    pick,
    plans,
    read_networks,
)
from demo_t2v.checkpoints.resolve import BUILT_IN, resolve
from demo_t2v.config import ConfigError, InferenceConfig, load
from demo_t2v.model_folder import ModelError
from demo_t2v.models.text import penultimate_states
from demo_t2v.models.unet import DemoUNet
from demo_t2v.pipeline import DemoPipeline
from helpers.tiny_networks import TINY


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that were made inside and are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = self._storages((args, kwargs))
        out = func(*args, **(kwargs or {}))
        for key, storage in self._storages(out).items():
            if key not in given and key not in self._known:
                self._known.add(key)
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._forget, key, storage.nbytes())
        return out

    def _storages(self, tree: Any) -> dict[int, Any]:
        tensors = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
        return {t.untyped_storage()._cdata: t.untyped_storage() for t in tensors}

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


class FusedAttention(TorchFunctionMode):
    """On the meta device attention would be counted with its scores, which fused kernels lack."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


FULL: dict[str, Any] = {}  # the defaults are the published sizes
SPRITES = json.loads((BUILT_IN["sprites"] / "unet" / "config.json").read_text())
SPRITES_VAE = json.loads((BUILT_IN["sprites"] / "vae" / "config.json").read_text())
STABLE_DIFFUSION = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
}
TEXT_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "max_position_embeddings": 77,
}


def parts_of(unet: dict[str, Any] = TINY, vae: dict[str, Any] = SPRITES_VAE) -> dict[str, Network]:
    """Parts of no weights with real configurations."""
    with torch.device("meta"):
        configs = {
            "content_encoder": TEXT_SIZES,
            "unet": dict(DemoUNet(**own(unet)).config),
            "vae": dict(AutoencoderKL(**own(vae)).config),
        }
    return {name: Network(name, "", 0, 0, config) for name, config in configs.items()}


def factor(vae: dict[str, Any]) -> int:
    """Pixels a side for each latent."""
    return int(2 ** (len(vae["block_out_channels"]) - 1))


def own(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith("_")}


def within(estimate: int, counted: int) -> bool:
    """Whether an estimate is neither too low nor far too high."""
    return counted <= estimate <= 1.6 * counted


@torch.no_grad()
def count_denoiser(config: dict[str, Any], rows: int, frames: int, h: int, w: int) -> int:
    with torch.device("meta"):
        unet = DemoUNet(**own(config)).eval()
        with LiveBytes() as counted, FusedAttention():
            sample = torch.empty(rows, unet.config.in_channels, frames, h, w)
            states = torch.empty(rows, 77, unet.config.cross_attention_dim)
            conditioning = unet.prepare_conditioning(states, states)
            unet(sample, torch.tensor(5), conditioning=conditioning)
    return counted.peak


@pytest.mark.parametrize(
    ("config", "frames", "height", "width"),
    [
        (SPRITES, 16, 8, 8),
        (SPRITES, 4, 16, 8),
        ({**SPRITES, "attention": (True, True)}, 16, 8, 8),
        (TINY, 4, 16, 16),
        (TINY, 16, 16, 32),
        ({**TINY, "layers_per_block": 3}, 8, 16, 16),
        ({**TINY, "motion": False}, 8, 16, 16),
        ({**TINY, "block_out_channels": (16, 64)}, 8, 16, 16),
        ({**TINY, "num_input_heads": 8}, 8, 16, 16),
        ({**TINY, "attention": (False, True)}, 8, 16, 16),
    ],
)
@pytest.mark.parametrize("batch", [1, 4])
def test_the_denoiser_takes_what_is_estimated(
    config: dict[str, Any], frames: int, height: int, width: int, batch: int
) -> None:
    parts, pixels = parts_of(unet=config), factor(SPRITES_VAE)
    request = Request(batch, frames, height * pixels, width * pixels, predictions=2, item=4)
    estimate = activation_bytes(parts, request, Plan(1))["unet"]
    estimate += conditioning_bytes(parts, request)
    assert within(estimate, count_denoiser(config, 2 * batch, frames, height, width))


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "frames", "side"), [(2, 16, 32), (2, 16, 64), (8, 24, 32)])
def test_the_full_denoiser_takes_what_is_estimated(rows: int, frames: int, side: int) -> None:
    parts, pixels = parts_of(unet=FULL), factor(SPRITES_VAE) * side
    request = Request(rows // 2, frames, pixels, pixels, predictions=2, item=4)
    estimate = activation_bytes(parts, request, Plan(1))["unet"]
    estimate += conditioning_bytes(parts, request)
    assert within(estimate, count_denoiser(FULL, rows, frames, side, side))


@pytest.mark.parametrize("config", [SPRITES_VAE, STABLE_DIFFUSION])
@pytest.mark.parametrize(("batch", "chunk"), [(1, 1), (1, 4), (1, 16), (3, 16)])
@torch.no_grad()
def test_decoding_takes_what_is_estimated(
    tiny_pipeline: DemoPipeline, config: dict[str, Any], batch: int, chunk: int
) -> None:
    parts = parts_of(vae=config)
    request = Request(batch, 16, 64, 128, predictions=1, item=4)
    with torch.device("meta"):
        vae = AutoencoderKL(**own(config)).eval()
        pipeline = DemoPipeline(**{**tiny_pipeline.components, "vae": vae})
        with LiveBytes() as counted, FusedAttention():
            size = (16 * batch, 64 // factor(config), 128 // factor(config))
            frames = torch.empty(1, vae.config.latent_channels, *size)
            for part in frames.split(chunk, dim=2):  # as the runner does
                pipeline.decode_latents(part)
    estimate = activation_bytes(parts, request, Plan(chunk))["vae"]
    finished = batch * 16 * 64 * 128 * 3
    assert within(estimate, counted.peak + finished)


@pytest.mark.parametrize("rows", [2, 8])
@torch.no_grad()
def test_the_text_encoder_takes_what_is_estimated(rows: int) -> None:
    with torch.device("meta"):
        encoder = CLIPTextModel(CLIPTextConfig(**TEXT_SIZES)).eval()
        ids = torch.zeros(rows, 77, dtype=torch.long)
        with LiveBytes() as counted, FusedAttention():
            penultimate_states(encoder, ids)
    request = Request(rows // 2, 4, 32, 32, predictions=2, item=4)
    estimate = activation_bytes(parts_of(), request, Plan(1))["content_encoder"]
    assert within(estimate, counted.peak)


def test_parts_are_read_from_the_folder(tiny_folder: Path, tiny_pipeline: DemoPipeline) -> None:
    parts = read_networks(tiny_folder)
    assert list(parts) == [*TEXT, *DENOISING]
    for name, part in parts.items():
        module = getattr(tiny_pipeline, name)
        assert part.kind == type(module).__name__
        assert part.parameters == sum(weight.numel() for weight in module.parameters())
        assert part.largest == max(weight.numel() for weight in module.parameters())


def test_the_base_model_has_no_motion_encoder() -> None:
    assert list(read_networks(BUILT_IN["sprites-base"])) == ["content_encoder", "unet", "vae"]


def copy_of(folder: Path, to: Path) -> Path:
    """The model with the denoiser's weights left out."""
    for file in folder.rglob("*"):
        if file.is_file() and (file.parent.name, file.suffix) != ("unet", ".safetensors"):
            target = to / file.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    return to


def test_shards_count_together(tiny_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_folder, tmp_path)
    with pytest.raises(ModelError, match=r"unet: has no \*\.safetensors"):
        read_networks(folder)
    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(2)}, folder / "unet" / "x-1.safetensors")
    save_file({"c": torch.zeros(4, 6)}, folder / "unet" / "x-2.safetensors", {"format": "pt"})
    part = read_networks(folder)["unet"]
    assert (part.parameters, part.largest) == (3 * 5 + 2 + 4 * 6, 4 * 6)
    (folder / "unet" / "x-2.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0no json!")
    with pytest.raises(ModelError, match="is not a safetensors file"):
        read_networks(folder)


REQUEST = Request(batch=1, frames=16, height=256, width=256, predictions=2, item=2)


@pytest.fixture(scope="module")
def published() -> dict[str, Network]:
    """The published sizes; the towers are OpenCLIP's, of 340 M numbers each."""
    tower = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "max_position_embeddings": 77,
    }
    parts = parts_of(unet=FULL, vae=STABLE_DIFFUSION)
    text = {
        name: Network(name, "CLIPTextModel", 340_000_000, 49_408 * 1024, tower) for name in TEXT
    }
    sizes = {"unet": (1_684_860_000, 2560 * 1280 * 9), "vae": (83_650_000, 512 * 512 * 9)}
    networks = {
        name: replace(parts[name], parameters=numbers, largest=largest)
        for name, (numbers, largest) in sizes.items()
    }
    return text | networks


def test_a_slower_plan_never_takes_more(published: dict[str, Network]) -> None:
    for device in ("cpu", "cuda"):
        peaks = [peak(published, REQUEST, plan, device) for plan in plans(16, device)]
        assert peaks == sorted(peaks, reverse=True)
        assert peaks[-1] < peaks[0]


def test_more_of_anything_takes_more(published: dict[str, Network]) -> None:
    more = {"batch": 2, "frames": 32, "height": 512, "width": 512, "item": 4}
    for plan in plans(16, "cuda"):
        before = peak(published, REQUEST, plan, "cuda")
        for name, value in more.items():
            assert peak(published, replace(REQUEST, **{name: value}), plan, "cuda") >= before
    assert peak(published, replace(REQUEST, predictions=1), Plan(1), "cuda") < peak(
        published, REQUEST, Plan(1), "cuda"
    )


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_long_video_takes_little_more_than_a_window(
    published: dict[str, Network], device: str
) -> None:
    window = replace(REQUEST, window=16)
    for networks in (published, read_networks(BUILT_IN["sprites"])):
        for plan in plans(16, device):
            long = peak(networks, replace(window, frames=256), plan, device)
            assert long <= 1.2 * peak(networks, window, plan, device)


def test_the_fastest_plan_that_fits_is_chosen(published: dict[str, Network]) -> None:
    order = list(plans(16, "cuda"))
    assert [plan.offload for plan in order[-2:]] == ["model", "sequential"]
    for plan in order:
        need = peak(published, REQUEST, plan, "cuda")
        chosen, said = choose(published, REQUEST, 16, "cuda", need)
        assert said <= need
        assert order.index(chosen) <= order.index(plan)
        faster = order[: order.index(chosen)]
        assert all(peak(published, REQUEST, other, "cuda") > need for other in faster)
    with pytest.raises(ModelError, match=r"max_memory 0\.1GiB|max_memory 96MiB") as error:
        choose(published, REQUEST, 16, "cuda", 100_000_000)
    assert "the least for this model is" in str(error.value)
    assert "\n" not in str(error.value)


def test_nothing_is_decoded_in_larger_chunks_than_asked() -> None:
    for asked in (1, 2, 4, 5, 16):
        chunks = [plan.decode_chunk_size for plan in plans(asked, "cpu")]
        assert chunks[0] == asked
        assert chunks == sorted(chunks, reverse=True)
        assert all(plan.offload == "none" for plan in plans(asked, "cpu"))
        assert len(set(plans(asked, "cuda"))) == len(list(plans(asked, "cuda")))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GB", 8 * 10**9),
        ("512MB", 512 * 10**6),
        ("7.5GiB", 15 * 2**29),
        ("1 tb", 10**12),
        (123, 123),
    ],
)
def test_sizes(text: object, size: int) -> None:
    assert load(InferenceConfig, None, (), {"max_memory": text}).max_memory == size


@pytest.mark.parametrize("text", ["8", "GB", "-1GB", "8 gigs", "1e9GB", "", True, 1.5, "0GB"])
def test_sizes_that_are_none(text: object) -> None:
    with pytest.raises(ConfigError, match="max_memory: ") as error:
        load(InferenceConfig, None, (), {"max_memory": text})
    assert "\n" not in str(error.value)


def test_what_is_not_asked_for_is_not_picked(tiny_folder: Path) -> None:
    config = InferenceConfig(pretrained=str(tiny_folder), device="cpu", decoder_bs=7)
    model = resolve(str(tiny_folder))
    assert pick(model, config, 3) == (Plan(7), "")
    both = config.model_copy(update={"max_memory": 10**9, "offload": "model"})
    with pytest.raises(ConfigError, match="leave offload out"):
        pick(model, both, 3)


def test_no_more_videos_are_counted_than_there_are(tiny_folder: Path) -> None:
    """A batch may be larger than the list of prompts."""
    given = {"pretrained": str(tiny_folder), "device": "cpu", "resolution": (512, 512)}
    given |= {"batch_size": 64, "decoder_bs": 1, "max_memory": 10**9}
    plan, line = pick(resolve(str(tiny_folder)), InferenceConfig(**given), 1)
    assert plan == Plan(1)
    assert line.startswith("max_memory on cpu, float32: all parts in memory, 1 frame decoded")
    with pytest.raises(ModelError, match="64 videos of 4 frames, 512x512"):
        pick(resolve(str(tiny_folder)), InferenceConfig(**given), 64)
