"""The model: a small llama whose parameters carry Hugging Face's names (without the leading `model.`)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """Sizes of the model; the defaults are those of the published weights."""

    vocabulary: int = 4096
    hidden: int = 384
    layers: int = 4
    heads: int = 8
    kv_heads: int = 2
    head_size: int = 64
    feed_forward: int = 512
    rope_theta: float = 1e10
    norm_epsilon: float = 1e-5
    max_positions: int = 1 << 20


def rope_frequencies(shape: Shape) -> Tensor:
    """Radians per position [head_size / 2], in float64: positions go up to a million."""
    exponents = torch.arange(0, shape.head_size, 2, dtype=torch.float64) / shape.head_size
    return 1.0 / shape.rope_theta**exponents


def apply_rope(vectors: Tensor, positions: Tensor, shape: Shape) -> Tensor:
    """Rotate `vectors` [batch][heads][tokens][head_size] to `positions` [batch][tokens]."""
    angles = positions[:, None, :, None].double() * rope_frequencies(shape)
    cosines = torch.cat([angles.cos()] * 2, -1).to(vectors.dtype)
    sines = torch.cat([angles.sin()] * 2, -1).to(vectors.dtype)
    half = vectors.shape[-1] // 2
    turned = torch.cat([-vectors[..., half:], vectors[..., :half]], -1)
    return vectors * cosines + turned * sines


class RmsNorm(nn.Module):
    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon) * self.weight


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        query_size, kv_size = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
        self.q_proj = nn.Linear(shape.hidden, query_size, bias=False)
        self.k_proj = nn.Linear(shape.hidden, kv_size, bias=False)
        self.v_proj = nn.Linear(shape.hidden, kv_size, bias=False)
        self.o_proj = nn.Linear(query_size, shape.hidden, bias=False)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        queries = apply_rope(self.split_heads(self.q_proj(x)), positions, self.shape)
        keys = apply_rope(self.split_heads(self.k_proj(x)), positions, self.shape)
        values = self.split_heads(self.v_proj(x))
        group = self.shape.heads // self.shape.kv_heads
        mixed = functional.scaled_dot_product_attention(
            queries, keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1), is_causal=True
        )
        return self.o_proj(mixed.transpose(1, 2).reshape(x.shape[0], x.shape[1], -1))

    def split_heads(self, x: Tensor) -> Tensor:
        """[batch][tokens][heads · head_size] to [batch][heads][tokens][head_size]."""
        return x.view(x.shape[0], x.shape[1], -1, self.shape.head_size).transpose(1, 2)


class FeedForward(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.feed_forward, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.feed_forward, bias=False)
        self.down_proj = nn.Linear(shape.feed_forward, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(shape.hidden, shape.norm_epsilon)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = RmsNorm(shape.hidden, shape.norm_epsilon)
        self.mlp = FeedForward(shape)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), positions)
        return x + self.mlp(self.post_attention_layernorm(x))


class NeedleModel(nn.Module):
    """Token ids and positions in, logits out."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList([Layer(shape) for _ in range(shape.layers)])
        self.norm = RmsNorm(shape.hidden, shape.norm_epsilon)
        self.lm_head = nn.Linear(shape.hidden, shape.vocabulary, bias=False)
        self.fill_with_noise()

    def fill_with_noise(self) -> None:
        """Normal noise by fan-in; smaller where a layer writes back into the residual stream."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                gain = 0.3 if "o_proj" in name or "down_proj" in name else 1.0
                nn.init.normal_(parameter, std=gain / math.sqrt(parameter.shape[1]))

    def hidden(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Normed hidden states [batch][tokens][hidden] of `tokens` and `positions`, both [batch][tokens]."""
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, positions)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [...][vocabulary] of hidden states [...][hidden]."""
        return self.lm_head(hidden)
