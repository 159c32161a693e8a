"""The blocks of the denoiser, and their convolutional layers.

The frames are part of the batch axis: x is (B*F, C, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from demo_t2v.models.attention import KeysValues, Transformer, TransformerKind
from demo_t2v.models.layout import frames_to_clips


@dataclass(frozen=True)
class LayerConditioning:
    """Keys and values for one layer's content and motion transformers."""

    content: KeysValues
    motion: KeysValues | None


BlockConditioning = tuple[LayerConditioning, ...]
"""One LayerConditioning for each layer of a block that has transformers."""


@dataclass(frozen=True)
class LayerSizes:
    """Sizes that all layers of one network have in common."""

    temb_channels: int
    head_dim: int
    cross_attention_dim: int
    groups: int
    dropout: float
    temporal: bool
    motion: bool

    def transformer(self, kind: TransformerKind, channels: int, heads: int = 0) -> Transformer:
        """A transformer with `heads` heads; 0: as many as fit into the width."""
        heads = heads or channels // self.head_dim
        return Transformer(
            kind, channels, heads, self.head_dim, self.cross_attention_dim, self.groups
        )


class DeepFeatures(Protocol):
    """The input of the last layer, stored in one forward pass for a later one."""

    @property
    def complete(self) -> bool:
        """Whether this forward pass computes all layers, and stores the features."""

    def store(self, features: Tensor) -> None:
        """Keep the features (B*F, C, H, W) of this forward pass."""

    def load(self) -> Tensor:
        """The features (B*F, C, H, W) for this forward pass."""


@dataclass(frozen=True)
class ForwardPass:
    """Inputs that all blocks share in one forward pass, and the attention maps they collect."""

    num_frames: int
    temb: Tensor  # (B*F, T), after SiLU
    motion_strength: float
    eot_index: Tensor | None  # (B,), or (B, F) with motion states for each frame
    cache: DeepFeatures | None = None
    eot_attention: list[Tensor] = field(default_factory=list)  # one (B, H, W, F) a layer


class Block(nn.Module):
    """Layers at one resolution: residual block, temporal convolution, three transformers."""

    def __init__(
        self, channels: Sequence[tuple[int, int]], sizes: LayerSizes, attention: int
    ) -> None:
        """`channels` (in, out) of each layer; the first `attention` layers have transformers."""
        super().__init__()
        self.gradient_checkpointing = False
        outs = [out for _, out in channels]
        self.resnets = nn.ModuleList(
            ResnetBlock(*pair, sizes.temb_channels, sizes.groups, sizes.dropout)
            for pair in channels
        )
        self.temporal, self.motion = sizes.temporal, sizes.motion
        if sizes.temporal:
            self.temp_convs = nn.ModuleList(
                TemporalConv(c, sizes.groups, sizes.dropout) for c in outs
            )
        self.attentions = nn.ModuleList(sizes.transformer("content", c) for c in outs[:attention])
        if sizes.motion:
            self.motion_attentions = nn.ModuleList(
                sizes.transformer("motion", c) for c in outs[:attention]
            )
        if sizes.temporal:
            self.temp_attentions = nn.ModuleList(
                sizes.transformer("temporal", c) for c in outs[:attention]
            )

    def prepare_conditioning(self, content: Tensor, motion: Tensor | None) -> BlockConditioning:
        """Keys and values for the layers with transformers, from encoder states (B, L, D).

        Motion states may be (B, F, L, D), for each frame.
        """
        layers = []
        for index, attention in enumerate(self.attentions):
            motion_kv = None
            if self.motion and motion is not None:
                motion_kv = self.motion_attentions[index].keys_values(motion)  # type: ignore[operator]
            layers.append(LayerConditioning(attention.keys_values(content), motion_kv))  # type: ignore[operator]
        return tuple(layers)

    def run_layer(
        self, index: int, x: Tensor, run: ForwardPass, conditioning: BlockConditioning
    ) -> Tensor:
        """Layer `index`: x (B*F, C, H, W) -> (B*F, C', H, W). Its motion map goes to `run`."""
        layer_conditioning = conditioning[index] if index < len(conditioning) else None
        if self.gradient_checkpointing and torch.is_grad_enabled():
            x, eot_map = self._gradient_checkpointing_func(  # type: ignore[operator]
                self._layer, index, x, run, layer_conditioning
            )
        else:
            x, eot_map = self._layer(index, x, run, layer_conditioning)
        if eot_map is not None:
            run.eot_attention.append(eot_map)
        return x

    def _layer(
        self, index: int, x: Tensor, run: ForwardPass, conditioning: LayerConditioning | None
    ) -> tuple[Tensor, Tensor | None]:
        eot_map = None
        x = self.resnets[index](x, run.temb)
        if self.temporal:
            x = self.temp_convs[index](x, run.num_frames)
        if conditioning is None:
            return x, None
        x, _ = self.attentions[index](x, run.num_frames, conditioning.content)
        if self.motion and run.motion_strength != 0:
            x, eot_map = self.motion_attentions[index](
                x, run.num_frames, conditioning.motion, run.eot_index, run.motion_strength
            )
        if self.temporal:
            x, _ = self.temp_attentions[index](x, run.num_frames)
        return x, eot_map


