"""The three kinds of transformer in the denoiser.

- content: self-attention over the positions of a frame, then cross-attention to the content states;
- motion: self-attention over the frames at a position, then cross-attention to the motion states
  (added by DEMO);
- temporal: self-attention over the frames at a position, twice (from the base model).

Keys and values of the text encoders' states are computed once for a prompt. All frames and
positions share them: cross-attention treats all queries of a sample as one sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from demo_t2v.models.layout import frames_to_clips
from demo_t2v.models.linear import Linear, computes_on_cpu

TransformerKind = Literal["content", "motion", "temporal"]

ROWS_AT_ONCE: Final = 1024
"""Rows of a feed-forward layer on a CPU: the widest ones read their weights once, and the results
of narrow ones fit into the cache."""


@dataclass(frozen=True)
class KeysValues:
    """Keys and values of one attention layer: (B, heads, L, head_dim) each.

    With `per_frame` each frame of a sample has its own: (B*F, heads, L, head_dim).
    """

    keys: Tensor
    values: Tensor
    per_frame: bool = False


class Attention(nn.Module):
    """Multi-head attention without biases on queries, keys and values."""

    def __init__(
        self, channels: int, heads: int, head_dim: int, cross_attention_dim: int | None
    ) -> None:
        """`cross_attention_dim` is the width of the states attended to; None: of the input."""
        super().__init__()
        inner = heads * head_dim
        self.heads = heads
        self.to_q = Linear(channels, inner, bias=False)
        self.to_k = Linear(cross_attention_dim or channels, inner, bias=False)
        self.to_v = Linear(cross_attention_dim or channels, inner, bias=False)
        self.to_out = nn.ModuleList([Linear(inner, channels)])  # named as in diffusers

    def keys_values(self, states: Tensor) -> KeysValues:
        """Keys and values of all heads from states (N, L, D), or (N, F, L, D) a frame."""
        per_frame = states.ndim == 4
        if per_frame:
            states = states.flatten(0, 1)
        keys, values = self._split(self.to_k(states)), self._split(self.to_v(states))
        return KeysValues(keys, values, per_frame)

    def forward(self, x: Tensor, kv: KeysValues | None = None) -> Tensor:
        """Attention of x (N, T, C) to `kv` of the same N; None: self-attention."""
        kv = kv or self.keys_values(x)
        query = self._split(self.to_q(x))
        return self._merge(F.scaled_dot_product_attention(query, kv.keys, kv.values))

    def with_map(self, x: Tensor, kv: KeysValues, token_index: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, and the attention map of one token of each sample (DEMO, eq. 3).

        x (B, T, C), token_index (B,) -> (B, T, C) and the map (B, T), averaged over the heads.
        The softmax is computed once for both.
        """
        query = self._split(self.to_q(x))
        scores = query * query.shape[-1] ** -0.5 @ kv.keys.transpose(-1, -2)
        weights = scores.softmax(dim=-1)  # (B, heads, T, L)
        samples = torch.arange(len(token_index), device=token_index.device)
        token_map = weights.mean(dim=1)[samples, :, token_index]
        return self._merge(weights @ kv.values), token_map

    def _split(self, x: Tensor) -> Tensor:
        return rearrange(x, "n t (h d) -> n h t d", h=self.heads)

    def _merge(self, x: Tensor) -> Tensor:
        return self.to_out[0](rearrange(x, "n h t d -> n t (h d)"))  # type: ignore[no-any-return]


class GEGLU(nn.Module):
    """A linear layer; GELU of one half of its output gates the other (arXiv 2002.05202)."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.proj = Linear(channels, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., C) -> (..., inner)."""
        value, gate = self.proj(x).chunk(2, dim=-1)
        return F.gelu(gate).mul_(value)


