"""What one step of each stage computes, on clips of the sprite world."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from einops import rearrange
from tokenizers import pre_tokenizers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTokenizer

from demo_t2v.config import ConfigError
from demo_t2v.data.sprites import Clip, draw_clip
from demo_t2v.training.config import (
    AnyTraining,
    AutoencoderTraining,
    ClipTraining,
    DenoiserTraining,
    StudentTraining,
)
from demo_t2v.training.denoiser import DenoiserTask, load_encoder, sample_seed
from demo_t2v.training.loop import Task
from demo_t2v.training.networks import build, check_places
from demo_t2v.training.parts import Preprocessing, load_tokenizer
from demo_t2v.training.student import StudentTask


def draw_stills(seed: int, places: range, resolution: int) -> list[Clip]:
    """The still frames with these numbers; the same for the same (seed, place)."""
    return [
        draw_clip(np.random.default_rng([seed, place]), resolution, still=True) for place in places
    ]


def to_pixels(clips: list[Clip]) -> Tensor:
    """All frames of all clips, one after another: (B*F, 3, H, W) in [-1, 1]."""
    frames = torch.from_numpy(np.concatenate([clip.frames for clip in clips]))
    return rearrange(frames, "n h w c -> n c h w").float() / 127.5 - 1.0


def crop_to_things(pixels: Tensor, clips: list[Clip], side: int, seeds: Iterable[int]) -> Tensor:
    """Squares (B, 3, side, side) round the things of still clips, a little off their centres."""
    resolution = pixels.shape[-1]
    squares = []
    for picture, clip, seed in zip(pixels, clips, seeds, strict=True):
        rng = torch.Generator().manual_seed(seed)
        centre = torch.tensor([clip.truth.y[0], clip.truth.x[0]]) * resolution
        corner = centre + (torch.rand(2, generator=rng) - 0.5) * side / 2 - side / 2
        top, left = corner.round().long().clamp(0, resolution - side).tolist()
        squares.append(picture[:, top : top + side, left : left + side])
    return torch.stack(squares)


class AutoencoderTask:
    """Stage 1: an AutoencoderKL that rebuilds single frames (squared error and a light KL).

    The background is most of a frame and soon learned; so the first steps see only squares round
    the thing, which is faster too. The last ones see whole frames, as the network will.
    """

    items = None

    def __init__(self, config: AutoencoderTraining) -> None:
        self.config = config
        sizes = {"sample_size": config.resolution, **config.model}
        self.model = build(AutoencoderKL, sizes).to(memory_format=torch.channels_last)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.model.parameters())}]

    def batch(self, places: range) -> Tensor:
        clips = draw_stills(self.config.seed, places, self.config.resolution)
        pixels = to_pixels(clips)
        cropped = self.config.crop_steps * self.config.batch_size
        if self.config.crop and places.start < cropped:
            seeds = (sample_seed(self.config.seed, place) for place in places)
            pixels = crop_to_things(pixels, clips, self.config.crop, seeds)
        return pixels.to(memory_format=torch.channels_last)

    def loss(self, batch: Tensor) -> tuple[Tensor, dict[str, float]]:
        posterior = self.model.encode(batch).latent_dist
        rebuilt = self.model.decode(posterior.sample()).sample
        error = F.mse_loss(rebuilt, batch)
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        psnr = -10 * torch.log10(error / 4).item()  # the pixels' range is 2
        figures = {"kl": divergence.item(), "psnr": psnr}
        return error + self.config.kl_weight * divergence, figures

    @torch.no_grad()
    def export(self, folder: Path) -> None:
        """Save the autoencoder, with the scale that gives its latents unit variance."""
        unseen = self.config.num_steps * self.config.batch_size
        pixels = self.batch(range(unseen, unseen + self.config.batch_size))
        latents = self.model.encode(pixels).latent_dist.mean
        self.model.register_to_config(scaling_factor=1.0 / latents.std().item())
        self.model.save_pretrained(folder / "vae")


class ClipTask:
    """Stage 2: CLIP on still frames, so that, as with the real one, verbs mean little to it.

    With a trained text tower (`text`) that is frozen, only the image tower is learned, in the space
    of the text's [eot] states (arXiv 2111.07991): what the regularization loss compares with. On
    sheets of several frames a text tower learns the words of motion.
    """

    items = None

    def __init__(self, config: ClipTraining) -> None:
        self.config = config
        sizes = dict(config.model)
        if config.text is None:
            tower = sizes.get("text_config")
            if not isinstance(tower, dict) or "max_position_embeddings" not in tower:
                raise ConfigError("model: text_config.max_position_embeddings is missing")
            captions = [c.caption for c in draw_stills(config.seed, range(4000), 8)]
            length = tower["max_position_embeddings"]
            self.tokenizer = train_tokenizer(captions, config.vocab_size, length)
            tokens = {
                "vocab_size": len(self.tokenizer),
                "bos_token_id": self.tokenizer.bos_token_id,
                "eos_token_id": self.tokenizer.eos_token_id,
                "pad_token_id": self.tokenizer.pad_token_id,
            }
            sizes["text_config"] = tower | tokens
            self.model = build(_clip, sizes)
        else:
            self.tokenizer = load_tokenizer(config.text / "tokenizer")
            text = load_encoder(config.text / "content_encoder")
            self.model = _clip_over(text, sizes, config.freeze_text)
        side = self.model.vision_model.embeddings.image_size
        if side != config.resolution:
            raise ConfigError(
                f"resolution: {config.resolution} should be the vision_config's image_size, {side}"
            )
        if config.resolution % config.frames_per_side:
            raise ConfigError(
                f"frames_per_side: {config.frames_per_side} frames do not share "
                f"{config.resolution} pixels evenly"
            )

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [p for p in self.model.parameters() if p.requires_grad]}]

    def batch(self, places: range) -> tuple[Tensor, Tensor]:
        if self.config.frames_per_side == 1:
            clips = draw_stills(self.config.seed, places, self.config.resolution)
        else:
            clips = self._draw_sheets(places)
        return self.tokens([clip.caption for clip in clips]), to_pixels(clips)

    def _draw_sheets(self, places: range) -> list[Clip]:
        """Clips whose one frame shows several moments, row by row."""
        rows = self.config.frames_per_side
        side = self.config.resolution // rows
        sheets = []
        for place in places:
            rng = np.random.default_rng([self.config.seed, place])
            clip = draw_clip(rng, side, frames=rows**2)
            sheet = rearrange(clip.frames, "(r k) h w c -> 1 (r h) (k w) c", r=rows)
            sheets.append(replace(clip, frames=sheet))
        return sheets

    def tokens(self, captions: list[str]) -> Tensor:
        ids: Tensor = self.tokenizer(
            captions, padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids
        return ids

    def loss(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, float]]:
        ids, pixels = batch
        output = self.model(input_ids=ids, pixel_values=pixels, return_loss=True)
        right = output.logits_per_image.argmax(1) == torch.arange(len(ids), device=ids.device)
        return output.loss, {"accuracy": right.float().mean().item()}

    def export(self, folder: Path) -> None:
        self.model.save_pretrained(folder / "clip")
        side = self.model.vision_model.embeddings.image_size
        Preprocessing.plain(side).save(folder / "clip")  # as `to_pixels` gives them
        CLIPTextModel.from_pretrained(folder / "clip").save_pretrained(folder / "content_encoder")
        self.tokenizer.save_pretrained(folder / "tokenizer")


def _clip(**sizes: Any) -> CLIPModel:
    return CLIPModel(CLIPConfig(**sizes))


def _clip_over(text: CLIPTextModel, sizes: dict[str, Any], freeze: bool) -> CLIPModel:
    """CLIP with a new image tower beside a trained text tower, whose states are not projected."""
    sizes |= {"text_config": text.config.to_dict(), "projection_dim": text.config.hidden_size}
    model = build(_clip, sizes)
    model.text_model.load_state_dict(text.state_dict())
    nn.init.eye_(model.text_projection.weight)
    model.text_model.requires_grad_(not freeze)
    model.text_projection.requires_grad_(False)
    return model


def make_task(config: AnyTraining) -> Task:
    """The task that a training configuration names; new weights are drawn from its seed.

    Raises ConfigError.
    """
    check_places(config)
    torch.manual_seed(config.seed)
    match config:
        case AutoencoderTraining():
            return AutoencoderTask(config)
        case StudentTraining():
            return StudentTask(config)
        case ClipTraining():
            return ClipTask(config)
        case DenoiserTraining():
            return DenoiserTask(config)


def train_tokenizer(captions: list[str], vocab_size: int, length: int) -> CLIPTokenizer:
    """A CLIP tokenizer whose byte-pair merges are learned from `captions`.

    As in CLIP's own vocabulary, every byte is a token inside and at the end of a word, so no
    word is unknown, and the end-of-text token has the highest number.
    """
    end = "</w>"
    learned = CLIPTokenizer().train_new_from_iterator(captions, vocab_size)  # type: ignore[no-untyped-call]
    model = json.loads(learned.backend_tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = letters + [letter + end for letter in letters] + ["".join(pair) for pair in merges]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=length)  # type: ignore[arg-type]
