"""OpenCLIP's names, shapes and tokens <-> transformers' CLIP.

OpenCLIP keeps query, key and value of a layer in one tensor, and multiplies by its projections
from the right. `open_clip_pytorch_model.bin` holds both towers, `motion_encoder.pth` the text
tower alone (its names the same). Sizes are read from the network on our side.
"""

from __future__ import annotations

import gzip
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel

from demo_t2v.models.state_dicts import NamesError, check
from demo_t2v.models.tokenizer import OpenCLIPTokenizer

# transformers' names -> OpenCLIP's, applied one after another; the text tower's first.
_RULES: Final = (
    (r"^text_model\.", ""),
    (r"^text_projection\.weight$", "text_projection"),
    (r"^visual_projection\.weight$", "visual.proj"),
    (r"^vision_model\.", "visual."),
    (r"\bpre_layrnorm\b", "ln_pre"),
    (r"\bpost_layernorm\b", "ln_post"),
    (r"\bfinal_layer_norm\b", "ln_final"),
    (r"\bembeddings\.patch_embedding\b", "conv1"),
    (r"\bembeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"\bembeddings\.", ""),
    (r"\bencoder\.layers\.", "transformer.resblocks."),
    (r"\bself_attn\.[qkv]_proj\.", "attn.in_proj_"),
    (r"\bself_attn\.", "attn."),
    (r"\blayer_norm([12])\b", r"ln_\1"),
    (r"\bmlp\.fc1\b", "mlp.c_fc"),
    (r"\bmlp\.fc2\b", "mlp.c_proj"),
)
_NO_WEIGHTS: Final = frozenset({"attn_mask"})  # a constant that old files hold
# Of the text tower's file, but not of the encoder: its states are heard before the projection.
HEAD: Final = frozenset({"text_projection", "logit_scale"})


_PAIRS: Final = Path(__file__).parents[2] / "assets/openclip/bpe_simple_vocab_16e6.txt.gz"
_MERGES: Final = 49_152 - 256 - 2  # of the file's many pairs, CLIP took the first ones


def clip_tokenizer() -> OpenCLIPTokenizer:
    """OpenCLIP's tokenizer, that of github.com/openai/CLIP (`clip/simple_tokenizer.py`).

    What it does not do is to pad: OpenCLIP pads with token 0, which is also a word's `!`.
    """
    with gzip.open(_PAIRS, "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1 : _MERGES + 1]
    merges = [tuple(line.split()) for line in lines]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = letters + [letter + "</w>" for letter in letters] + ["".join(pair) for pair in merges]
    pieces += ["<start_of_text>", "<end_of_text>"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    return OpenCLIPTokenizer(vocabulary, merges, model_max_length=77)


def published_encoder(state: Mapping[str, Tensor]) -> CLIPTextModel:
    """The text tower that a file's tensors are, untrained, or NamesError.

    Heads are 64 wide, as in ViT-H-14.
    """
    return CLIPTextModel(CLIPTextConfig(**_text_sizes(state)))


def published_clip(state: Mapping[str, Tensor]) -> CLIPModel:
    """Both towers, untrained, or NamesError; the visual one's heads are 80 wide, as in ViT-H-14."""
    text = _text_sizes(state)
    names = ("visual.conv1.weight", "visual.positional_embedding", "text_projection")
    patches, places, projection = _shapes(state, names)
    picture = _tower("visual.", state, patches[0], heads=patches[0] // 80)
    side = patches[2] * math.isqrt(places[0] - 1)
    picture |= {"image_size": side, "patch_size": patches[2]}
    return CLIPModel(
        CLIPConfig(text_config=text, vision_config=picture, projection_dim=projection[1])
    )


def preprocessing(side: int) -> dict[str, Any]:
    """What OpenCLIP does to images before it sees them, as a `preprocessor_config.json`."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
        "resample": 3,  # bicubic
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }


def _text_sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    tokens, places = _shapes(state, ("token_embedding.weight", "positional_embedding"))
    words, width = tokens
    ends = {"bos_token_id": words - 2, "eos_token_id": words - 1, "pad_token_id": 0}
    sizes = {"vocab_size": words, "max_position_embeddings": places[0]}
    return _tower("", state, width, heads=width // 64) | sizes | ends


def _tower(prefix: str, state: Mapping[str, Tensor], width: int, heads: int) -> dict[str, Any]:
    layer = re.compile(re.escape(f"{prefix}transformer.resblocks.") + r"(\d+)\.")
    found = [int(match[1]) for match in map(layer.match, state) if match]
    (hidden,) = _shapes(state, (f"{prefix}transformer.resblocks.0.mlp.c_fc.bias",))
    return {
        "hidden_size": width,
        "intermediate_size": hidden[0],
        "num_hidden_layers": max(found) + 1,
        "num_attention_heads": max(1, heads),
        "hidden_act": "gelu",
    }


def _shapes(state: Mapping[str, Tensor], names: tuple[str, ...]) -> list[torch.Size]:
    missing = [name for name in names if name not in state]
    if missing:
        raise NamesError(f"is no file of OpenCLIP's; it has no {', '.join(missing)}")
    return [state[name].shape for name in names]


def text_from_openclip(state: Mapping[str, Tensor], encoder: CLIPTextModel) -> dict[str, Tensor]:
    """The text tower of either file as a state dict of `encoder` (which may be on the meta device).

    The projection behind the tower and the visual tower are left out. Raises NamesError for a
    missing, surplus or misshapen tensor.
    """
    return _from_openclip(text_tower(state), encoder.state_dict())


def text_tower(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The text tower's weights of either file, without the projection behind it."""
    return {
        name: tensor
        for name, tensor in state.items()
        if name not in _NO_WEIGHTS | HEAD and not name.startswith("visual.")
    }


def clip_from_openclip(state: Mapping[str, Tensor], model: CLIPModel) -> dict[str, Tensor]:
    """Both towers as a state dict of `model` (which may be on the meta device), or NamesError."""
    towers = {name: tensor for name, tensor in state.items() if name not in _NO_WEIGHTS}
    return _from_openclip(towers, model.state_dict())


def _from_openclip(state: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    with torch.device("meta"):
        wanted = to_openclip({name: torch.empty(w.shape) for name, w in ours.items()})
    check(state, {name: tuple(tensor.shape) for name, tensor in wanted.items()})
    taken = {}
    for name in ours:
        tensor = state[_openclip_name(name)]
        place = _place(name)
        if place is not None:
            tensor = tensor.chunk(3)[place]
        taken[name] = tensor.T if _transposed(name) else tensor
    return taken


def to_openclip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of both: an encoder's or a CLIP's tensors under OpenCLIP's names."""
    published: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {}
    for name, tensor in state.items():
        place = _place(name)
        if place is None:
            published[_openclip_name(name)] = tensor.T if _transposed(name) else tensor
        else:
            parts.setdefault(_openclip_name(name), {})[place] = tensor
    joined = {name: torch.cat([three[n] for n in range(3)]) for name, three in parts.items()}
    return published | joined


def _openclip_name(ours: str) -> str:
    for pattern, replacement in _RULES:
        ours = re.sub(pattern, replacement, ours)
    return ours


def _place(ours: str) -> int | None:
    """Which third of OpenCLIP's tensor is ours; None if all of it is."""
    found = re.search(r"\bself_attn\.([qkv])_proj\.", ours)
    return "qkv".index(found[1]) if found else None


def _transposed(ours: str) -> bool:
    return ours in ("text_projection.weight", "visual_projection.weight")
