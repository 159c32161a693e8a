"""Features of a clip that the denoiser's training uses: latents, tokens, flow, an image embedding.

They do not depend on trained weights, so they can be computed once and cached.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import AutoencoderKL
from einops import rearrange
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from demo_t2v.config import ConfigError, read_json
from demo_t2v.core.atomic_io import digest
from demo_t2v.core.devices import process_device
from demo_t2v.data.clips import CaptionedClip
from demo_t2v.losses.optical_flow import (
    FlowEstimator,
    Raft,
    lucas_kanade,
    resize_flow,
    video_flow,
)
from demo_t2v.model_folder import check_tokenizer, load_network
from demo_t2v.models.text import penultimate_states, token_ids
from demo_t2v.models.tokenizer import OpenCLIPTokenizer
from demo_t2v.training.config import DenoiserTraining
from demo_t2v.training.data.image_preprocessing import ImagePreprocessing
from demo_t2v.training.data.pixels import to_pixels
from demo_t2v.training.networks import has_motion_branch

FLOW_SIDE: Final = 32
"""Largest side of a flow in pixels; the text-motion loss compares it with small attention maps."""

Compute = Callable[[CaptionedClip], Tensor]
_DTYPES: Final = {torch.int64: torch.int32, torch.uint8: torch.uint8}


@dataclass(frozen=True)
class Feature:
    """One tensor of a clip.

    The text `depends_on` changes when a clip's tensor changes. `load` loads the networks from
    disk and returns the function that computes the tensor.
    """

    name: str
    depends_on: str
    load: Callable[[], Compute]


class FeatureExtractor:
    """Clips -> features: floating-point ones in half precision, token ids as int32, frames as
    uint8. Networks are loaded when they are first needed.
    """

    def __init__(self, features: list[Feature]) -> None:
        self.features = {feature.name: feature for feature in features}
        self._loaded: dict[str, Compute] = {}

    @torch.no_grad()
    def __call__(self, clip: CaptionedClip, names: list[str]) -> dict[str, Tensor]:
        """The features `names` of one clip, on the CPU."""
        tensors = {}
        for name in names:
            if name not in self._loaded:
                self._loaded[name] = self.features[name].load()
            tensor = self._loaded[name](clip)
            dtype = _DTYPES.get(tensor.dtype, torch.half)
            tensors[name] = tensor.to("cpu", dtype).contiguous()
        return tensors


def required_features(config: DenoiserTraining) -> list[Feature]:
    """The features that a training needs. Raises ConfigError for missing networks."""
    video = FRAMES if config.encode_in_step else latents_feature(config)
    features = [video, tokens_feature(config)]
    if config.encode_text:
        features.append(content_feature(config))
    if has_motion_branch(config) and not config.stills:
        if config.text_motion_weight:
            features.append(flow_feature(config))
        if config.regularization_weight:
            features.append(image_feature(config))
    return features


def latent_shape(config: DenoiserTraining) -> tuple[int, int, int, int]:
    """The shape (C, F, h, w) of a clip's latents."""
    sizes = AutoencoderKL.load_config(config.autoencoder / "vae")
    side = config.resolution // 2 ** (len(sizes["block_out_channels"]) - 1)
    return sizes["latent_channels"], config.num_frames, side, side


def latents_feature(config: DenoiserTraining) -> Feature:
    """The autoencoder's scaled posterior means (C, F, h, w)."""
    folder = config.autoencoder / "vae"

    def load() -> Compute:
        vae = load_network(AutoencoderKL, folder, dtype=torch.float32).eval().to(process_device())

        def encode(clip: CaptionedClip) -> Tensor:
            frames = torch.from_numpy(clip.frames).to(process_device())
            return rearrange(encode_frames(vae, frames), "f c h w -> c f h w")

        return encode

    return Feature("latents", fingerprint(folder), load)


def encode_frames(vae: AutoencoderKL, frames: Tensor) -> Tensor:
    """uint8 (N, H, W, 3) -> scaled posterior means (N, c, h, w)."""
    means: Tensor = vae.encode(to_pixels(frames)).latent_dist.mean * vae.config.scaling_factor
    return means


FRAMES: Final = Feature("frames", "", lambda: lambda clip: torch.from_numpy(clip.frames))
"""The clip itself, uint8 (F, H, W, 3)."""


