"""DemoUNet: the denoiser of ModelScopeT2V with DEMO's motion transformers. It wires the blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.utils.accelerate_utils import apply_forward_hook
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from demo_t2v.models.blocks import (
    Block,
    BlockConditioning,
    DeepFeatures,
    DownBlock,
    ForwardPass,
    LayerSizes,
    MidBlock,
    UpBlock,
    timestep_embedding,
)

Conditioning = tuple[BlockConditioning, ...]
"""Keys and values for each block, in the order of the forward pass."""


@dataclass(frozen=True)
class DemoUNetOutput:
    """`sample` (B, C, F, H, W); with `eot_index`, one motion-attention map (B, h, w, F) a layer."""

    sample: Tensor
    eot_attention: tuple[Tensor, ...] | None = None

    @property
    def mean_eot_attention(self) -> Tensor:
        """The mean of the maps over the layers, each resized to `sample`: (B, F, H, W) in [0, 1].

        Raises ValueError where there are no maps: without `eot_index`, or without motion
        transformers.
        """
        if not self.eot_attention:
            raise ValueError("eot_attention: the forward pass had none")
        size = self.sample.shape[3:]
        resized = [
            F.interpolate(rearrange(one.float(), "b h w f -> b f h w"), size, mode="bilinear")
            for one in self.eot_attention
        ]
        return torch.stack(resized).mean(dim=0)


class DemoUNet(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """Latent video denoiser; the default sizes are those of the release (1,684.86 M parameters).

    With `motion=False` it is ModelScopeT2V's base network (arXiv 2308.06571; 1,411.23 M).
    With `temporal=False` too, it is an image network that denoises each frame separately. A base
    network can be initialized from it, as ModelScopeT2V was from Stable Diffusion.

    `sample_size` (latent side) and `sample_frames` are the sizes that the weights were trained
    for. `attention` lists the levels with transformers. With `frame_embedding` an embedding of the
    frame's index is added to that of the timestep. The release has none and infers the index from
    the padding of its temporal convolutions. `dropout` applies to residual blocks and temporal
    convolutions, not to transformers.
    """

    _supports_gradient_checkpointing = True
    _repeated_blocks = ["ResnetBlock", "TemporalConv", "Transformer"]  # noqa: RUF012 (diffusers')

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
        sizes = LayerSizes(
            temb_channels=4 * first,
            head_dim=attention_head_dim,
            cross_attention_dim=cross_attention_dim,
            groups=norm_num_groups,
            dropout=dropout,
            temporal=temporal,
            motion=motion,
        )
        self.conv_in = nn.Conv2d(in_channels, first, 3, padding=1)
        self.time_embedding = TimestepEmbedding(first, sizes.temb_channels)
        if frame_embedding:
            self.place_embedding = TimestepEmbedding(first, sizes.temb_channels)
            # Zero at first: adding it to a trained network does not change the output.
            nn.init.zeros_(self.place_embedding.linear_2.weight)
            nn.init.zeros_(self.place_embedding.linear_2.bias)
        if temporal:
            self.transformer_in = sizes.transformer("temporal", first, num_input_heads)
        self.down_blocks: list[DownBlock] = nn.ModuleList()  # type: ignore[assignment]
        skips, width = [first], first
        for level, out in enumerate(widths):
            channels = [(width if i == 0 else out, out) for i in range(depth)]
            downsample = level < len(widths) - 1
            self.down_blocks.append(
                DownBlock(channels, sizes, depth * attention[level], downsample)
            )
            skips += [out] * (depth + downsample)
            width = out
        self.mid_block = MidBlock([(last, last)] * 2, sizes, attention=1)
        self.up_blocks: list[UpBlock] = nn.ModuleList()  # type: ignore[assignment]
        for level, out in reversed(list(enumerate(widths))):
            channels = [((width if i == 0 else out) + skips.pop(), out) for i in range(depth + 1)]
            self.up_blocks.append(
                UpBlock(channels, sizes, (depth + 1) * attention[level], upsample=level > 0)
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
        """Keys and values from encoder states (B, L, D); the same for all steps of a prompt.

        Motion states may be (B, F, L, D): then each frame has its own, as on a timeline.
        """
        return tuple(block.prepare_conditioning(content, motion) for block in self.blocks)

    def init_motion_from_content(self) -> None:
        """Copy each layer's content transformer to its motion transformer."""
        for block in self.blocks:
            block.motion_attentions.load_state_dict(block.attentions.state_dict())

    def check_size(self, height: int, width: int) -> None:
        """Raise ValueError for latents (height, width) that cannot be halved at each level."""
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
        cache: DeepFeatures | None = None,
    ) -> DemoUNetOutput:
        """Predict the noise in `sample`, or the velocity of a network trained for it.

        sample (B, C, F, H, W); timestep (B,) or one for all; content states (B, L, D) and motion
        states (B, L, D) or, for each frame, (B, F, L, D) of the text encoders, or instead
        `conditioning`, the keys and values made of them. `motion_strength` scales the motion
        transformers' residuals: 0 is the base network. With `eot_index`, (B,) or (B, F) for each
        frame, the position of the end-of-text token in the motion prompt, the output has each
        motion transformer's attention map of that token (DEMO, eq. 3). A `cache` that is not
        complete has the input of the last layer; only the first and the last layer are computed.
        Raises ValueError for sides that are no multiples of the deepest level's stride.
        """
        self.check_size(*sample.shape[3:])
        if conditioning is None:
            if content is None:
                raise ValueError("the denoiser needs content states or prepared conditioning")
            conditioning = self.prepare_conditioning(content, motion)
        num_frames = sample.shape[2]
        run = ForwardPass(
            num_frames, self._embed(timestep, sample), motion_strength, eot_index, cache
        )

        # Down blocks push their outputs, up blocks pop them: no tensor is referenced after its use.
        frames = rearrange(sample, "b c f h w -> (b f) c h w")
        if frames.device.type == "cpu" and not torch.is_grad_enabled():
            # All layers keep this layout: positions as rows, and clips as frames, are views. On a
            # GPU torch's group norm copies to the other layout. With gradients it can end the
            # process in this layout, where weights are frozen (torch 2.13).
            frames = frames.contiguous(memory_format=torch.channels_last)
        features = [self.conv_in(frames)]
        if self.config.temporal:
            features[0], _ = self.transformer_in(features[0], num_frames)
        if cache is None or cache.complete:
            block_conditioning = iter(conditioning)
            for down_block in self.down_blocks:
                features += down_block(features[-1], run, next(block_conditioning))
            features.append(self.mid_block(features[-1], run, next(block_conditioning)))
            for up_block in self.up_blocks:
                # A list that nothing else reads: hooks of DeepSpeed and FSDP2 pass a copy of it on.
                inputs = [features.pop() for _ in range(len(up_block.resnets) + 1)]
                features.append(up_block(inputs, run, next(block_conditioning)))
        else:
            features.append(
                self.up_blocks[-1]([cache.load(), features.pop()], run, conditioning[-1])
            )
        x = self.conv_out(F.silu(self.conv_norm_out(features.pop())))

        prediction = rearrange(x, "(b f) c h w -> b c f h w", f=num_frames)
        return DemoUNetOutput(prediction, None if eot_index is None else tuple(run.eot_attention))

    def _embed(self, timestep: Tensor | int, sample: Tensor) -> Tensor:
        """SiLU of the embedding of timestep and frame index, for each frame: (B*F, T)."""
        batch, num_frames = len(sample), sample.shape[2]
        width = self.config.block_out_channels[0]
        timesteps = torch.as_tensor(timestep, device=sample.device).expand(batch)
        temb: Tensor = self.time_embedding(timestep_embedding(timesteps, width).to(sample.dtype))
        temb = temb.repeat_interleave(num_frames, dim=0)
        if self.config.frame_embedding:
            indices = torch.arange(num_frames, device=sample.device)
            sinusoids = timestep_embedding(indices, width).to(sample.dtype)
            temb = temb + self.place_embedding(sinusoids).repeat(batch, 1)
        return F.silu(temb)
