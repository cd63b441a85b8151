#!/usr/bin/env python3
"""Which of llama.cpp's roundings decide how near another engine's logits are to its own.

    python tools/llama_roundings.py needle-q8_0.gguf --prompts 12

A forward pass of a llama-architecture GGUF (Q8_0, F16 or F32 tensors) in numpy, in f64 but for the
roundings chosen, is compared with llama.cpp's logits along llama.cpp's own greedy text. Prints a
Markdown table, one row for each set of roundings. Five seconds a prompt and row for the reference model.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import llama_cpp
import numpy as np
from gguf import GGUFReader

from compare_llama_cpp import EXAMPLE, llama_greedy, passages
from llama_peer import LlamaPeer


@dataclass(frozen=True)
class Roundings:
    """What is rounded beside int8 activations and f16 keys and values."""

    f16_scales: bool = False  # the scale of an int8 block of activations
    f16_queries: bool = False
    f16_weights: bool = False  # of attention, after the softmax
    f32_sums: bool = False  # sums in f32 in numpy's order, instead of f64


NONE = Roundings()
SCALES = replace(NONE, f16_scales=True)
QUERIES = replace(SCALES, f16_queries=True)
WEIGHTS = replace(QUERIES, f16_weights=True)
ROWS = {
    "none of them": NONE,
    "scales of activations in f16": SCALES,
    "and queries in f16": QUERIES,
    "and attention weights in f16: all of llama.cpp's": WEIGHTS,
    "and sums in f32, in another order": replace(WEIGHTS, f32_sums=True),
}


class Model:
    """The tensors of a file in f32, and its settings."""

    def __init__(self, path: Path) -> None:
        reader = GGUFReader(path)
        self.tensors: dict[str, np.ndarray] = {}
        self.quantised: set[str] = set()
        for tensor in reader.tensors:
            shape = tuple(tensor.shape[::-1])
            if tensor.tensor_type.name == "Q8_0":
                blocks = tensor.data.reshape(-1, 34)
                scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
                self.tensors[tensor.name] = (scale * blocks[:, 2:].view(np.int8)).reshape(shape)
                self.quantised.add(tensor.name)
            else:
                self.tensors[tensor.name] = np.array(tensor.data, dtype=np.float32).reshape(shape)
        setting = lambda key: reader.fields[f"llama.{key}"].contents()
        self.layers, self.heads = setting("block_count"), setting("attention.head_count")
        self.kv_heads, self.eps = setting("attention.head_count_kv"), setting("attention.layer_norm_rms_epsilon")
        self.base = setting("rope.freq_base")
        self.head_dim = self.tensors["blk.0.attn_q.weight"].shape[0] // self.heads

    def logits(self, ids: np.ndarray, wanted: int, roundings: Roundings) -> np.ndarray:
        """Logits [wanted][vocabulary] of the last rows."""
        kind = np.float32 if roundings.f32_sums else np.float64
        group = self.heads // self.kv_heads
        visible = np.tril(np.ones((len(ids), len(ids)), bool))
        angles = np.arange(len(ids))[:, None] * self.base ** (-2.0 * np.arange(self.head_dim // 2) / self.head_dim)
        turn = np.cos(angles).astype(np.float32)[:, None], np.sin(angles).astype(np.float32)[:, None]
        x = self.tensors["token_embd.weight"][ids]
        for layer in range(self.layers):
            block = f"blk.{layer}."
            h = self.norm(x, block + "attn_norm.weight", kind)
            heads = lambda name, count: self.product(h, block + name, roundings, kind).reshape(len(ids), count, self.head_dim)
            q = rotated(heads("attn_q.weight", self.heads), *turn)
            k = halved(rotated(heads("attn_k.weight", self.kv_heads), *turn))
            v = halved(heads("attn_v.weight", self.kv_heads))
            q = halved(q) if roundings.f16_queries else q
            out = np.empty_like(q)
            for head in range(self.heads):
                scores = (q[:, head].astype(kind) @ k[:, head // group].T.astype(kind)).astype(np.float32) / np.float32(self.head_dim**0.5)
                scores = np.where(visible, scores, -np.inf)
                weights = np.exp((scores - scores.max(axis=-1, keepdims=True)).astype(kind))
                weights = (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32)
                weights = halved(weights) if roundings.f16_weights else weights
                out[:, head] = weights.astype(kind) @ v[:, head // group].astype(kind)
            x = x + self.product(out.reshape(len(ids), -1), block + "attn_output.weight", roundings, kind)
            h = self.norm(x, block + "ffn_norm.weight", kind)
            gate = self.product(h, block + "ffn_gate.weight", roundings, kind).astype(kind)
            gated = (gate / (1 + np.exp(-gate))).astype(np.float32) * self.product(h, block + "ffn_up.weight", roundings, kind)
            x = x + self.product(gated, block + "ffn_down.weight", roundings, kind)
        return self.product(self.norm(x[-wanted:], "output_norm.weight", kind), "output.weight", roundings, kind)

    def norm(self, x: np.ndarray, name: str, kind: type) -> np.ndarray:
        wide = x.astype(kind)
        return (wide / np.sqrt((wide * wide).mean(axis=-1, keepdims=True) + self.eps)).astype(np.float32) * self.tensors[name]

    def product(self, x: np.ndarray, name: str, roundings: Roundings, kind: type) -> np.ndarray:
        if name in self.quantised:
            x = int8_blocks(x, roundings.f16_scales)
        return (x.astype(kind) @ self.tensors[name].T.astype(kind)).astype(np.float32)


def int8_blocks(x: np.ndarray, f16_scales: bool) -> np.ndarray:
    """What int8 blocks of 32 numbers stand for, in f64."""
    blocks = x.reshape(len(x), -1, 32)
    largest = np.abs(blocks).max(axis=-1, keepdims=True)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    scale = largest / np.float32(127)
    scale = halved(scale) if f16_scales else scale
    return (np.rint(blocks * inverse).astype(np.float64) * scale).reshape(x.shape)


def rotated(x: np.ndarray, cosine: np.ndarray, sine: np.ndarray) -> np.ndarray:
    """Pairs of channels 2i and 2i + 1 turned."""
    even, odd, out = x[..., 0::2], x[..., 1::2], np.empty_like(x)
    out[..., 0::2], out[..., 1::2] = even * cosine - odd * sine, even * sine + odd * cosine
    return out


def halved(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float16).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a GGUF file of the llama architecture")
    parser.add_argument("--text", type=Path, default=EXAMPLE, help="the book that prompts are taken from")
    parser.add_argument("--prompts", type=int, default=12, help="passages of 2,000 characters")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of greedy text")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    arguments.numerics = "default"
    model = Model(arguments.model)
    prompts = passages(arguments.text.read_text(encoding="utf-8"), arguments.prompts)
    reader = LlamaPeer(arguments.model, 64, arguments.threads, llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED)
    texts = []
    for prompt in prompts:
        ids = reader.tokenize(prompt.text)
        texts.append((ids, llama_greedy(arguments.model, ids, arguments)))
    print("| roundings | logits apart: median | largest | prompts with another token | tokens in all | largest gap of one |")
    print("|---|---|---|---|---|---|")
    for name, roundings in ROWS.items():
        distances, wrong, gaps = [], [], []
        for ids, theirs in texts:
            logits = model.logits(np.array(ids + theirs.ids[:-1]), arguments.tokens, roundings)
            distances.append(np.abs(logits - theirs.logits).max(axis=-1))
            other = logits.argmax(axis=-1) != np.array(theirs.ids)
            wrong.append(other.sum())
            gaps += list(theirs.gaps()[other])
        distance = np.concatenate(distances)
        print(
            f"| {name} | {np.median(distance):.3f} | {distance.max():.3f} | {np.count_nonzero(wrong)} of {len(texts)} | "
            f"{sum(wrong)} of {distance.size} | {max(gaps, default=0.0):.4f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
