"""Muon: steps of one size in every direction of a weight matrix, beside AdamW for the rest.

A gradient's momentum is replaced by the nearest matrix with orthonormal rows, so that the rare
directions of a layer learn as fast as the common ones (Jordan et al. 2024,
kellerjordan.github.io/posts/muon). The step's root mean square is that of AdamW, whose learning
rates therefore carry over (arXiv 2502.16982, eq. 4). torch's own Muon takes no convolutions, and
computes in bfloat16, which is slow on processors without its instructions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import torch
from torch import Tensor

ITERATIONS: Final = 5
_ODD: Final = (3.4445, -4.7750, 2.0315)
"""The quintic a x + b x^3 + c x^5 that takes singular values in (0, 1] near to 1 in five steps."""
_RMS: Final = 0.2
"""Root mean square of AdamW's steps, in learning rates."""


class Muon(torch.optim.Optimizer):
    """Muon for the groups with `matrices=True`, AdamW for the others.

    A convolution's weight (O, I, ...) counts as a matrix (O, I * ...).
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "betas": betas}
        super().__init__(groups, defaults | {"eps": 1e-8, "matrices": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step; `closure`, which computes the loss anew, is called first if given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            move = self._muon if group["matrices"] else self._adamw
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.add_(move(weight.grad, self.state[weight], group), alpha=-group["lr"])
        return loss

    @staticmethod
    def _muon(grad: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> Tensor:
        if not state:
            state["momentum"] = torch.zeros_like(grad)
        mean = state["momentum"].lerp_(grad, 1 - group["momentum"])
        ahead = grad.lerp(mean, group["momentum"]).flatten(1)  # Nesterov's
        scale: float = _RMS * max(ahead.shape) ** 0.5
        return orthogonalise(ahead).reshape(grad.shape).mul(scale)

    @staticmethod
    def _adamw(grad: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> Tensor:
        if not state:
            state["step"] = torch.zeros(())
            state["mean"], state["square"] = torch.zeros_like(grad), torch.zeros_like(grad)
        first, second = group["betas"]
        steps = float(state["step"].add_(1))
        mean = state["mean"].lerp_(grad, 1 - first) / (1 - first**steps)
        square = state["square"].lerp_(grad.square(), 1 - second) / (1 - second**steps)
        move: Tensor = mean / (square.sqrt() + group["eps"])
        return move


def orthogonalise(matrix: Tensor) -> Tensor:
    """matrix (N, M) -> (N, M), all of whose singular values are about 1 (0.7 to 1.2)."""
    a, b, c = _ODD
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / (wide.norm() + 1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    result: Tensor = x if wide is matrix else x.T
    return result
