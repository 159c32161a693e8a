"""The convolutional layers of the denoiser. Frames ride in the batch axis: x is (B*F, C, H, W)."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F


class ResnetBlock(nn.Module):
    """Two convolutions with the timestep added between them; every frame on its own."""

    def __init__(
        self, channels: int, out_channels: int, time_channels: int, groups: int, dropout: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_channels, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = channels == out_channels
        self.conv_shortcut = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x (B*F, C, H, W), time (B*F, T) -> (B*F, C', H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time_emb_proj(F.silu(time))[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.conv_shortcut(x) + h  # type: ignore[no-any-return]


class TemporalConv(nn.Module):
    """Four convolutions over three neighbouring frames each, and a residual."""

    def __init__(self, channels: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = self._stage(channels, groups)
        self.conv2 = self._stage(channels, groups, nn.Dropout(dropout))
        self.conv3 = self._stage(channels, groups, nn.Dropout(dropout))
        self.conv4 = self._stage(channels, groups, nn.Dropout(dropout))
        # The layer starts as the identity.
        for weight in self.conv4[-1].parameters():
            nn.init.zeros_(weight)

    @staticmethod
    def _stage(channels: int, groups: int, *dropout: nn.Module) -> nn.Sequential:
        convolution = FrameConv(channels, channels, (3, 1, 1), padding=(1, 0, 0))
        return nn.Sequential(nn.GroupNorm(groups, channels), nn.SiLU(), *dropout, convolution)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """x (B*F, C, H, W) -> the same shape; `frames` is F."""
        height = x.shape[2]
        h = rearrange(x, "(b f) c h w -> b c f (h w)", f=frames).contiguous()
        h = self.conv4(self.conv3(self.conv2(self.conv1(h))))
        return x + rearrange(h, "b c f (h w) -> (b f) c h w", h=height)  # type: ignore[no-any-return]


class FrameConv(nn.Conv3d):
    """A (3, 1, 1) convolution, computed in two dimensions, which is faster on most devices."""

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, F, H*W) -> the same shape."""
        return F.conv2d(x, self.weight[..., 0], self.bias, padding=(1, 0))


class Downsample(nn.Module):
    """Half the height and the width, by a convolution with stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) -> (N, C, H/2, W/2)."""
        return self.conv(x)  # type: ignore[no-any-return]


class Upsample(nn.Module):
    """Twice the height and the width: nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) -> (N, C, 2H, 2W)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))  # type: ignore[no-any-return]


def timestep_embedding(timesteps: Tensor, channels: int) -> Tensor:
    """Sinusoids of the timesteps (B,) -> (B, channels): cosines first, then sines."""
    half = channels // 2
    steps = torch.arange(half, device=timesteps.device, dtype=torch.float32)
    frequencies = torch.pow(10_000.0, -steps / half)
    angles = timesteps.float()[:, None] * frequencies[None]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
