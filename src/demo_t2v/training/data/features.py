"""What the denoiser's training knows of a clip: latents, text, optical flow, an image embedding.

None of it changes while training, so it can be computed once and kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import AutoencoderKL
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from demo_t2v.config import ConfigError, read_json
from demo_t2v.core.atomic_io import digest
from demo_t2v.core.devices import own
from demo_t2v.data.clips import CaptionedClip
from demo_t2v.losses.optical_flow import resize_flow, video_flow
from demo_t2v.model_folder import check_tokenizer, load_network
from demo_t2v.models.text import penultimate_states, token_ids
from demo_t2v.models.tokenizer import OpenCLIPTokenizer
from demo_t2v.models.unet import DemoUNet
from demo_t2v.training.config import DenoiserTraining
from demo_t2v.training.objective import flow_estimator

FLOW_SIDE: Final = 32
"""Flows are kept in this size, in which the text-motion loss compares them with small maps."""

_log = logging.getLogger(__name__)
Compute = Callable[[CaptionedClip], Tensor]
_KINDS: Final = {torch.int64: torch.int32, torch.uint8: torch.uint8}


@dataclass(frozen=True)
class Part:
    """One tensor of a clip: what it is called, what it comes from, and how to get it.

    `depends_on` is the same as long as the same clip gives the same tensor. `load` reads networks
    from disk, as late as they are needed.
    """

    name: str
    depends_on: str
    load: Callable[[], Compute]


class Encoder:
    """Clips to their parts: floating-point ones in half precision, token ids as int32, frames as
    they are.
    """

    def __init__(self, parts: list[Part]) -> None:
        self.parts = {part.name: part for part in parts}
        self._loaded: dict[str, Compute] = {}

    @torch.no_grad()
    def __call__(self, clip: CaptionedClip, names: list[str]) -> dict[str, Tensor]:
        """The parts called `names` of one clip, on the CPU."""
        parts = {}
        for name in names:
            if name not in self._loaded:
                self._loaded[name] = self.parts[name].load()
            part = self._loaded[name](clip)
            kind = _KINDS.get(part.dtype, torch.half)
            parts[name] = part.to("cpu", kind).contiguous()
        return parts


def needed_parts(config: DenoiserTraining) -> list[Part]:
    """What this training needs of a clip. Raises ConfigError for networks that are not there."""
    clip = FRAMES if config.encode_in_step else latents_part(config)
    parts = [clip, tokens_part(config)]
    if config.encode_text:
        parts.append(content_part(config))
    if has_motion(config) and not config.stills:
        if config.text_motion_weight:
            parts.append(flow_part(config))
        if config.regularization_weight:
            parts.append(image_part(config))
    return parts


def has_motion(config: DenoiserTraining) -> bool:
    """Whether the network that the configuration describes has motion transformers."""
    sizes = dict(config.model)
    if config.base:
        sizes = DemoUNet.load_config(config.base / "unet") | sizes
    return bool(sizes.get("motion", True))


def latent_shape(config: DenoiserTraining) -> tuple[int, int, int, int]:
    """A clip's latents (C, F, h, w), as the autoencoder makes them."""
    sizes = AutoencoderKL.load_config(config.autoencoder / "vae")
    side = config.resolution // 2 ** (len(sizes["block_out_channels"]) - 1)
    return sizes["latent_channels"], config.max_frames, side, side


def latents_part(config: DenoiserTraining) -> Part:
    """The autoencoder's scaled posterior means (C, F, h, w)."""
    folder = config.autoencoder / "vae"

    def load() -> Compute:
        vae = load_network(AutoencoderKL, folder, dtype=torch.float32).eval().to(own())

        def encode(clip: CaptionedClip) -> Tensor:
            frames = torch.from_numpy(clip.frames).to(own())
            return rearrange(encode_frames(vae, frames), "f c h w -> c f h w")

        return encode

    return Part("latents", fingerprint(folder), load)


