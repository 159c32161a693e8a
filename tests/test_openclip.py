"""OpenCLIP's towers against the converted ones: in small, written here from torch's own layers,
and in full size by its own package.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from demo_t2v.checkpoints.original.openclip import (
    clip_from_openclip,
    clip_tokenizer,
    infer_clip,
    infer_text_encoder,
    text_from_openclip,
    to_openclip,
)
from demo_t2v.checkpoints.resolve import BUILT_IN
from demo_t2v.models.state_dicts import StateDictError
from demo_t2v.models.text import TextConditioner, penultimate_states, token_ids
from demo_t2v.models.tokenizer import OpenCLIPTokenizer
from demo_t2v.training.data.features import load_tokenizer
from helpers.golden import DATA, relative_error, weight
from helpers.openclip_package import PROMPTS

PACKAGES = Path(__file__).parent.parent / ".venv/openclip"
WIDTH, HEADS, LAYERS, LENGTH, WORDS, SHARED = 32, 4, 3, 12, 50, 16
SIDE, PATCH = 24, 8
TOWER = {
    "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "hidden_act": "gelu",
}  # fmt: skip
TEXT = {
    **TOWER, "vocab_size": WORDS, "max_position_embeddings": LENGTH, "bos_token_id": WORDS - 2,
    "eos_token_id": WORDS - 1, "pad_token_id": 0,
}  # fmt: skip


class Block(nn.Module):
    """OpenCLIP's residual block: pre-norm attention and MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        layers = {
            "c_fc": nn.Linear(WIDTH, 4 * WIDTH),
            "gelu": nn.GELU(),
            "c_proj": nn.Linear(4 * WIDTH, WIDTH),
        }
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block() for _ in range(LAYERS))


