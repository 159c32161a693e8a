"""DemoUNet: the denoiser of ModelScopeT2V with DEMO's motion transformers. Wiring only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.utils.accelerate_utils import apply_forward_hook
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from demo_t2v.models.attention import KeysValues, Transformer
from demo_t2v.models.blocks import (
    Downsample,
    ResnetBlock,
    TemporalConv,
    Upsample,
    timestep_embedding,
)


@dataclass(frozen=True)
class LayerMemory:
    """The keys and values that one layer's content and motion transformers listen to."""

    content: KeysValues
    motion: KeysValues | None


Conditioning = tuple[LayerMemory, ...]
"""One LayerMemory for each layer with attention, in the order of the forward pass."""


@dataclass(frozen=True)
class DemoUNetOutput:
    """`sample` (B, C, F, H, W); with `eot_index`, one motion-attention map (B, h, w, F) a layer."""

    sample: Tensor
    eot_attention: tuple[Tensor, ...] | None = None


@dataclass(frozen=True)
class Sizes:
    """What all layers of one network share."""

    time_channels: int
    head_dim: int
    context: int
    groups: int
    dropout: float
    temporal: bool
    motion: bool

    def transformer(
        self, kind: Literal["content", "motion", "temporal"], channels: int, heads: int = 0
    ) -> Transformer:
        """A transformer of `kind`; without `heads`, as many as the width holds."""
        heads = heads or channels // self.head_dim
        return Transformer(kind, channels, heads, self.head_dim, self.context, self.groups)


@dataclass(frozen=True)
class Pass:
    """What every layer of one forward pass needs besides its input."""

    frames: int
    time: Tensor  # (B*F, T)
    motion_strength: float
    eot_index: Tensor | None  # (B,)


class Block(nn.Module):
    """The layers at one resolution: residual, temporal convolution, and three transformers."""

    def __init__(
        self,
        channels: Sequence[tuple[int, int]],
        sizes: Sizes,
        attention: int,
        resample: Literal["down", "up"] | None = None,
    ) -> None:
        """`channels` (in, out) of each layer, of which the first `attention` have transformers."""
        super().__init__()
        self.gradient_checkpointing = False
        outs = [out for _, out in channels]
        self.resnets = nn.ModuleList(
            ResnetBlock(*pair, sizes.time_channels, sizes.groups, sizes.dropout)
            for pair in channels
        )
        self.temporal = sizes.temporal
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
        if resample == "down":
            self.downsamplers = nn.ModuleList([Downsample(outs[-1])])
        elif resample == "up":
            self.upsamplers = nn.ModuleList([Upsample(outs[-1])])

    def motion(self, layer: int) -> Transformer | None:
        """The motion transformer of a layer; None in the base network."""
        return self.motion_attentions[layer] if hasattr(self, "motion_attentions") else None  # type: ignore[return-value]

    def memories(self, content: Tensor, motion: Tensor | None) -> Iterator[LayerMemory]:
        """Keys and values for each layer with transformers, from the states (B, L, D)."""
        for layer, attention in enumerate(self.attentions):
            listener = self.motion(layer)
            heard = None
            if listener is not None and motion is not None:
                heard = listener.keys_values(motion)
            yield LayerMemory(attention.keys_values(content), heard)  # type: ignore[operator]

    def forward(
        self, layer: int, x: Tensor, run: Pass, memories: Iterator[LayerMemory]
    ) -> tuple[Tensor, Tensor | None]:
        """One layer: x (B*F, C, H, W) -> (B*F, C', H, W) and, if asked for, its motion map."""
        memory = next(memories) if layer < len(self.attentions) else None
        if self.gradient_checkpointing and torch.is_grad_enabled():
            result: tuple[Tensor, Tensor | None] = self._gradient_checkpointing_func(  # type: ignore[operator]
                self._layer, layer, x, run, memory
            )
            return result
        return self._layer(layer, x, run, memory)

    def _layer(
        self, layer: int, x: Tensor, run: Pass, memory: LayerMemory | None
    ) -> tuple[Tensor, Tensor | None]:
        x = self.resnets[layer](x, run.time)
        if self.temporal:
            x = self.temp_convs[layer](x, run.frames)
        if memory is None:
            return x, None
        on_eot = None
        x, _ = self.attentions[layer](x, run.frames, memory.content)
        motion = self.motion(layer)
        if motion is not None and run.motion_strength != 0:
            x, on_eot = motion(x, run.frames, memory.motion, run.eot_index, run.motion_strength)
        if self.temporal:
            x, _ = self.temp_attentions[layer](x, run.frames)
        return x, on_eot


