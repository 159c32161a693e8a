"""Muon: what its steps are, by their definition; AdamW for the rest, against torch's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from demo_t2v.training.muon import Muon, orthogonalise


@given(st.integers(1, 24), st.integers(1, 24), st.integers(0, 10_000))
@settings(deadline=None, max_examples=40)
def test_every_direction_gets_a_step_of_about_one(rows: int, columns: int, seed: int) -> None:
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    kept = values > 0.03 * values.max()  # five iterations lift no direction from nothing
    stretched = left.T @ orthogonalise(matrix[None])[0] @ right.T  # diagonal: the same directions
    assert_close(stretched, torch.diag(stretched.diagonal()), atol=1e-3, rtol=0)
    assert (stretched.diagonal()[kept] > 0.5).all()
    assert (stretched.diagonal() < 1.3).all()


def test_a_step_has_the_size_of_adamw_and_the_direction_of_the_gradient() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(32, 8, 2, 2))  # a convolution: a matrix (32, 32)
    weight.grad = torch.randn(weight.shape) * 1e-4
    Muon([{"params": [weight], "matrices": True}], lr=0.5, weight_decay=0.0).step()
    assert weight.square().mean().sqrt().item() == pytest.approx(0.1, rel=0.2)  # 0.2 lr
    assert (weight * weight.grad).sum() < 0


def test_weights_decay_by_the_learning_rate() -> None:
    weight = nn.Parameter(torch.ones(4, 4))
    weight.grad = torch.zeros(4, 4)
    Muon([{"params": [weight], "matrices": True}], lr=0.1, weight_decay=0.5).step()
    assert_close(weight.data, torch.full((4, 4), 0.95))


def test_the_rest_is_adamw() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Parameter(torch.ones(7)), nn.Parameter(torch.ones(7))
    options = {"lr": 0.01, "weight_decay": 0.1, "betas": (0.8, 0.95), "eps": 1e-3}
    muon = Muon([{"params": [ours]}], **options)
    adamw = torch.optim.AdamW([theirs], **options)
    for _ in range(5):
        ours.grad = torch.randn(7)
        theirs.grad = ours.grad.clone()
        muon.step()
        adamw.step()
    assert_close(ours, theirs)


def test_a_state_that_was_saved_goes_on_the_same() -> None:
    torch.manual_seed(0)
    gradients = torch.randn(4, 6, 6)

    def make() -> tuple[nn.Parameter, Muon]:
        weight = nn.Parameter(torch.ones(6, 6))
        groups = [{"params": [weight], "matrices": True}]
        return weight, Muon(groups, lr=0.1, weight_decay=0.01)

    whole, optimizer = make()
    for gradient in gradients:
        whole.grad = gradient
        optimizer.step()
    parts, optimizer = make()
    for gradient in gradients[:2]:
        parts.grad = gradient
        optimizer.step()
    resumed, other = make()
    resumed.data.copy_(parts.data)
    other.load_state_dict(optimizer.state_dict())
    for gradient in gradients[2:]:
        resumed.grad = gradient
        other.step()
    assert torch.equal(resumed, whole)
