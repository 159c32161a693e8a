"""The three kinds of transformer in the denoiser.

- content: each frame's positions among themselves, then the content states (spatial);
- motion: each position's frames among themselves, then the motion states (what DEMO adds);
- temporal: each position's frames among themselves, twice (the base model's).

Keys and values of the states are computed once for a prompt and shared by all frames and all
positions: cross-attention treats every query of a sample as one long sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class KeysValues:
    """One cross-attention's keys and values: (B, heads, L, head_dim) each."""

    keys: Tensor
    values: Tensor


class Attention(nn.Module):
    """Multi-head attention without biases on queries, keys and values."""

    def __init__(self, channels: int, heads: int, head_dim: int, context: int | None) -> None:
        super().__init__()
        inner = heads * head_dim
        self.heads = heads
        self.to_q = nn.Linear(channels, inner, bias=False)
        self.to_k = nn.Linear(context or channels, inner, bias=False)
        self.to_v = nn.Linear(context or channels, inner, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(inner, channels)])  # named as in diffusers

    def keys_values(self, states: Tensor) -> KeysValues:
        """states (N, L, D) -> keys and values of all heads."""
        return KeysValues(self._split(self.to_k(states)), self._split(self.to_v(states)))

    def forward(self, x: Tensor, memory: KeysValues | None = None) -> Tensor:
        """x (N, T, C) attends to itself, or to `memory` with the same N."""
        memory = memory or self.keys_values(x)
        query = self._split(self.to_q(x))
        return self._merge(F.scaled_dot_product_attention(query, memory.keys, memory.values))

    def with_map(self, x: Tensor, memory: KeysValues, token: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, and the attention on one token of each sample, averaged over heads.

        x (B, T, C), token (B,) -> (B, T, C), (B, T). Softmax is taken once, for both.
        """
        query = self._split(self.to_q(x))
        scores = query @ memory.keys.transpose(-1, -2) * query.shape[-1] ** -0.5
        weights = scores.softmax(dim=-1)  # (B, heads, T, L)
        samples = torch.arange(len(token), device=token.device)
        on_token = weights.mean(dim=1)[samples, :, token]
        return self._merge(weights @ memory.values), on_token

    def _split(self, x: Tensor) -> Tensor:
        return rearrange(x, "n t (h d) -> n h t d", h=self.heads)

    def _merge(self, x: Tensor) -> Tensor:
        return self.to_out[0](rearrange(x, "n h t d -> n t (h d)"))  # type: ignore[no-any-return]


class GEGLU(nn.Module):
    """A linear layer of which one half, through GELU, gates the other."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., C) -> (..., inner)."""
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """GEGLU to four times the width, and back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = 4 * channels
        gate, back = GEGLU(channels, inner), nn.Linear(inner, channels)
        self.net = nn.Sequential(gate, nn.Identity(), back)  # named as in diffusers

    def forward(self, x: Tensor) -> Tensor:
        """x (..., C) -> (..., C)."""
        return self.net(x)  # type: ignore[no-any-return]


class TransformerBlock(nn.Module):
    """Self-attention, attention to the states (or to itself once more), feed-forward."""

    def __init__(self, channels: int, heads: int, head_dim: int, context: int | None) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, heads, head_dim, None)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, heads, head_dim, context)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(
        self, x: Tensor, memory: KeysValues | None, token: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """x (N, T, C), sample by sample in N; memory of B samples, B divides N.

        With `token` (B,), also the attention on it: (B, N/B*T).
        """
        x = x + self.attn1(self.norm1(x))
        on_token = None
        if memory is None:
            x = x + self.attn2(self.norm2(x))
        else:
            samples = len(memory.keys)
            query = self.norm2(x).reshape(samples, -1, x.shape[-1])  # (B, N/B*T, C)
            if token is None:
                heard = self.attn2(query, memory)
            else:
                heard, on_token = self.attn2.with_map(query, memory, token)
            x = x + heard.reshape(x.shape)
        return x + self.ff(self.norm3(x)), on_token


class Transformer(nn.Module):
    """Norm, linear in, one transformer block over space or over time, linear out."""

    def __init__(
        self,
        kind: Literal["content", "motion", "temporal"],
        channels: int,
        heads: int,
        head_dim: int,
        context: int,
        groups: int,
    ) -> None:
        super().__init__()
        self.kind = kind
        inner = heads * head_dim
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, inner)
        block = TransformerBlock(inner, heads, head_dim, None if kind == "temporal" else context)
        self.transformer_blocks = nn.ModuleList([block])
        self.proj_out = nn.Linear(inner, channels)
        # Every transformer starts as the identity.
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def keys_values(self, states: Tensor) -> KeysValues:
        """The keys and values of the states (B, L, D) that this transformer listens to."""
        block: TransformerBlock = self.transformer_blocks[0]  # type: ignore[assignment]
        return block.attn2.keys_values(states)

    def forward(
        self,
        x: Tensor,
        frames: int,
        memory: KeysValues | None = None,
        token: Tensor | None = None,
        strength: float = 1.0,
    ) -> tuple[Tensor, Tensor | None]:
        """x (B*F, C, H, W) -> x plus `strength` times the transformer's answer.

        With `token` (B,), also the attention that each position of each frame pays to that
        token of the states, averaged over the heads: (B, H, W, F) for motion.
        """
        height, width = x.shape[2:]
        if self.kind == "content":
            h = rearrange(self.norm(x), "n c h w -> n (h w) c")
        else:  # as in the base model, what goes over the frames is normalised over them too
            h = self.norm(rearrange(x, "(b f) c h w -> b c f (h w)", f=frames))
            h = rearrange(h, "b c f s -> (b s) f c")
        h, on_token = self.transformer_blocks[0](self.proj_in(h), memory, token)
        h = self.proj_out(h)
        if self.kind == "content":
            h = rearrange(h, "n (h w) c -> n c h w", h=height)
        else:
            h = rearrange(h, "(b h w) f c -> (b f) c h w", h=height, w=width)
        if on_token is not None:
            on_token = rearrange(on_token, "b (h w f) -> b h w f", h=height, w=width)
        return x + strength * h, on_token