class Visual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(WIDTH))
        self.positional_embedding = nn.Parameter(torch.empty((SIDE // PATCH) ** 2 + 1, WIDTH))
        self.ln_pre, self.ln_post = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.transformer = Blocks()
        self.proj = nn.Parameter(torch.empty(WIDTH, SHARED))

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv1(images).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(x), 1, -1)
        x = self.ln_pre(torch.cat([first, x], 1) + self.positional_embedding)
        for block in self.transformer.resblocks:
            x = block(x, None)
        return self.ln_post(x[:, 0]) @ self.proj


class OpenClip(nn.Module):
    """Both towers, as in github.com/mlfoundations/open_clip."""

    def __init__(self) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.empty(LENGTH, WIDTH))
        self.text_projection = nn.Parameter(torch.empty(WIDTH, SHARED))
        self.logit_scale = nn.Parameter(torch.tensor(0.0))
        self.visual = Visual()
        self.transformer = Blocks()
        self.token_embedding = nn.Embedding(WORDS, WIDTH)
        self.ln_final = nn.LayerNorm(WIDTH)

    def states(self, ids: Tensor, layers: int) -> Tensor:
        """The text's states behind so many layers, and the final norm."""
        x = self.token_embedding(ids) + self.positional_embedding
        mask = torch.full((LENGTH, LENGTH), float("-inf")).triu(1)
        for block in self.transformer.resblocks[:layers]:
            x = block(x, mask)
        return self.ln_final(x)


@pytest.fixture(scope="module")
def theirs() -> OpenClip:
    model = OpenClip().eval()
    state = {name: weight(name, tuple(w.shape)) for name, w in model.state_dict().items()}
    model.load_state_dict(state)
    return model


@pytest.fixture(scope="module")
def ids() -> Tensor:
    words = torch.randint(1, WORDS - 2, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    words[:, 0], words[0, 7:], words[1, 11:] = WORDS - 2, 0, 0
    words[0, 7], words[1, 11] = WORDS - 1, WORDS - 1
    return words


def vision() -> CLIPModel:
    picture = {**TOWER, "image_size": SIDE, "patch_size": PATCH}
    return CLIPModel(CLIPConfig(text_config=TEXT, vision_config=picture, projection_dim=SHARED))


@torch.no_grad()
def test_the_text_encoder_says_what_openclip_says(theirs: OpenClip, ids: Tensor) -> None:
    encoder = CLIPTextModel(CLIPTextConfig(**TEXT)).eval()
    encoder.load_state_dict(text_from_openclip(theirs.state_dict(), encoder))
    assert relative_error(penultimate_states(encoder, ids), theirs.states(ids, LAYERS - 1)) < 1e-5
    last = encoder(input_ids=ids).last_hidden_state
    assert relative_error(last, theirs.states(ids, LAYERS)) < 1e-5


@torch.no_grad()
def test_both_towers_meet_in_one_space(theirs: OpenClip, ids: Tensor) -> None:
    model = vision().eval()
    model.load_state_dict(clip_from_openclip(theirs.state_dict(), model))
    images = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    ends = theirs.states(ids, LAYERS)[torch.arange(2), torch.tensor([7, 11])]
    words = ends @ theirs.text_projection
    output = model(input_ids=ids, pixel_values=images)
    for ours, expected in (
        (output.image_embeds, theirs.visual(images)),
        (output.text_embeds, words),
    ):
        assert relative_error(ours, expected / expected.norm(dim=1, keepdim=True)) < 1e-5


def test_there_and_back_is_the_same_file(theirs: OpenClip) -> None:
    state = theirs.state_dict()
    back = to_openclip(clip_from_openclip(state, vision()))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    with torch.device("meta"):
        encoder = CLIPTextModel(CLIPTextConfig(**TEXT))
    text = to_openclip(text_from_openclip(state, encoder))
    assert all(torch.equal(text[name], state[name]) for name in text)
    beside = {name for name in state if name.startswith("visual.")}
    assert state.keys() - text.keys() == beside | {"text_projection", "logit_scale"}


def test_the_mask_of_old_files_is_no_weight(theirs: OpenClip) -> None:
    state = theirs.state_dict() | {"attn_mask": torch.zeros(LENGTH, LENGTH)}
    assert len(clip_from_openclip(state, vision())) == len(vision().state_dict())


def test_wrong_tensors_are_named(theirs: OpenClip) -> None:
    state = theirs.state_dict()
    state["transformer.resblocks.0.attn.in_proj_bias"] = torch.zeros(3)
    del state["ln_final.bias"]
    state["extra"] = torch.zeros(1)
    with pytest.raises(StateDictError) as caught:
        text_from_openclip(state, CLIPTextModel(CLIPTextConfig(**TEXT)))
    assert "1 missing: ln_final.bias; 1 surplus: extra; 1 misshapen: " in str(caught.value)
    assert "in_proj_bias (3,) should be (96,)" in str(caught.value)


def test_the_tokenizer_says_what_openclip_says() -> None:
    """Recorded from open_clip's SimpleTokenizer, version 3.3.0."""
    recorded = json.loads((DATA / "openclip_tokens.json").read_text(encoding="utf-8"))
    settings = CLIPTextConfig(pad_token_id=0)
    assert token_ids(clip_tokenizer(), list(recorded), settings).tolist() == list(recorded.values())


def test_text_is_cleaned_as_openclip_cleans_it(tmp_path: Path) -> None:
    """200 prompts, recorded as above: quotes, HTML, mojibake, full width, special tokens, ..."""
    recorded = cleaning()
    assert len(recorded) == 200
    tokenizer = clip_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    for each in (tokenizer, OpenCLIPTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)):
        ids = each(list(recorded), max_length=77, truncation=True).input_ids
        assert dict(zip(recorded, ids, strict=True)) == recorded
    alone = tokenizer("\u201cA&amp;amp;B\u201d", add_special_tokens=False).input_ids
    assert alone == tokenizer('"a&b"', add_special_tokens=False).input_ids


def test_the_built_in_model_keeps_its_tokenizer() -> None:
    ours = load_tokenizer(BUILT_IN["sprites"] / "tokenizer")
    assert type(ours) is CLIPTokenizer
    assert ours("a&amp;b").input_ids != ours("a&b").input_ids


def cleaning() -> dict[str, list[int]]:
    """Prompts and their tokens, without padding."""
    text = (DATA / "openclip_cleaning.json").read_text(encoding="utf-8")
    recorded: dict[str, list[int]] = json.loads(text)
    return recorded


@pytest.mark.slow
@pytest.mark.skipif(
    not (PACKAGES / "open_clip").is_dir(),
    reason=f"OpenCLIP's own package is not in {PACKAGES}; `make slow` puts it there",
)
@torch.no_grad()
def test_vit_h_14_says_what_its_own_package_says(tmp_path: Path) -> None:
    command = [
        sys.executable,
        Path(__file__).parent / "helpers/openclip_package.py",
        PACKAGES,
        tmp_path,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    state = load_file(tmp_path / "weights.safetensors")
    theirs = load_file(tmp_path / "outputs.safetensors")
    with init_empty_weights():
        encoder, both = infer_text_encoder(state).eval(), infer_clip(state).eval()
    encoder.load_state_dict(text_from_openclip(state, encoder), assign=True)
    both.load_state_dict(clip_from_openclip(state, both), assign=True)
    tokenizer = clip_tokenizer()
    ids = token_ids(tokenizer, PROMPTS, encoder.config)
    assert torch.equal(ids, theirs["ids"])
    prompts = list(cleaning())
    assert torch.equal(token_ids(tokenizer, prompts, encoder.config), theirs["cleaning_ids"])
    heard = TextConditioner(tokenizer, encoder, None).states(ids)
    ours = {
        "states": heard.content,
        "ends": heard.content[torch.arange(len(ids)), heard.eot_index],
        "embeddings": both.get_image_features(pixel_values=theirs["images"]).pooler_output,
    }
    errors = {name: relative_error(tensor, theirs[name]) for name, tensor in ours.items()}
    print(errors)
    assert max(errors.values()) < 1e-4
    (tmp_path / "weights.safetensors").unlink()  # pytest would keep its four gigabytes
