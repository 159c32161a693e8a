"""Linear and feed-forward layers: torch's results, whichever way the device computes them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from demo_t2v.models.attention import ROWS_AT_ONCE, FeedForward
from demo_t2v.models.linear import Linear


def pair(bias: bool = True, dtype: torch.dtype = torch.float32) -> tuple[Linear, nn.Linear]:
    """Our layer and torch's, with the same weights."""
    torch.manual_seed(0)
    ours, theirs = Linear(12, 20, bias=bias, dtype=dtype), nn.Linear(12, 20, bias=bias, dtype=dtype)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


class Shapes(TorchDispatchMode):
    """The shapes of all tensors that operators take."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Size] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.seen += [each.shape for each in args if isinstance(each, torch.Tensor)]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("shape", [(12,), (1, 12), (5, 12), (2, 3, 12), (2, 3, 4, 12)])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_torch(shape: tuple[int, ...], bias: bool) -> None:
    layers = pair(bias)
    inputs = [torch.randn(shape, requires_grad=True)]
    inputs.append(inputs[0].detach().clone().requires_grad_())
    outputs = [layer(x) for layer, x in zip(layers, inputs, strict=True)]
    assert outputs[0].is_contiguous()
    torch.testing.assert_close(outputs[0], outputs[1])
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    for one, other in zip(layers[0].parameters(), layers[1].parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_an_input_of_any_layout_is_multiplied_by_one_weight(dtype: torch.dtype, bias: bool) -> None:
    ours, theirs = (layer.requires_grad_(False) for layer in pair(bias, dtype))
    x = torch.randn(12, 4, 3, dtype=dtype).permute(2, 1, 0)
    torch.testing.assert_close(ours(x), theirs(x), rtol=2e-2, atol=2e-2)
    sizes = []
    for layer in (ours, theirs):
        with Shapes() as shapes:
            layer(x)
        sizes.append(max(shape.numel() for shape in shapes.seen))
    assert sizes == [240, 720]  # one weight, and one for each of three elements


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_types_are_computed_by_torch(dtype: torch.dtype) -> None:
    ours, theirs = pair(dtype=dtype)
    x = torch.randn(2, 3, 12, dtype=dtype)
    assert torch.equal(ours(x), theirs(x))


def test_autocast_gives_its_type() -> None:
    ours, theirs = pair()
    x = torch.randn(2, 3, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        first, second = ours(x), theirs(x)
    assert first.dtype == second.dtype == torch.bfloat16
    torch.testing.assert_close(first, second, rtol=2e-2, atol=2e-2)


def test_a_feed_forward_layer_computes_each_row_alone() -> None:
    torch.manual_seed(0)
    layer = FeedForward(4)
    x = torch.randn(2, ROWS_AT_ONCE, 4)[:, 5:]
    whole = layer.net(x)
    assert layer(x).shape == x.shape
    torch.testing.assert_close(layer(x), whole)
    value, gate = layer.net[0].proj(x).chunk(2, dim=-1)
    expected = layer.net[2](value * nn.functional.gelu(gate))
    torch.testing.assert_close(whole, expected)
