"""OpenCLIP's names and shapes <-> transformers' CLIP: pure functions on state dicts.

OpenCLIP keeps query, key and value of a layer in one tensor, and multiplies by its projections
from the right. `open_clip_pytorch_model.bin` holds both towers, `motion_encoder.pth` the text
tower alone (its names the same). Sizes are read from the network on our side.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor
from transformers import CLIPModel, CLIPTextModel

from demo_t2v.models.tensors import check

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
_HEAD: Final = frozenset({"text_projection", "logit_scale"})


def text_from_openclip(state: Mapping[str, Tensor], encoder: CLIPTextModel) -> dict[str, Tensor]:
    """The text tower of either file as a state dict of `encoder` (which may be on the meta device).

    The projection behind the tower and the visual tower are left out. Raises NamesError for a
    missing, surplus or misshapen tensor.
    """
    tower = {
        name: tensor
        for name, tensor in state.items()
        if name not in _NO_WEIGHTS | _HEAD and not name.startswith("visual.")
    }
    return _from_openclip(tower, encoder.state_dict())


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
