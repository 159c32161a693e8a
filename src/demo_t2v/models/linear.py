"""Linear layers, computed by the fastest library of the device."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def computes_on_cpu(x: Tensor) -> bool:
    """Whether torch computes operations on `x` by a CPU's libraries, not in compiled code."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def has_onednn() -> bool:
    """Whether torch was built with oneDNN."""
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


class Linear(nn.Linear):
    """A linear layer over the rows of its input, as one matrix product.

    torch multiplies an input of more dimensions whose memory is not contiguous, where nothing is
    trained, by a copy of the weight for each element of the first dimension.

    In fp32 on a CPU oneDNN computes the layer, as a 1x1 convolution. torch passes fp32 matrix
    products to MKL, which takes up to twice the time on AMD's CPUs.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x (..., C) -> (..., C')."""
        rows = x.reshape(-1, self.in_features)
        if computes_on_cpu(x) and x.dtype == torch.float32 and has_onednn():
            y = self._as_convolution(rows)
        else:
            y = super().forward(rows)
        return y.reshape(*x.shape[:-1], self.out_features)

    def _as_convolution(self, rows: Tensor) -> Tensor:
        positions = rows[None, None].permute(0, 3, 1, 2)  # channels last
        weight = self.weight[:, :, None, None]
        # Dilation has no effect on a kernel of one position. With it torch selects oneDNN on one
        # thread too.
        y = F.conv2d(positions, weight, self.bias, dilation=2)
        return y.permute(0, 2, 3, 1)
