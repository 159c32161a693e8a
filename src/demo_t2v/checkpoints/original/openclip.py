"""OpenCLIP's checkpoints and tokenizer, converted to and from transformers' CLIP.

The key maps are for `open_clip_pytorch_model.bin` (text and image tower) and for
`motion_encoder.pth` (text tower). OpenCLIP keeps query, key and value of a layer in one tensor, and
multiplies by its projections from the right.
"""

from __future__ import annotations

import gzip
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from demo_t2v.models.state_dicts import StateDictError, check_state_dict, shapes_of
from demo_t2v.models.tokenizer import OpenCLIPTokenizer, clip_vocabulary

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
_BUFFERS: Final = frozenset({"attn_mask"})  # older files hold this constant, too
HEAD: Final = frozenset({"text_projection", "logit_scale"})
"""Tensors of the text tower's file that the text encoder, which ends before them, has not."""

_TRANSPOSED: Final = ("text_projection.weight", "visual_projection.weight")

_BYTE_PAIRS: Final = Path(__file__).parents[2] / "assets/openclip/bpe_simple_vocab_16e6.txt.gz"
_MERGES: Final = 49_152 - 256 - 2  # CLIP uses the first of the file's pairs


def clip_tokenizer() -> OpenCLIPTokenizer:
    """OpenCLIP's tokenizer, that of github.com/openai/CLIP (`clip/simple_tokenizer.py`).

    It does not pad: OpenCLIP pads with token 0, which is also the token of `!`.
    """
    with gzip.open(_BYTE_PAIRS, "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1 : _MERGES + 1]
    merges = [tuple(line.split()) for line in lines]
    vocabulary = clip_vocabulary(merges, "<start_of_text>", "<end_of_text>")
    return OpenCLIPTokenizer(vocabulary, merges, model_max_length=77)


def infer_text_encoder(state: Mapping[str, Tensor]) -> CLIPTextModel:
    """The untrained text encoder of a file's tensors; heads are 64 wide, as in ViT-H-14.

    Raises StateDictError for tensors of something else.
    """
    return CLIPTextModel(CLIPTextConfig(**_text_sizes(state)))


def infer_clip(state: Mapping[str, Tensor]) -> CLIPModel:
    """Both towers of a file's tensors, untrained; image heads are 80 wide, as in ViT-H-14.

    Raises StateDictError for tensors of something else.
    """
    text = _text_sizes(state)
    names = ("visual.conv1.weight", "visual.positional_embedding", "text_projection")
    patches, positions, projection = _shapes(state, names)
    vision = _tower_sizes("visual.", state, patches[0], heads=patches[0] // 80)
    side = patches[2] * math.isqrt(positions[0] - 1)
    vision |= {"image_size": side, "patch_size": patches[2]}
    return CLIPModel(
        CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection[1])
    )


def preprocessor_config(side: int) -> dict[str, Any]:
    """The content of `preprocessor_config.json` for OpenCLIP's image tower: `side` in pixels."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
        "resample": 3,  # bicubic
        "image_mean": OPENAI_CLIP_MEAN,
        "image_std": OPENAI_CLIP_STD,
    }


def _text_sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    embedding, positions = _shapes(state, ("token_embedding.weight", "positional_embedding"))
    tokens, width = embedding
    ends = {"bos_token_id": tokens - 2, "eos_token_id": tokens - 1, "pad_token_id": 0}
    sizes = {"vocab_size": tokens, "max_position_embeddings": positions[0]}
    return _tower_sizes("", state, width, heads=width // 64) | sizes | ends


def _tower_sizes(
    prefix: str, state: Mapping[str, Tensor], width: int, heads: int
) -> dict[str, Any]:
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
        raise StateDictError(f"is no file of OpenCLIP's; it has no {', '.join(missing)}")
    return [state[name].shape for name in names]


def text_from_openclip(state: Mapping[str, Tensor], encoder: CLIPTextModel) -> dict[str, Tensor]:
    """The text tower of either file as a state dict of `encoder` (which may be on the meta device).

    The text projection and the image tower are left out. Raises StateDictError for a missing,
    surplus or misshapen tensor.
    """
    # diffusers' convert_open_clip_checkpoint has no image tower and no inverse, and skips unknowns.
    return _from_openclip(text_tower(state), encoder.state_dict())


def text_tower(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The text tower's weights of either file, without `HEAD`."""
    return {
        name: tensor
        for name, tensor in state.items()
        if name not in _BUFFERS | HEAD and not name.startswith("visual.")
    }


def clip_from_openclip(state: Mapping[str, Tensor], model: CLIPModel) -> dict[str, Tensor]:
    """Both towers as a state dict of `model` (which may be on the meta device).

    Raises StateDictError for a missing, surplus or misshapen tensor.
    """
    towers = {name: tensor for name, tensor in state.items() if name not in _BUFFERS}
    return _from_openclip(towers, model.state_dict())


def _from_openclip(state: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    with torch.device("meta"):
        expected = to_openclip({name: torch.empty(w.shape) for name, w in ours.items()})
    check_state_dict(state, shapes_of(expected))
    converted = {}
    for name in ours:
        tensor = state[_openclip_name(name)]
        third = _third_of_qkv(name)
        if third is not None:
            tensor = tensor.chunk(3)[third]
        converted[name] = tensor.T if name in _TRANSPOSED else tensor
    return converted


def to_openclip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of both: the tensors of a text encoder or of a CLIP under OpenCLIP's names."""
    converted: dict[str, Tensor] = {}
    thirds: dict[str, dict[int, Tensor]] = {}
    for name, tensor in state.items():
        third = _third_of_qkv(name)
        if third is None:
            converted[_openclip_name(name)] = tensor.T if name in _TRANSPOSED else tensor
        else:
            thirds.setdefault(_openclip_name(name), {})[third] = tensor
    joined = {name: torch.cat([qkv[n] for n in range(3)]) for name, qkv in thirds.items()}
    return converted | joined


def _openclip_name(name: str) -> str:
    for pattern, replacement in _RULES:
        name = re.sub(pattern, replacement, name)
    return name


def _third_of_qkv(name: str) -> int | None:
    """The index of a query, key or value in OpenCLIP's joint tensor; None for other tensors."""
    found = re.search(r"\bself_attn\.([qkv])_proj\.", name)
    return "qkv".index(found[1]) if found else None
