"""The original autoencoder's names, shapes and recorded outputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from demo_t2v.checkpoints.original.key_maps import (
    AUTOENCODER_PREFIX,
    autoencoder_from_original,
    infer_autoencoder,
    modelscope_autoencoder,
)
from demo_t2v.models.state_dicts import StateDictError
from helpers.golden import make_input, recorded, relative_error, weight
from helpers.published_layout import autoencoder_shapes

CONV_IN = AUTOENCODER_PREFIX + "encoder.conv_in.weight"
SAMPLER_BIAS = AUTOENCODER_PREFIX + "encoder.down.0.downsample.conv.bias"
QUERY = AUTOENCODER_PREFIX + "encoder.mid.attn_1.q.weight"


def original_state(width: int) -> dict[str, Tensor]:
    """The published file's state dict, with its channels scaled to `width`."""
    keys = {name: name.removeprefix(AUTOENCODER_PREFIX) for name in autoencoder_shapes(width)}
    return {name: weight(keys[name], shape) for name, shape in autoencoder_shapes(width).items()}


def converted(state: dict[str, Tensor], width: int = 32) -> dict[str, Tensor]:
    with torch.device("meta"):
        network = modelscope_autoencoder(width)
    return autoencoder_from_original(state, network)


@pytest.mark.parametrize(("file", "width"), [("vae_small", 32), ("vae_full", 128)])
@torch.no_grad()
def test_a_converted_autoencoder_computes_the_recorded_figures(file, width):
    state = original_state(width)
    network = infer_autoencoder(state).eval()
    network.load_state_dict(autoencoder_from_original(state, network))
    expected = recorded(f"{file}.safetensors")

    moments = network.encode(make_input("image", (1, 3, 64, 64))).latent_dist.parameters
    decoded = network.decode(make_input("z", (1, 4, 8, 8))).sample

    assert relative_error(moments, expected["moments"]) < 1e-4
    assert relative_error(decoded, expected["decoded"]) < 1e-4


def test_every_tensor_arrives_uncopied():
    original = original_state(32)
    ours = converted(original)
    assert len(ours) == len(original)
    assert {w.data_ptr() for w in ours.values()} == {w.data_ptr() for w in original.values()}


def test_other_networks_in_the_file_are_ignored():
    original = original_state(32)
    extra = original | {"loss.discriminator.weight": torch.zeros(1)}
    assert converted(extra).keys() == converted(original).keys()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({QUERY: None}, "1 missing: encoder.mid_block.attentions.0.to_q.weight"),
        ({AUTOENCODER_PREFIX + "encoder.extra": torch.zeros(1)}, "1 surplus: encoder.extra"),
        ({QUERY: torch.zeros(128, 128, 3, 3)}, "to_q.weight (128, 1152) should be (128, 128)"),
        ({CONV_IN: None}, "missing: encoder.conv_in.weight"),
        ({SAMPLER_BIAS: None}, "missing: encoder.down_blocks.0.downsamplers.0.conv.bias"),
    ],
)
def test_a_wrong_tensor_is_named_in_one_line(change, expected):
    changed = original_state(32) | change
    with pytest.raises(StateDictError) as caught:
        converted({k: v for k, v in changed.items() if v is not None})
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_more_than_ten_names_are_listed():
    with pytest.raises(StateDictError) as caught:
        converted({})
    message = str(caught.value)
    assert message.count(",") == 10
    assert message.endswith(", ...")
    assert "248 missing" in message