class DownBlock(Block):
    """A block of the encoder half, with a downsampler unless it is the last one."""

    def __init__(
        self,
        channels: Sequence[tuple[int, int]],
        sizes: LayerSizes,
        attention: int,
        downsample: bool,
    ) -> None:
        super().__init__(channels, sizes, attention)
        if downsample:
            self.downsamplers = nn.ModuleList([Downsample(channels[-1][1])])

    def forward(self, x: Tensor, run: ForwardPass, conditioning: BlockConditioning) -> list[Tensor]:
        """x (B*F, C, H, W) -> the output of each layer and of the downsampler."""
        outputs = []
        for index in range(len(self.resnets)):
            x = self.run_layer(index, x, run, conditioning)
            outputs.append(x)
        for downsample in getattr(self, "downsamplers", ()):
            x = downsample(x)
            outputs.append(x)
        return outputs


class MidBlock(Block):
    """The block between both halves."""

    def forward(self, x: Tensor, run: ForwardPass, conditioning: BlockConditioning) -> Tensor:
        """x (B*F, C, H, W) -> the same shape."""
        for index in range(len(self.resnets)):
            x = self.run_layer(index, x, run, conditioning)
        return x


class UpBlock(Block):
    """A block of the decoder half, with an upsampler unless it is the last one."""

    def __init__(
        self,
        channels: Sequence[tuple[int, int]],
        sizes: LayerSizes,
        attention: int,
        upsample: bool,
    ) -> None:
        super().__init__(channels, sizes, attention)
        if upsample:
            self.upsamplers = nn.ModuleList([Upsample(channels[-1][1])])

    def is_last(self, index: int) -> bool:
        """Whether layer `index` is the last one of the network."""
        return index == len(self.resnets) - 1 and not hasattr(self, "upsamplers")

    def forward(
        self, inputs: list[Tensor], run: ForwardPass, conditioning: BlockConditioning
    ) -> Tensor:
        """The output (B*F, C', H', W').

        `inputs` are the input (B*F, C, H, W) and the skip connection of each layer. They are
        taken off the list, so that none is in memory longer than needed. With fewer skip
        connections only the last layers run.
        """
        layers = range(len(self.resnets))[1 - len(inputs) :]
        x = inputs.pop(0)
        for index in layers:
            if run.cache is not None and run.cache.complete and self.is_last(index):
                run.cache.store(x)
            x = self.run_layer(index, torch.cat([x, inputs.pop(0)], dim=1), run, conditioning)
        for upsample in getattr(self, "upsamplers", ()):
            x = upsample(x)
        return x


class ResnetBlock(nn.Module):
    """Two convolutions of each frame, with the timestep embedding added between them."""

    def __init__(
        self, channels: int, out_channels: int, temb_channels: int, groups: int, dropout: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(temb_channels, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = channels == out_channels
        self.conv_shortcut = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        """x (B*F, C, H, W), temb (B*F, T) after SiLU -> (B*F, C', H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time_emb_proj(temb)[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.conv_shortcut(x) + h  # type: ignore[no-any-return]


class TemporalConv(nn.Module):
    """Four convolutions over three neighbouring frames each, with a residual connection."""

    def __init__(self, channels: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = self._convolution(channels, groups)
        self.conv2 = self._convolution(channels, groups, nn.Dropout(dropout))
        self.conv3 = self._convolution(channels, groups, nn.Dropout(dropout))
        self.conv4 = self._convolution(channels, groups, nn.Dropout(dropout))
        # A new layer is the identity.
        for weight in self.conv4[-1].parameters():
            nn.init.zeros_(weight)

    @staticmethod
    def _convolution(channels: int, groups: int, *dropout: nn.Module) -> nn.Sequential:
        convolution = FrameConv(channels, channels, (3, 1, 1), padding=(1, 0, 0))
        return nn.Sequential(nn.GroupNorm(groups, channels), nn.SiLU(), *dropout, convolution)

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        """x (B*F, C, H, W) -> the same shape."""
        height = x.shape[2]
        h = frames_to_clips(x, num_frames)
        h = self.conv4(self.conv3(self.conv2(self.conv1(h))))
        return x + rearrange(h, "b c f (h w) -> (b f) c h w", h=height)  # type: ignore[no-any-return]


class FrameConv(nn.Conv3d):
    """A (k, 1, 1) convolution, computed in two dimensions: faster on most devices.

    An adapter of it (LoRA) consists of two of them: k = 3, then k = 1 without padding.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, F, H*W) -> the same shape."""
        return F.conv2d(x, self.weight[..., 0], self.bias, padding=self.padding[:2])


class Downsample(nn.Module):
    """A convolution with stride 2, which halves height and width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) -> (N, C, H/2, W/2)."""
        return self.conv(x)  # type: ignore[no-any-return]


class Upsample(nn.Module):
    """Nearest-neighbour interpolation to twice the height and width, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) -> (N, C, 2H, 2W)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))  # type: ignore[no-any-return]


def timestep_embedding(timesteps: Tensor, channels: int) -> Tensor:
    """Sinusoids of timesteps (B,): (B, channels), cosines first, then sines.

    diffusers' `get_timestep_embedding` differs by up to 6e-5 at 320 channels, since it computes
    the frequencies by `exp`; the published weights were trained with `pow`.
    """
    half = channels // 2
    steps = torch.arange(half, device=timesteps.device, dtype=torch.float32)
    frequencies = torch.pow(10_000.0, -steps / half)
    angles = timesteps.float()[:, None] * frequencies[None]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
