#!/usr/bin/env python3
"""Write tiny random GGUF files of several architectures, with a vocabulary, that llama.cpp loads too.

    python tools/make_tiny_ggufs.py OUT        # llama, qwen2, qwen3 and gemma2; a second

They are for `compare_llama_cpp.py`: random norms, biases and soft caps, so that two programs agree
only when both compute the same model. Everything is f32, because llama.cpp rounds activations to f16
in front of f16 matrices. The vocabulary is one token a byte and a few pairs.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

HIDDEN, FEED_FORWARD, LAYERS, HEADS, KV_HEADS, HEAD_SIZE = 256, 256, 3, 4, 2, 64
CONTEXT = 8192


@dataclass(frozen=True)
class Architecture:
    """What sets one architecture apart from the others."""

    name: str
    query_bias: bool = False
    query_norms: bool = False
    outer_norms: bool = False
    tied: bool = False
    sentencepiece: bool = False


LIST = (
    Architecture("llama"),
    Architecture("qwen2", query_bias=True),
    Architecture("qwen3", query_norms=True, tied=True),
    Architecture("gemma2", outer_norms=True, tied=True, sentencepiece=True),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for architecture in LIST:
        path = arguments.out / f"tiny-{architecture.name}-f32.gguf"
        write(architecture, path, np.random.default_rng(arguments.seed))
        print(path)


def write(architecture: Architecture, path: Path, random: np.random.Generator) -> None:
    """One file: metadata, vocabulary, tensors."""
    writer = gguf.GGUFWriter(str(path), architecture.name)
    writer.add_name(f"tiny {architecture.name}")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD_SIZE)
    writer.add_value_length(HEAD_SIZE)
    writer.add_rope_dimension_count(HEAD_SIZE)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    if architecture.name == "gemma2":
        writer.add_attn_logit_softcapping(5.0)
        writer.add_final_logit_softcapping(20.0)
        writer.add_sliding_window(256)
    vocabulary = add_sentencepiece(writer) if architecture.sentencepiece else add_byte_level(writer)
    for name, tensor in tensors(architecture, vocabulary, random):
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensors(
    architecture: Architecture, vocabulary: int, random: np.random.Generator
) -> list[tuple[str, np.ndarray]]:
    """Names and values of all tensors, scaled so that attention is not uniform and logits are of order ten."""
    query_size, kv_size = HEADS * HEAD_SIZE, KV_HEADS * HEAD_SIZE

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (1.2 / columns**0.5 * random.standard_normal((rows, columns))).astype(np.float32)

    def vector(size: int, centre: float) -> np.ndarray:
        return (centre + 0.3 * random.standard_normal(size)).astype(np.float32)

    embedding_scale = 0.06 if architecture.tied else 1.0
    embedding = (embedding_scale * random.standard_normal((vocabulary, HIDDEN))).astype(np.float32)
    result = [("token_embd.weight", embedding)]
    if architecture.tied:
        # Signs of either kind, or every token would predict itself for ever.
        result.append(("output_norm.weight", (3.0 * random.standard_normal(HIDDEN)).astype(np.float32)))
    else:
        result.append(("output_norm.weight", vector(HIDDEN, 1.0)))
        result.append(("output.weight", (0.2 * random.standard_normal((vocabulary, HIDDEN))).astype(np.float32)))
    for layer in range(LAYERS):
        parts = {
            "attn_norm.weight": vector(HIDDEN, 1.0),
            "attn_q.weight": matrix(query_size, HIDDEN),
            "attn_k.weight": matrix(kv_size, HIDDEN),
            "attn_v.weight": matrix(kv_size, HIDDEN),
            "attn_output.weight": matrix(HIDDEN, query_size),
            "ffn_norm.weight": vector(HIDDEN, 1.0),
            "ffn_gate.weight": matrix(FEED_FORWARD, HIDDEN),
            "ffn_up.weight": matrix(FEED_FORWARD, HIDDEN),
            "ffn_down.weight": matrix(HIDDEN, FEED_FORWARD),
        }
        if architecture.query_bias:
            parts |= {
                "attn_q.bias": vector(query_size, 0.0),
                "attn_k.bias": vector(kv_size, 0.0),
                "attn_v.bias": vector(kv_size, 0.0),
            }
        if architecture.query_norms:
            parts |= {"attn_q_norm.weight": vector(HEAD_SIZE, 1.5), "attn_k_norm.weight": vector(HEAD_SIZE, 1.5)}
        if architecture.outer_norms:
            parts |= {"post_attention_norm.weight": vector(HIDDEN, 1.0), "post_ffw_norm.weight": vector(HIDDEN, 1.0)}
        result += [(f"blk.{layer}.{name}", value) for name, value in parts.items()]
    return result


def add_byte_level(writer: gguf.GGUFWriter) -> int:
    """GPT-2's spelling of the 256 bytes, one merge, and two special tokens. Returns the number of tokens."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(0x100 + index) for index in range(len(rest))]
    tokens = letters + ["th", "<|endoftext|>", "<|im_end|>"]
    types = [gguf.TokenType.NORMAL] * (len(letters) + 1) + [gguf.TokenType.CONTROL] * 2
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(["t h"])
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_pad_token_id(len(tokens) - 2)
    writer.add_add_bos_token(False)
    return len(tokens)


def add_sentencepiece(writer: gguf.GGUFWriter) -> int:
    """Four special tokens, the 256 bytes, and a few pieces with scores. Returns the number of tokens."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    tokens = special + [f"<0x{byte:02X}>" for byte in range(256)]
    types = [gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.UNKNOWN] + [gguf.TokenType.BYTE] * 256
    pieces = ["\u2581", *"etaoinshrdlu", "th", "\u2581th", "he", "\u2581the"]
    scores = [-1000.0] * len(tokens) + [-float(index) for index in range(len(pieces))]
    tokens += pieces
    types += [gguf.TokenType.NORMAL] * len(pieces)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_pad_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_unk_token_id(3)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    return len(tokens)


if __name__ == "__main__":
    main()
