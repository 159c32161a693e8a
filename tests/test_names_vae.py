"""The published autoencoder's names, shapes and recorded outputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from demo_t2v.checkpoints.original.key_maps import (
    AUTOENCODER_PREFIX,
    autoencoder_from_published,
    autoencoder_to_published,
    published_autoencoder,
)
from demo_t2v.models.state_dicts import NamesError
from helpers.golden import make_input, manifest, recorded, relative_error, weight

CONV_IN = AUTOENCODER_PREFIX + "encoder.conv_in.weight"
QUERY = AUTOENCODER_PREFIX + "encoder.mid.attn_1.q.weight"
FIXED_CHANNELS = {3, 4, 8, 1}  # colours, latents, their moments, 1x1 kernels: not scaled


def published_state(width: int) -> dict[str, Tensor]:
    """The published file's state dict, with the manifest's channels scaled to `width`."""

    def scaled(shape: tuple[int, ...]) -> tuple[int, ...]:
        channels = tuple(c if c in FIXED_CHANNELS else c * width // 128 for c in shape[:2])
        return (*channels, *shape[2:])

    shapes = manifest("vae_keys.json").items()
    return {AUTOENCODER_PREFIX + key: weight(key, scaled(shape)) for key, shape in shapes}


@pytest.mark.parametrize(("file", "width"), [("vae_small", 32), ("vae_full", 128)])
@torch.no_grad()
def test_a_converted_autoencoder_computes_the_recorded_figures(file, width):
    network = published_autoencoder(width).eval()
    network.load_state_dict(autoencoder_from_published(published_state(width)))
    expected = recorded(f"{file}.safetensors")

    moments = network.encode(make_input("image", (1, 3, 64, 64))).latent_dist.parameters
    decoded = network.decode(make_input("z", (1, 4, 8, 8))).sample

    assert relative_error(moments, expected["moments"]) < 1e-4
    assert relative_error(decoded, expected["decoded"]) < 1e-4


def test_there_and_back_is_the_same_file():
    published = published_state(32)
    back = autoencoder_to_published(autoencoder_from_published(published))
    assert back.keys() == published.keys()
    assert all(torch.equal(back[name], published[name]) for name in published)


def test_the_names_are_all_of_the_manifest_and_no_others():
    ours = autoencoder_to_published(published_autoencoder().state_dict())
    expected = {AUTOENCODER_PREFIX + k: shape for k, shape in manifest("vae_keys.json").items()}
    assert {name: tuple(tensor.shape) for name, tensor in ours.items()} == expected


def test_other_parts_of_the_file_are_left_alone():
    published = published_state(32)
    extra = published | {"loss.discriminator.weight": torch.zeros(1)}
    assert autoencoder_from_published(extra).keys() == autoencoder_from_published(published).keys()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({QUERY: None}, "1 missing: encoder.mid.attn_1.q.weight"),
        ({AUTOENCODER_PREFIX + "encoder.extra": torch.zeros(1)}, "1 surplus: encoder.extra"),
        ({QUERY: torch.zeros(128, 128)}, "q.weight (128, 128) should be (128, 128, 1, 1)"),
        ({CONV_IN: None}, "missing: encoder.conv_in.weight"),
    ],
)
def test_a_wrong_tensor_is_named_in_one_line(change, told):
    changed = published_state(32) | change
    with pytest.raises(NamesError) as caught:
        autoencoder_from_published({k: v for k, v in changed.items() if v is not None})
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_our_own_state_is_checked_too():
    ours = published_autoencoder(32).state_dict()
    del ours["quant_conv.bias"]
    with pytest.raises(NamesError, match=r"1 missing: quant_conv\.bias"):
        autoencoder_to_published(ours)


def test_no_more_than_ten_names_are_listed():
    with pytest.raises(NamesError) as caught:
        autoencoder_from_published({})
    message = str(caught.value)
    assert message.count(",") == 10
    assert message.endswith(", ...")
    assert "248 missing" in message