def encode_frames(vae: AutoencoderKL, frames: Tensor) -> Tensor:
    """Bytes (N, H, W, 3) -> scaled posterior means (N, c, h, w)."""
    means: Tensor = vae.encode(to_pixels(frames)).latent_dist.mean * vae.config.scaling_factor
    return means


FRAMES: Final = Part("frames", "", lambda: lambda clip: torch.from_numpy(clip.frames))
"""The clip itself, uint8 (F, H, W, 3)."""


def tokens_part(config: DenoiserTraining) -> Part:
    """The caption's token ids (L,), padded or cut."""
    folder = config.clip / "tokenizer"
    encoder = CLIPTextConfig.from_pretrained(config.clip / "content_encoder")

    def load() -> Compute:
        tokenizer = load_tokenizer(folder)

        def tokens(clip: CaptionedClip) -> Tensor:
            return token_ids(tokenizer, [clip.caption], encoder)[0]

        return tokens

    made_by = f"{fingerprint(folder)} {encoder.max_position_embeddings} {encoder.pad_token_id}"
    return Part("tokens", made_by, load)


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """A tokenizer of the class that was saved, OpenCLIP's or CLIP's.

    Raises ConfigError, ModelError where a file of it is missing.
    """
    check_tokenizer(folder)
    saved = read_json(folder / "tokenizer_config.json").get("tokenizer_class")
    kind = OpenCLIPTokenizer if saved == OpenCLIPTokenizer.__name__ else CLIPTokenizer
    tokenizer: CLIPTokenizer = kind.from_pretrained(folder)
    return tokenizer


def content_part(config: DenoiserTraining) -> Part:
    """The content encoder's states of the caption (L, D)."""
    folder, text = config.clip / "content_encoder", tokens_part(config)

    def load() -> Compute:
        tokens = text.load()
        encoder = load_network(CLIPTextModel, folder, dtype=torch.float32)
        encoder.requires_grad_(False).to(own())

        def states(clip: CaptionedClip) -> Tensor:
            return penultimate_states(encoder, tokens(clip)[None].to(own()))[0]

        return states

    return Part("content", f"{text.depends_on} {fingerprint(folder)}", load)


def flow_part(config: DenoiserTraining) -> Part:
    """The flow between neighbouring frames (F-1, 2, h, w), in pixels of the size h, w."""
    side = min(FLOW_SIDE, config.resolution)

    def load() -> Compute:
        estimator = flow_estimator(config)

        def flow(clip: CaptionedClip) -> Tensor:
            video = rearrange(_pixels(clip), "f c h w -> 1 c f h w")
            return resize_flow(video_flow(estimator, video)[0], (side, side))

        return flow

    file = config.raft_weights
    own = digest(file) if file and file.is_file() else file
    return Part("flow", f"{config.flow} {side} {own}", load)


