#!/usr/bin/env python3
"""Write what kvpress (PyPI) keeps of a prompt on the reference model, for the comparison in
`crates/longview-methods/tests/kvpress.rs`.

Each press scores every layer in one float32 forward pass of transformers over whole keys, as kvpress
itself does, and its highest scores are taken. The file holds the prompt's ids and, for each press and
share kept, our method text and the positions kept, `[layers][KV heads]`.

    pip install kvpress
    python tools/kvpress_fixtures.py
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import kvpress
import torch
import transformers
from kvpress.utils import compute_n_kept

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "models/needle"
TEXT = ROOT / "examples/sherlock_holmes.txt"
FIXTURE = ROOT / "crates/longview-methods/tests/fixtures/kvpress.json"

PROMPT_TOKENS = 900
SHARES = (0.5, 0.1)
FACT = " The special magic number for amber falcon is 48213."
QUESTION = "<|user|> What is the special magic number for amber falcon?<|assistant|>"

# Our text for a budget of `{pairs}` pairs a head, how kvpress spells the same, and whether it needs
# the attention of all rows.
METHODS: list[tuple[str, Any, bool]] = [
    ("streaming-llm(budget={pairs}, sinks=4, block=never)", lambda: kvpress.StreamingLLMPress(n_sink=4), False),
    ("snapkv(budget={pairs}, window=32, kernel=5, pool=avg)", lambda: kvpress.SnapKVPress(window_size=32, kernel_size=5), False),
    ("knorm(budget={pairs}, sinks=0, recent=0)", kvpress.KnormPress, False),
    ("keydiff(budget={pairs}, recent=0, block=never)", kvpress.KeyDiffPress, False),
    # kvpress keeps the newest token in any case.
    ("tova(budget={pairs}, recent=1)", kvpress.TOVAPress, False),
    ("expected-attention(budget={pairs}, future=512, sinks=4)", lambda: kvpress.ExpectedAttentionPress(n_sink=4), False),
    ("h2o(budget={pairs}, recent-share=0, normalise=rows)", kvpress.ObservedAttentionPress, True),
    # With no pair certain for each head, kvpress' rule and the paper's are the same.
    ("snapkv(budget={pairs}, window=32, kernel=5, alloc=adakv(floor=0))", lambda: kvpress.SnapKVPress(window_size=32, kernel_size=5), False),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FIXTURE)
    out = parser.parse_args().out
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(MODEL / "tokenizer.json"))
    ids = prompt(tokenizer)
    cases = []
    for text, press, needs_attention in METHODS:
        for share in SHARES:
            # As many as kvpress keeps, its rounding included.
            pairs = compute_n_kept(len(ids), 1 - share)
            scores = scores_of(press(), ids, "eager" if needs_attention else "sdpa", 1 - share)
            kept = shared(scores, pairs) if "adakv" in text else [[top(head, pairs) for head in layer] for layer in scores]
            cases.append({"method": text.format(pairs=pairs), "kept": kept})
    out.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    versions = f"kvpress {version('kvpress')}, transformers {transformers.__version__}, torch {torch.__version__}"
    out.write_text(f'{{"made_with": "{versions}",\n"prompt": {json.dumps(ids, separators=(",", ":"))},\n"cases": [\n{lines}\n]}}\n')
    print(f"{out}: {len(cases)} cases, {out.stat().st_size} bytes")


def prompt(tokenizer: transformers.PreTrainedTokenizerFast) -> list[int]:
    """A page of a book with a fact in its middle, and the question."""
    page = tokenizer.encode(TEXT.read_text(encoding="utf-8")[20_000:30_000], add_special_tokens=False)
    fact = tokenizer.encode(FACT, add_special_tokens=False)
    question = tokenizer.encode(QUESTION, add_special_tokens=False)
    room = PROMPT_TOKENS - len(fact) - len(question) - 1
    half = room // 2
    return [0] + page[:half] + fact + page[half:room] + question


def scores_of(press: kvpress.ScorerPress, ids: list[int], attention: str, dropped: float) -> list[torch.Tensor]:
    """The scores of every layer, `[layers][KV heads][tokens]`."""
    model = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, attn_implementation=attention).eval()
    press.compression_ratio = dropped
    found: dict[int, torch.Tensor] = {}
    cache = transformers.DynamicCache()

    def hook(module: torch.nn.Module, _: Any, kwargs: dict[str, Any], output: Any) -> None:
        layer = cache.layers[module.layer_idx]
        found[module.layer_idx] = press.score(module, kwargs["hidden_states"], layer.keys, layer.values, output[1], kwargs)[0]

    for layer in model.model.layers:
        layer.self_attn.rotary_emb = model.model.rotary_emb
        layer.self_attn.register_forward_hook(hook, with_kwargs=True)
    with torch.no_grad():
        model(torch.tensor([ids]), past_key_values=cache, use_cache=True, output_attentions=attention == "eager")
    return [found[index] for index in sorted(found)]


def top(scores: torch.Tensor, pairs: int) -> list[int]:
    return sorted(scores.topk(pairs).indices.tolist())


def shared(layers: list[torch.Tensor], pairs: int) -> list[list[list[int]]]:
    """The highest scores of all heads of a layer together."""
    kept = []
    for scores in layers:
        heads, tokens = scores.shape
        best = scores.flatten().topk(heads * pairs).indices.tolist()
        kept.append([sorted(at % tokens for at in best if at // tokens == head) for head in range(heads)])
    return kept


def version(package: str) -> str:
    from importlib.metadata import version as of

    return of(package)


if __name__ == "__main__":
    main()