def tokens_feature(config: DenoiserTraining) -> Feature:
    """The caption's token ids (L,), padded or truncated."""
    folder = config.clip / "tokenizer"
    encoder = CLIPTextConfig.from_pretrained(config.clip / "content_encoder")

    def load() -> Compute:
        tokenizer = load_tokenizer(folder)

        def tokens(clip: CaptionedClip) -> Tensor:
            return token_ids(tokenizer, [clip.caption], encoder)[0]

        return tokens

    made_by = f"{fingerprint(folder)} {encoder.max_position_embeddings} {encoder.pad_token_id}"
    return Feature("tokens", made_by, load)


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """A tokenizer of the saved class, OpenCLIP's or CLIP's.

    Raises ConfigError or ModelError where a file of it is missing.
    """
    check_tokenizer(folder)
    # AutoTokenizer does not know OpenCLIPTokenizer, and needs a tokenizer_config.json.
    saved = read_json(folder / "tokenizer_config.json").get("tokenizer_class")
    kind = OpenCLIPTokenizer if saved == OpenCLIPTokenizer.__name__ else CLIPTokenizer
    tokenizer: CLIPTokenizer = kind.from_pretrained(folder)
    return tokenizer


def content_feature(config: DenoiserTraining) -> Feature:
    """The content encoder's states (L, D) of the caption."""
    folder, text = config.clip / "content_encoder", tokens_feature(config)

    def load() -> Compute:
        tokens = text.load()
        encoder = load_network(CLIPTextModel, folder, dtype=torch.float32)
        encoder.requires_grad_(False).to(process_device())

        def states(clip: CaptionedClip) -> Tensor:
            return penultimate_states(encoder, tokens(clip)[None].to(process_device()))[0]

        return states

    return Feature("content", f"{text.depends_on} {fingerprint(folder)}", load)


def flow_feature(config: DenoiserTraining) -> Feature:
    """The optical flow (F-1, 2, h, w) between neighbouring frames, in pixels of its own size."""
    side = min(FLOW_SIDE, config.resolution)

    def load() -> Compute:
        estimator = flow_estimator(config)

        def flow(clip: CaptionedClip) -> Tensor:
            # `own` has the device's number: the current device of a new thread is the first GPU.
            pixels = to_pixels(torch.from_numpy(clip.frames).to(process_device()))
            video = rearrange(pixels, "f c h w -> 1 c f h w")
            return resize_flow(video_flow(estimator, video)[0], (side, side))

        return flow

    file = config.raft_weights
    weights = digest(file) if file and file.is_file() else file
    return Feature("flow", f"{config.flow} {side} {weights}", load)


def flow_estimator(config: DenoiserTraining) -> FlowEstimator:
    """The configured flow estimator. Raises ValueError for bad weights of RAFT."""
    return Raft(config.raft_weights) if config.flow == "raft" else lucas_kanade


def image_feature(config: DenoiserTraining) -> Feature:
    """CLIP's embedding (D,) of the middle frame, which is compared with a motion state (D,).

    Raises ConfigError where the two widths differ.
    """
    folder = config.clip / "clip"
    made_by = fingerprint(folder)
    sizes = CLIPConfig.from_pretrained(folder).to_dict()
    width, hidden_size = sizes["projection_dim"], sizes["text_config"]["hidden_size"]
    if width != hidden_size:
        raise ConfigError(
            f"{folder}: projection_dim {width} should be the text's hidden_size, "
            f"{hidden_size}; train it so, or write regularization_weight: 0"
        )

    def load() -> Compute:
        clip_model = load_network(CLIPModel, folder, dtype=torch.float32)
        clip_model.requires_grad_(False).to(process_device())
        preprocess = ImagePreprocessing.read(folder, clip_model.vision_model.embeddings.image_size)

        def embed(clip: CaptionedClip) -> Tensor:
            middle = torch.from_numpy(clip.frames[len(clip.frames) // 2])
            image = preprocess(rearrange(middle, "h w c -> 1 c h w")).to(process_device())
            pooled = clip_model.vision_model(pixel_values=image).pooler_output
            embedding: Tensor = clip_model.visual_projection(pooled)
            return embedding[0]

        return embed

    return Feature("image", made_by, load)


def fingerprint(folder: Path) -> str:
    """A short hash of a saved network's or tokenizer's weights and settings.

    The library's version and the origin are not included. Raises ConfigError for an empty folder.
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
    content: Any = json.loads(file.read_text(encoding="utf-8"))
    if isinstance(content, dict):
        origins = ("_", "name_or_path", "transformers_version")
        content = {key: value for key, value in content.items() if not key.startswith(origins)}
    return json.dumps(content, sort_keys=True).encode()
