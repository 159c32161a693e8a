"""Muon: updates of equal size in every direction of a weight matrix, and AdamW for the rest.

The momentum is replaced by the nearest matrix with orthonormal rows, so that the rare directions
of a layer learn as fast as the common ones (Jordan et al. 2024,
kellerjordan.github.io/posts/muon). The update has the root mean square of AdamW's, so AdamW's
learning rates can be used (arXiv 2502.16982, eq. 4). torch's Muon supports no convolutions, and
computes in bfloat16, which is slow on processors without bfloat16 instructions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import torch
from torch import Tensor

ITERATIONS: Final = 5
_QUINTIC: Final = (3.4445, -4.7750, 2.0315)
"""a x + b x^3 + c x^5 maps singular values in (0, 1] close to 1 in five iterations."""
_RMS: Final = 0.2
"""Root mean square of AdamW's updates, in learning rates."""


class Muon(torch.optim.Optimizer):
    """Muon for the groups with `matrices=True`, AdamW for the others.

    A convolution's weight (O, I, ...) counts as a matrix (O, I * ...).
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        weight_decay: float,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
    ) -> None:
        """`betas` and `eps` are AdamW's."""
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": 0.95}
        super().__init__(groups, defaults | {"betas": betas, "eps": eps, "matrices": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step; `closure`, if given, recomputes the loss first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                compute = self._muon if group["matrices"] else self._adamw
                updates = compute(weights, [weight.grad for weight in weights], group)
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(weights, updates, alpha=-group["lr"])
        return loss

    def _muon(
        self, weights: list[Tensor], grads: list[Tensor], group: dict[str, Any]
    ) -> list[Tensor]:
        momenta = self._states("momentum", weights)
        torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
        nesterov = torch._foreach_lerp(grads, momenta, group["momentum"])
        matrices = [grad.flatten(1) for grad in nesterov]
        updates: dict[int, Tensor] = {}
        for shape in dict.fromkeys(matrix.shape for matrix in matrices):
            alike = [number for number, matrix in enumerate(matrices) if matrix.shape == shape]
            batch = orthogonalise(torch.stack([matrices[number] for number in alike]))
            updates |= zip(alike, batch.mul(_RMS * max(shape) ** 0.5), strict=True)
        return [updates[number].reshape(grad.shape) for number, grad in enumerate(grads)]

    def _adamw(
        self, weights: list[Tensor], grads: list[Tensor], group: dict[str, Any]
    ) -> list[Tensor]:
        first, second = group["betas"]
        means, squares = self._states("mean", weights), self._states("square", weights)
        steps = [float(self._step(weight).add_(1)) for weight in weights]
        torch._foreach_lerp_(means, grads, 1 - first)
        torch._foreach_lerp_(squares, torch._foreach_mul(grads, grads), 1 - second)
        updates = torch._foreach_div(means, [1 - first**step for step in steps])
        sizes = torch._foreach_div(squares, [1 - second**step for step in steps])
        torch._foreach_sqrt_(sizes)
        torch._foreach_add_(sizes, group["eps"])
        torch._foreach_div_(updates, sizes)
        return list(updates)

    def _states(self, key: str, weights: list[Tensor]) -> list[Tensor]:
        """The state `key` of each weight; zero at first."""
        for weight in weights:
            if key not in self.state[weight]:
                self.state[weight][key] = torch.zeros_like(weight)
        return [self.state[weight][key] for weight in weights]

    def _step(self, weight: Tensor) -> Tensor:
        """The number of a weight's steps, on the CPU."""
        count: Tensor = self.state[weight].setdefault("step", torch.zeros(()))
        return count


def orthogonalise(matrices: Tensor) -> Tensor:
    """matrices (K, N, M) -> (K, N, M) with singular values of about 1 (0.7 to 1.2)."""
    a, b, c = _QUINTIC
    x = matrices / (matrices.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    orthogonal: Tensor = x.mT if tall else x
    return orthogonal
