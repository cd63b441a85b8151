"""Start from an n-gram induction circuit instead of noise.

The residual stream is divided: dimensions 0 to 126 hold the token, 127 a constant, 128 to 255 what
stood one to four tokens back (32 each), 256 to 382 the token that the model wants to copy next.

- Layer 0, heads 0 to 3: constant queries whose RoPE phase points one to four tokens back; they
  write a projection of that token.
- Layer 1, heads 0 and 4: compare the last four tokens with the four before every position, on the
  RoPE pairs that turn slowly enough to hold over the whole context, and copy the token there.
- The output matrix reads the copied token beside its own noise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model import Attention, NeedleModel, Shape, rope_frequencies

TOKEN_SIZE = 127
CONSTANT = 127
PREVIOUS = 128
COPIED = 256
MATCHED_TOKENS = 4
SKETCH_SIZE = 32
# Pairs that turn fast point at one distance; pairs that turn slowly compare content at any distance.
FAST_PAIRS = range(10)
SLOW_PAIRS = range(14, 32)
SLOW_DIMENSIONS_A_TOKEN = 9
SHARPNESS = 2.7


@torch.no_grad()
def install_induction_circuit(model: NeedleModel) -> None:
    """Overwrite parts of the noise in `model` with the circuit. Random choices come from torch's generator."""
    shape = model.shape
    embedding = model.embed_tokens.weight
    embedding.zero_()
    embedding[:, :TOKEN_SIZE] = torch.randn(shape.vocabulary, TOKEN_SIZE) * 0.3
    embedding[:, CONSTANT] = 3.0
    sketch = torch.linalg.qr(torch.randn(TOKEN_SIZE, SKETCH_SIZE))[0].T  # [sketch][token]
    look_back(model.layers[0].self_attn, shape, sketch)
    match_and_copy(model.layers[1].self_attn, shape, sketch)
    model.lm_head.weight.mul_(0.3)
    model.lm_head.weight[:, COPIED : COPIED + TOKEN_SIZE] += embedding[:, :TOKEN_SIZE] * 0.4


def look_back(attention: Attention, shape: Shape, sketch: Tensor) -> None:
    """Heads 0 to 3 attend one to four tokens back and write a sketch of what they see."""
    size, half = shape.head_size, shape.head_size // 2
    frequencies = rope_frequencies(shape).float()
    query, key, value, output = weights(attention)
    key[:size] = 0
    value[:size] = 0
    output[:, : MATCHED_TOKENS * size] = 0
    for pair in FAST_PAIRS:
        key[pair, CONSTANT] = 1.0
    value[:SKETCH_SIZE, :TOKEN_SIZE] = sketch
    for head in range(MATCHED_TOKENS):
        first = head * size
        query[first : first + size] = 0
        for pair in FAST_PAIRS:
            angle = frequencies[pair] * (head + 1)
            query[first + pair, CONSTANT] = torch.cos(angle)
            query[first + half + pair, CONSTANT] = -torch.sin(angle)
        for row in range(SKETCH_SIZE):
            output[PREVIOUS + SKETCH_SIZE * head + row, first + row] = 0.25


def match_and_copy(attention: Attention, shape: Shape, sketch: Tensor) -> None:
    """One head of each KV group matches four tokens and copies what followed; each copies half of the token."""
    size, half = shape.head_size, shape.head_size // 2
    slow = list(SLOW_PAIRS) + [half + pair for pair in SLOW_PAIRS]
    query, key, value, output = weights(attention)
    for group in range(shape.kv_heads):
        queries = group * (shape.heads // shape.kv_heads) * size
        keys = group * size
        query[queries : queries + size] = 0
        key[keys : keys + size] = 0
        value[keys : keys + size] = 0
        output[:, queries : queries + size] = 0
        for back in range(MATCHED_TOKENS):
            directions = torch.randn(SLOW_DIMENSIONS_A_TOKEN, SKETCH_SIZE)
            directions /= directions.norm(dim=1, keepdim=True)
            for row, direction in enumerate(directions):
                dimension = slow[SLOW_DIMENSIONS_A_TOKEN * back + row]
                key[keys + dimension, previous(back)] = direction * SHARPNESS
                # The key's token `back + 1` steps ago is the query's token `back` steps ago.
                if back == 0:
                    query[queries + dimension, :TOKEN_SIZE] = (direction @ sketch) * SHARPNESS
                else:
                    query[queries + dimension, previous(back - 1)] = direction * SHARPNESS
        for row in range(size):
            token_dimension = group * size + row
            if token_dimension < TOKEN_SIZE:
                value[keys + row, token_dimension] = 1.0
                output[COPIED + token_dimension, queries + row] = 0.3


def previous(back: int) -> slice:
    """Residual dimensions of the token `back + 1` steps ago."""
    return slice(PREVIOUS + SKETCH_SIZE * back, PREVIOUS + SKETCH_SIZE * (back + 1))


def weights(attention: Attention) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The matrices of queries, keys, values and output."""
    return (
        attention.q_proj.weight,
        attention.k_proj.weight,
        attention.v_proj.weight,
        attention.o_proj.weight,
    )