class FeedForward(nn.Module):
    """GEGLU to four times the width, then a linear layer back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = 4 * channels
        gate, back = GEGLU(channels, inner), Linear(inner, channels)
        self.net = nn.Sequential(gate, nn.Identity(), back)  # named as in diffusers

    def forward(self, x: Tensor) -> Tensor:
        """x (..., C) -> (..., C). A CPU computes some rows at a time, in its cache."""
        if not computes_on_cpu(x):
            return self.net(x)  # type: ignore[no-any-return]
        rows = x.reshape(-1, x.shape[-1])
        parts = torch.split(rows, ROWS_AT_ONCE)
        return torch.cat([self.net(part) for part in parts]).view(x.shape)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention (or a second self-attention), feed-forward."""

    def __init__(
        self, channels: int, heads: int, head_dim: int, cross_attention_dim: int | None
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, heads, head_dim, None)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, heads, head_dim, cross_attention_dim)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(
        self, x: Tensor, encoder_kv: KeysValues | None, token_index: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """x (N, T, C) -> (N, T, C) and, with `token_index` (B,), that token's map (B, N/B*T).

        `encoder_kv` has B samples, where B divides N; rows of x are ordered by sample. Where it
        has keys and values for each of the T frames, `token_index` is (B, T).
        """
        x = x + self.attn1(self.norm1(x))
        token_map = None
        if encoder_kv is None:
            x = x + self.attn2(self.norm2(x))
        else:
            attended, token_map = self._cross_attention(self.norm2(x), encoder_kv, token_index)
            x = x + attended
        return x + self.ff(self.norm3(x)), token_map

    def _cross_attention(
        self, x: Tensor, kv: KeysValues, token_index: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The queries of a sample, or of one of its frames, form one sequence."""
        frames = x.shape[1]
        if kv.per_frame:
            query = rearrange(x, "(b s) f c -> (b f) s c", b=len(kv.keys) // frames)
        else:
            query = x.reshape(len(kv.keys), -1, x.shape[-1])  # (B, N/B*T, C)
        token_map = None
        if token_index is None:
            attended = self.attn2(query, kv)
        else:
            attended, token_map = self.attn2.with_map(query, kv, token_index.flatten())
        if not kv.per_frame:
            return attended.reshape(x.shape), token_map
        if token_map is not None:
            token_map = rearrange(token_map, "(b f) s -> b (s f)", f=frames)
        return rearrange(attended, "(b f) s c -> (b s) f c", f=frames), token_map


class Transformer(nn.Module):
    """Norm, linear in, one transformer block over space or over time, linear out, residual."""

    def __init__(
        self,
        kind: TransformerKind,
        channels: int,
        heads: int,
        head_dim: int,
        cross_attention_dim: int,
        groups: int,
    ) -> None:
        super().__init__()
        self.kind = kind
        inner = heads * head_dim
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = Linear(channels, inner)
        block = TransformerBlock(
            inner, heads, head_dim, None if kind == "temporal" else cross_attention_dim
        )
        self.transformer_blocks = nn.ModuleList([block])
        self.proj_out = Linear(inner, channels)
        # Every transformer starts as the identity.
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def keys_values(self, states: Tensor) -> KeysValues:
        """Keys and values for the cross-attention, from encoder states (B, L, D), or
        (B, F, L, D) for each frame.
        """
        block: TransformerBlock = self.transformer_blocks[0]  # type: ignore[assignment]
        return block.attn2.keys_values(states)

    def forward(
        self,
        x: Tensor,
        num_frames: int,
        encoder_kv: KeysValues | None = None,
        token_index: Tensor | None = None,
        strength: float = 1.0,
    ) -> tuple[Tensor, Tensor | None]:
        """x (B*F, C, H, W) -> x plus `strength` times the transformer's output, and a map.

        The map is None without `token_index` (B,). With it, a motion transformer returns the
        attention (B, H, W, F) of each position and frame to that token, averaged over the heads.
        """
        height, width = x.shape[2:]
        if self.kind == "content":
            h = rearrange(self.norm(x), "n c h w -> n (h w) c")
        else:  # as in the base model, group norm includes the frames
            h = self.norm(frames_to_clips(x, num_frames))
            h = rearrange(h, "b c f s -> (b s) f c")
        h, token_map = self.transformer_blocks[0](self.proj_in(h), encoder_kv, token_index)
        h = self.proj_out(h)
        # Views: the sum reads h in its own order and has the memory layout of x.
        if self.kind == "content":
            h = rearrange(h, "(b f) (h w) c -> b f c h w", f=num_frames, h=height)
        else:
            h = rearrange(h, "(b h w) f c -> b f c h w", h=height, w=width)
        if token_map is not None:
            token_map = rearrange(token_map, "b (h w f) -> b h w f", h=height, w=width)
        clips = rearrange(x, "(b f) c h w -> b f c h w", f=num_frames)
        return torch.add(clips, h, alpha=strength).flatten(0, 1), token_map