class DemoUNet(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """Latent video denoiser; the defaults are the published sizes (1,684.86 M parameters).

    With `motion=False` it is exactly ModelScopeT2V's base network (arXiv 2308.06571; 1,411.23 M).
    With `temporal=False` too, it is an image network that takes every frame on its own, from
    which a base network can start, as ModelScopeT2V started from Stable Diffusion.
    `attention` says at which levels transformers stand; `sample_size` and `sample_frames` are
    the latent side and the number of frames that the weights were trained for. With
    `frame_embedding` every residual block is told a frame's place in the clip together with the
    timestep. The published network has no such thing and must infer the place from the padding of
    its temporal convolutions. `dropout` is in residual blocks and temporal convolutions;
    transformers have none.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        sample_frames: int = 16,
        in_channels: int = 4,
        out_channels: int = 4,
        block_out_channels: Sequence[int] = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        attention: Sequence[bool] = (True, True, True, False),
        cross_attention_dim: int = 1024,
        attention_head_dim: int = 64,
        num_input_heads: int = 8,
        norm_num_groups: int = 32,
        dropout: float = 0.1,
        temporal: bool = True,
        motion: bool = True,
        frame_embedding: bool = False,
    ) -> None:
        super().__init__()
        widths, depth = list(block_out_channels), layers_per_block
        first, last = widths[0], widths[-1]
        sizes = Sizes(
            time_channels=4 * first,
            head_dim=attention_head_dim,
            context=cross_attention_dim,
            groups=norm_num_groups,
            dropout=dropout,
            temporal=temporal,
            motion=motion,
        )
        self.conv_in = nn.Conv2d(in_channels, first, 3, padding=1)
        self.time_embedding = TimestepEmbedding(first, sizes.time_channels)
        if frame_embedding:
            self.place_embedding = TimestepEmbedding(first, sizes.time_channels)
            # Zero at first, so a network that was trained without it goes on as it was.
            nn.init.zeros_(self.place_embedding.linear_2.weight)
            nn.init.zeros_(self.place_embedding.linear_2.bias)
        if temporal:
            self.transformer_in = sizes.transformer("temporal", first, num_input_heads)
        self.down_blocks: list[Block] = nn.ModuleList()  # type: ignore[assignment]
        skips, width = [first], first
        for level, out in enumerate(widths):
            channels = [(width if i == 0 else out, out) for i in range(depth)]
            final = level == len(widths) - 1
            self.down_blocks.append(
                Block(channels, sizes, depth * attention[level], None if final else "down")
            )
            skips += [out] * (depth if final else depth + 1)
            width = out
        self.mid_block = Block([(last, last)] * 2, sizes, attention=1)
        self.up_blocks: list[Block] = nn.ModuleList()  # type: ignore[assignment]
        for level, out in reversed(list(enumerate(widths))):
            channels = [((width if i == 0 else out) + skips.pop(), out) for i in range(depth + 1)]
            self.up_blocks.append(
                Block(channels, sizes, (depth + 1) * attention[level], "up" if level else None)
            )
            width = out
        self.conv_norm_out = nn.GroupNorm(norm_num_groups, first)
        self.conv_out = nn.Conv2d(first, out_channels, 3, padding=1)

    @property
    def blocks(self) -> list[Block]:
        """All blocks in the order of the forward pass."""
        return [*self.down_blocks, self.mid_block, *self.up_blocks]

    @apply_forward_hook
    def prepare_conditioning(self, content: Tensor, motion: Tensor | None = None) -> Conditioning:
        """Keys and values of the states (B, L, D), once for a prompt and all of its steps."""
        return tuple(m for block in self.blocks for m in block.memories(content, motion))

    def init_motion_from_content(self) -> None:
        """Start every motion transformer as a copy of the content transformer beside it."""
        for block in self.blocks:
            block.motion_attentions.load_state_dict(block.attentions.state_dict())

    def check_size(self, height: int, width: int) -> None:
        """Raise ValueError for latents (height, width) that the levels cannot halve."""
        step = 2 ** (len(self.config.block_out_channels) - 1)
        if height % step or width % step or min(height, width) < step:
            raise ValueError(f"latents of {height}x{width}: both sides must be multiples of {step}")

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | int,
        content: Tensor | None = None,
        motion: Tensor | None = None,
        conditioning: Conditioning | None = None,
        motion_strength: float = 1.0,
        eot_index: Tensor | None = None,
    ) -> DemoUNetOutput:
        """Predict the noise (or what the scheduler's prediction type says) in `sample`.

        sample (B, C, F, H, W); timestep (B,) or one for all; content and motion states
        (B, L, D), or instead of both the `conditioning` made of them. `motion_strength` scales
        the motion transformers' residuals: 0 is the base network. With `eot_index` (B,), the
        position of the end-of-text token in the motion prompt, the output carries the attention
        that each motion transformer pays to it. Raises ValueError for sizes that do not fit.
        """
        frames = sample.shape[2]
        self.check_size(*sample.shape[3:])
        if conditioning is None:
            if content is None:
                raise ValueError("the denoiser needs content states or prepared conditioning")
            conditioning = self.prepare_conditioning(content, motion)
        run = Pass(frames, self._embed(timestep, sample), motion_strength, eot_index)
        memories = iter(conditioning)
        maps: list[Tensor | None] = []
        x = self.conv_in(rearrange(sample, "b c f h w -> (b f) c h w"))
        if self.config.temporal:
            x, _ = self.transformer_in(x, frames)
        skips = [x]
        for block in self.down_blocks:
            for layer in range(len(block.resnets)):
                x, on_eot = block(layer, x, run, memories)
                maps.append(on_eot)
                skips.append(x)
            for downsample in getattr(block, "downsamplers", ()):
                x = downsample(x)
                skips.append(x)
        for layer in range(len(self.mid_block.resnets)):
            x, on_eot = self.mid_block(layer, x, run, memories)
            maps.append(on_eot)
        for block in self.up_blocks:
            for layer in range(len(block.resnets)):
                x, on_eot = block(layer, torch.cat([x, skips.pop()], dim=1), run, memories)
                maps.append(on_eot)
            for upsample in getattr(block, "upsamplers", ()):
                x = upsample(x)
        x = self.conv_out(F.silu(self.conv_norm_out(x)))
        noise = rearrange(x, "(b f) c h w -> b c f h w", f=frames)
        if eot_index is None:
            return DemoUNetOutput(noise)
        return DemoUNetOutput(noise, tuple(m for m in maps if m is not None))

    def _embed(self, timestep: Tensor | int, sample: Tensor) -> Tensor:
        """The timestep's embedding for every frame: (B*F, T)."""
        steps = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        waves = timestep_embedding(steps, self.config.block_out_channels[0])
        embedded: Tensor = self.time_embedding(waves.to(sample.dtype))
        embedded = embedded.repeat_interleave(sample.shape[2], dim=0)
        if self.config.frame_embedding:
            places = torch.arange(sample.shape[2], device=sample.device)
            waves = timestep_embedding(places, self.config.block_out_channels[0])
            place: Tensor = self.place_embedding(waves.to(sample.dtype))
            embedded = embedded + place.repeat(len(sample), 1)
        return embedded
