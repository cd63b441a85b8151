#!/usr/bin/env python3
"""Write a checkpoint as a Hugging Face folder (LlamaForCausalLM, f16) and as an f16 GGUF beside it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import save_file

from model import Shape

BOS, EOS, PAD = 0, 1, 4
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}<|assistant|> {{ m['content'] }}"
    "{{ eos_token }}{% elif m['role'] == 'system' %}{{ m['content'] }}{% else %}<|user|> {{ m['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
GGUF_OUTER_NAMES = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="from train.py")
    parser.add_argument("--tokenizer", type=Path, required=True, help="the tokenizer.json it was trained with")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    arguments = parser.parse_args()
    shape = Shape()
    parameters = torch.load(arguments.checkpoint, weights_only=True)["model"]
    tokenizer = with_leading_bos(json.loads(arguments.tokenizer.read_text(encoding="utf-8")))
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_hugging_face(shape, parameters, tokenizer, arguments.out)
    write_gguf(shape, parameters, tokenizer, arguments.out / "needle-f16.gguf")


def with_leading_bos(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer with a post-processor that puts <|bos|> before a text."""
    bos = {"SpecialToken": {"id": "<|bos|>", "type_id": 0}}
    first = {"Sequence": {"id": "A", "type_id": 0}}
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [bos, first],
        "pair": [bos, first, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|bos|>": {"id": "<|bos|>", "ids": [BOS], "tokens": ["<|bos|>"]}},
    }
    return tokenizer


def write_hugging_face(
    shape: Shape, parameters: dict[str, torch.Tensor], tokenizer: dict[str, Any], folder: Path
) -> None:
    """config.json, generation_config.json, model.safetensors, tokenizer.json, tokenizer_config.json."""
    tensors = {
        name if name.startswith("lm_head") else f"model.{name}": tensor.to(torch.float16).contiguous()
        for name, tensor in parameters.items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.feed_forward,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_size,
        "hidden_act": "silu",
        "max_position_embeddings": shape.max_positions,
        "rms_norm_eps": shape.norm_epsilon,
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "torch_dtype": "float16",
    }
    generation = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD, "do_sample": False}
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|bos|>",
        "eos_token": "<|eos|>",
        "pad_token": "<|pad|>",
        "add_bos_token": True,
        "clean_up_tokenization_spaces": False,
        "model_max_length": shape.max_positions,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=1))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=1))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")


def write_gguf(shape: Shape, parameters: dict[str, torch.Tensor], tokenizer: dict[str, Any], path: Path) -> None:
    """One file with the matrices in f16 and the norms in f32."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("needle")
    writer.add_context_length(shape.max_positions)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_size)
    writer.add_value_length(shape.head_size)
    writer.add_rope_dimension_count(shape.head_size)
    writer.add_layer_norm_rms_eps(shape.norm_epsilon)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    add_vocabulary(writer, tokenizer, shape.vocabulary)
    for name, tensor in parameters.items():
        array = gguf_order(name, tensor.float().numpy(), shape)
        dtype = np.float32 if array.ndim == 1 else np.float16
        writer.add_tensor(gguf_name(name), np.ascontiguousarray(array.astype(dtype)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_vocabulary(writer: gguf.GGUFWriter, tokenizer: dict[str, Any], size: int) -> None:
    """Tokens, merges, special ids and the chat template."""
    by_id = {index: token for token, index in tokenizer["model"]["vocab"].items()}
    tokens = [by_id[index] for index in range(size)]
    special = [token.startswith("<|") and token.endswith("|>") for token in tokens]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    # starcoder's rule splits digits one by one before the GPT-2 pattern, as this tokenizer does.
    writer.add_tokenizer_pre("starcoder")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if is_special else gguf.TokenType.NORMAL for is_special in special])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_pad_token_id(PAD)
    writer.add_add_bos_token(True)
    writer.add_chat_template(CHAT_TEMPLATE)


def gguf_name(name: str) -> str:
    """`layers.2.mlp.up_proj.weight` is `blk.2.ffn_up.weight` in a GGUF."""
    stem = name.removesuffix(".weight")
    if stem in GGUF_OUTER_NAMES:
        return f"{GGUF_OUTER_NAMES[stem]}.weight"
    _, layer, part = stem.split(".", 2)
    return f"blk.{layer}.{GGUF_NAMES[part]}.weight"


def gguf_order(name: str, array: np.ndarray, shape: Shape) -> np.ndarray:
    """Hugging Face rotates halves of a head, GGUF's llama neighbouring rows: interleave the rows of q and k."""
    if name.endswith("q_proj.weight"):
        heads = shape.heads
    elif name.endswith("k_proj.weight"):
        heads = shape.kv_heads
    else:
        return array
    half = array.shape[0] // heads // 2
    return array.reshape(heads, 2, half, array.shape[1]).swapaxes(1, 2).reshape(array.shape)


if __name__ == "__main__":
    main()
