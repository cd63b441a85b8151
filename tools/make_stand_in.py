#!/usr/bin/env python3
"""Write the stand-in of the reference model: its tokenizer and its shape of keys and values over small random matrices.

    python tools/make_stand_in.py        # models/stand-in; a second

Tests that need a model, and not one that knows anything, read their texts with it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

MODELS = Path(__file__).resolve().parent.parent / "models"
HIDDEN, FEED_FORWARD, HEADS = 32, 64, 4
LINKED = ("generation_config.json", "tokenizer.json", "tokenizer_config.json")


def main() -> None:
    config = json.loads((MODELS / "needle" / "config.json").read_text())
    config |= {"hidden_size": HIDDEN, "intermediate_size": FEED_FORWARD, "num_attention_heads": HEADS}
    out = MODELS / "stand-in"
    out.mkdir(exist_ok=True)
    for name in LINKED:
        (out / name).unlink(missing_ok=True)
        (out / name).symlink_to(Path("..") / "needle" / name)
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_file(tensors(config, np.random.default_rng(0)), out / "model.safetensors")


def tensors(config: dict, random: np.random.Generator) -> dict[str, np.ndarray]:
    """Matrices that keep the size of what they multiply; queries and keys twice as large, so that attention prefers something."""
    queries, pairs = (config[of] * config["head_dim"] for of in ("num_attention_heads", "num_key_value_heads"))
    vocabulary = config["vocab_size"]

    def matrix(rows: int, columns: int, scale: float = 1.0) -> np.ndarray:
        return (random.standard_normal((rows, columns)) * scale / columns**0.5).astype(np.float16)

    def norm() -> np.ndarray:
        return random.uniform(0.75, 1.25, HIDDEN).astype(np.float16)

    made = {
        "model.embed_tokens.weight": matrix(vocabulary, HIDDEN, HIDDEN**0.5),
        "model.norm.weight": norm(),
        "lm_head.weight": matrix(vocabulary, HIDDEN),
    }
    for layer in range(config["num_hidden_layers"]):
        made |= {
            f"model.layers.{layer}.{name}.weight": value
            for name, value in {
                "input_layernorm": norm(),
                "self_attn.q_proj": matrix(queries, HIDDEN, 2.0),
                "self_attn.k_proj": matrix(pairs, HIDDEN, 2.0),
                "self_attn.v_proj": matrix(pairs, HIDDEN),
                "self_attn.o_proj": matrix(HIDDEN, queries),
                "post_attention_layernorm": norm(),
                "mlp.gate_proj": matrix(FEED_FORWARD, HIDDEN),
                "mlp.up_proj": matrix(FEED_FORWARD, HIDDEN),
                "mlp.down_proj": matrix(HIDDEN, FEED_FORWARD),
            }.items()
        }
    return made


if __name__ == "__main__":
    main()
