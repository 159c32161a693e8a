"""A text tower and an image tower, trained on captions and frames of the sprite world."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTokenizer

from demo_t2v.config import ConfigError
from demo_t2v.data.sprites import Clip, draw_clip
from demo_t2v.models.tokenizer import clip_vocabulary
from demo_t2v.training.config import ClipTraining
from demo_t2v.training.data.features import load_tokenizer
from demo_t2v.training.data.image_preprocessing import ImagePreprocessing
from demo_t2v.training.networks import build
from demo_t2v.training.tasks.autoencoder import clip_pixels, draw_stills
from demo_t2v.training.tasks.pretrained import load_encoder


class ClipTask:
    """Stage 2: CLIP on still frames. Like the original CLIP, it learns little about verbs.

    With a frozen text tower (`text`), only the image tower is trained, in the space of the text's
    [eot] states (arXiv 2111.07991), which the regularization loss needs. On grids of several frames
    a text tower learns the words of motion.
    """

    samples = None

    def __init__(self, config: ClipTraining, tokenizer: CLIPTokenizer, model: CLIPModel) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.model = model

    @classmethod
    def prepare(cls, config: ClipTraining) -> Self:
        """Train a tokenizer on captions or read that of `text`, and build the networks.

        Raises ConfigError.
        """
        sizes = dict(config.model)
        if config.text is None:
            tower = sizes.get("text_config")
            if not isinstance(tower, dict) or "max_position_embeddings" not in tower:
                raise ConfigError("model: text_config.max_position_embeddings is missing")
            captions = [c.caption for c in draw_stills(config.seed, range(4000), 8)]
            length = tower["max_position_embeddings"]
            tokenizer = train_tokenizer(captions, config.vocab_size, length)
            tokens = {
                "vocab_size": len(tokenizer),
                "bos_token_id": tokenizer.bos_token_id,
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id,
            }
            sizes["text_config"] = tower | tokens
            model = build(_clip, sizes)
        else:
            tokenizer = load_tokenizer(config.text / "tokenizer")
            text = load_encoder(config.text / "content_encoder")
            model = _clip_over(text, sizes, config.freeze_text)
        side = model.vision_model.embeddings.image_size
        if side != config.resolution:
            raise ConfigError(
                f"resolution: {config.resolution} should be the vision_config's image_size, {side}"
            )
        if config.resolution % config.frames_per_side:
            raise ConfigError(
                f"frames_per_side: {config.frames_per_side} frames do not divide "
                f"{config.resolution} pixels evenly"
            )
        return cls(config, tokenizer, model)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [p for p in self.model.parameters() if p.requires_grad]}]

    def batch(self, numbers: range) -> tuple[Tensor, Tensor]:
        """Token ids (B, L) and images (B, 3, H, W) in [-1, 1]."""
        if self.config.frames_per_side == 1:
            clips = draw_stills(self.config.seed, numbers, self.config.resolution)
        else:
            clips = self._draw_grids(numbers)
        return self.tokens([clip.caption for clip in clips]), clip_pixels(clips)

    def _draw_grids(self, numbers: range) -> list[Clip]:
        """Clips of one frame: a grid of frames, row by row."""
        rows = self.config.frames_per_side
        side = self.config.resolution // rows
        grids = []
        for number in numbers:
            rng = np.random.default_rng([self.config.seed, number])
            clip = draw_clip(rng, side, frames=rows**2)
            grid = rearrange(clip.frames, "(r k) h w c -> 1 (r h) (k w) c", r=rows)
            grids.append(replace(clip, frames=grid))
        return grids

    def tokens(self, captions: list[str]) -> Tensor:
        """Token ids (B, L), padded or truncated."""
        ids: Tensor = self.tokenizer(
            captions, padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids
        return ids

    def loss(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """CLIP's contrastive loss."""
        ids, pixels = batch
        output = self.model(input_ids=ids, pixel_values=pixels, return_loss=True)
        right = output.logits_per_image.argmax(1) == torch.arange(len(ids), device=ids.device)
        return output.loss, {"accuracy": right.float().mean().item()}

    def export(self, folder: Path) -> None:
        """Save CLIP, its text tower and the tokenizer."""
        self.model.save_pretrained(folder / "clip")
        side = self.model.vision_model.embeddings.image_size
        ImagePreprocessing.plain(side).save(folder / "clip")  # as `to_pixels`
        CLIPTextModel.from_pretrained(folder / "clip").save_pretrained(folder / "content_encoder")
        self.tokenizer.save_pretrained(folder / "tokenizer")


def _clip(**sizes: Any) -> CLIPModel:
    return CLIPModel(CLIPConfig(**sizes))


def _clip_over(text: CLIPTextModel, sizes: dict[str, Any], freeze: bool) -> CLIPModel:
    """CLIP with a new image tower and a trained text tower with an identity projection."""
    sizes |= {"text_config": text.config.to_dict(), "projection_dim": text.config.hidden_size}
    model = build(_clip, sizes)
    model.text_model.load_state_dict(text.state_dict())
    nn.init.eye_(model.text_projection.weight)
    model.text_model.requires_grad_(not freeze)
    model.text_projection.requires_grad_(False)
    return model


def train_tokenizer(captions: list[str], vocab_size: int, length: int) -> CLIPTokenizer:
    """A CLIP tokenizer with byte-pair merges learned from `captions`.

    As in CLIP's vocabulary, there is a token for every byte inside and at the end of a word, so no
    word is unknown, and the end-of-text token has the highest id.
    """
    learned = CLIPTokenizer().train_new_from_iterator(captions, vocab_size)  # type: ignore[no-untyped-call]
    model = json.loads(learned.backend_tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    vocabulary = clip_vocabulary(merges, "<|startoftext|>", "<|endoftext|>")
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=length)  # type: ignore[arg-type]