def image_part(config: DenoiserTraining) -> Part:
    """CLIP's embedding (D,) of the middle frame, which is compared with a motion state (D,).

    Raises ConfigError where the two are of different widths.
    """
    folder = config.clip / "clip"
    made_by = fingerprint(folder)
    sizes = CLIPConfig.from_pretrained(folder).to_dict()
    width, wanted = sizes["projection_dim"], sizes["text_config"]["hidden_size"]
    if width != wanted:
        raise ConfigError(
            f"{folder}: projection_dim {width} should be the text's hidden_size, "
            f"{wanted}; train it so, or write regularization_weight: 0"
        )

    def load() -> Compute:
        clip_model = load_network(CLIPModel, folder, dtype=torch.float32)
        clip_model.requires_grad_(False).to(own())
        prepare = Preprocessing.read(folder, clip_model.vision_model.embeddings.image_size)

        def embed(clip: CaptionedClip) -> Tensor:
            middle = torch.from_numpy(clip.frames[len(clip.frames) // 2])
            image = prepare(rearrange(middle, "h w c -> 1 c h w")).to(own())
            pooled = clip_model.vision_model(pixel_values=image).pooler_output
            embedding: Tensor = clip_model.visual_projection(pooled)
            return embedding[0]

        return embed

    return Part("image", made_by, load)


@dataclass(frozen=True)
class Preprocessing:
    """How a CLIP model wants its images: the side they are scaled to, then cropped to; colours."""

    scaled: int
    cropped: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def read(cls, folder: Path, side: int) -> Preprocessing:
        """As the folder's `preprocessor_config.json` says; without one, `side` and [-1, 1]."""
        file = folder / "preprocessor_config.json"
        if not file.exists():
            _log.warning("%s: is missing; images are scaled to %d pixels and [-1, 1]", file, side)
            return cls.plain(side)
        known = json.loads(file.read_text(encoding="utf-8"))
        size, crop = known["size"], known["crop_size"]
        return cls(
            size["shortest_edge"] if isinstance(size, dict) else size,
            crop["height"] if isinstance(crop, dict) else crop,
            tuple(known["image_mean"]),
            tuple(known["image_std"]),
        )

    @classmethod
    def plain(cls, side: int) -> Preprocessing:
        """Scaled to `side`, in [-1, 1]."""
        return cls(side, side, (0.5,) * 3, (0.5,) * 3)

    def save(self, folder: Path) -> None:
        """Write the folder's `preprocessor_config.json`."""
        known = {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": self.scaled},
            "crop_size": {"height": self.cropped, "width": self.cropped},
            "resample": 3,  # bicubic
            "image_mean": self.mean,
            "image_std": self.std,
        }
        file = folder / "preprocessor_config.json"
        file.write_text(json.dumps(known, indent=2), encoding="utf-8")

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 squares (N, 3, H, H) on the CPU -> (N, 3, cropped, cropped), as by Pillow."""
        size = (self.scaled, self.scaled)
        if images.shape[2:] != size:
            images = F.interpolate(images, size, mode="bicubic", antialias=True)
        edge = (self.scaled - self.cropped) // 2
        pixels = images[..., edge : edge + self.cropped, edge : edge + self.cropped] / 255
        mean, std = (pixels.new_tensor(v)[:, None, None] for v in (self.mean, self.std))
        return (pixels - mean) / std


def fingerprint(folder: Path) -> str:
    """A saved network or tokenizer as a short hash: its weights and its settings.

    Who saved it, and with which version, is left out. Raises ConfigError when nothing is there.
    """
    files = sorted(file for file in folder.glob("*") if file.suffix in (".safetensors", ".json"))
    if not files:
        raise ConfigError(f"{folder}: is no folder of a saved network or tokenizer")
    hashed = hashlib.sha256()
    for file in files:
        hashed.update(file.name.encode())
        if file.suffix == ".json":
            hashed.update(_settings(file))
        else:
            with file.open("rb") as stream:
                hashed.update(hashlib.file_digest(stream, "sha256").digest())
    return hashed.hexdigest()[:16]


def _settings(file: Path) -> bytes:
    known: Any = json.loads(file.read_text(encoding="utf-8"))
    if isinstance(known, dict):
        origins = ("_", "name_or_path", "transformers_version")
        known = {key: value for key, value in known.items() if not key.startswith(origins)}
    return json.dumps(known, sort_keys=True).encode()


def _pixels(clip: CaptionedClip) -> Tensor:
    """The frames (F, 3, H, W) in [-1, 1]."""
    # By number: in a process's threads torch's own device is the first of all.
    return to_pixels(torch.from_numpy(clip.frames).to(own()))


def to_pixels(frames: Tensor) -> Tensor:
    """Bytes (N, H, W, 3) -> (N, 3, H, W) in [-1, 1]."""
    return rearrange(frames, "n h w c -> n c h w").float() / 127.5 - 1
