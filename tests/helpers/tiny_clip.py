"""A folder with a small CLIP of random weights, its tokenizer and its image preprocessing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from demo_t2v.checkpoints.resolve import BUILT_IN
from helpers.tiny_networks import shake

SIDE, PATCH, WIDTH, LAYERS, HEADS, SHARED = 32, 8, 32, 2, 2, 16


def tiny_clip(tokenizer: Any, hidden_act: str = "quick_gelu") -> CLIPModel:
    """A CLIP of random weights that reads this tokenizer's tokens."""
    tower = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": LAYERS}
    tower |= {"num_attention_heads": HEADS, "hidden_act": hidden_act}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": tokenizer.model_max_length}
    text |= {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos")}
    vision = {"image_size": SIDE, "patch_size": PATCH}
    sizes = {"text_config": tower | text, "vision_config": tower | vision}
    model = CLIPModel(CLIPConfig(**sizes, projection_dim=SHARED)).eval()
    shake(model, seed=2)
    return model


def save_clip(folder: Path, model: CLIPModel, tokenizer: Any) -> Path:
    """Write the CLIP as transformers' repositories have it."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=size).save_pretrained(folder)
    return folder


def write_tiny_clip(folder: Path) -> Path:
    """A CLIP with the tokenizer of the built-in model."""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(BUILT_IN["sprites"] / "tokenizer")
    return save_clip(folder, tiny_clip(tokenizer), tokenizer)
