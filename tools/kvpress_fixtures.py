#!/usr/bin/env python3
"""Write what kvpress (PyPI) keeps of a prompt on the reference model, for the comparison in
`crates/longview-methods/tests/kvpress.rs`.

Each press scores every layer in one float32 forward pass of transformers over whole keys, as kvpress
itself does, and its highest scores are taken; KVzip reads the prompt again as its press does, with the keys
that the press would mask. The file holds the prompt's ids and, for each press and share kept, our method
text and the positions kept, `[layers][KV heads]`.

    pip install kvpress
    python tools/kvpress_fixtures.py
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kvpress
import numpy as np
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
    # A gentle pyramid, whose last layer has room for the window also where a tenth is kept.
    (
        "snapkv(budget={pairs}, window=16, kernel=5, alloc=pyramidkv(beta=2, protected=inside))",
        lambda: kvpress.PyramidKVPress(window_size=16, kernel_size=5, beta=2),
        False,
    ),
]

# kvpress repeats what follows the tokens that the chat template puts before a user's words, here three; ours
# what follows the first tokens that always stay.
SINKS = 3
KVZIP = f"kvzip(budget={{pairs}}, part=2k, sinks={SINKS}, recent=0, alloc=threshold)"

# kvpress takes the same runs for all heads of a layer; ours choose head by head, so its press is asked about one head
# at a time. The window begins where a run does: kvpress counts what always stays into the mean of its run.
RUN = 16
CHUNKS = f"snapkv(budget={{pairs}}, window=20, kernel=5, pool=avg, chunks={RUN})"

# Half of the heads, and three quarters, keep their first and last tokens only. The test runs in its crate's folder.
HEADS = MODEL / "heads.tsv"
DUO_SINKS, DUO_RECENT = 4, 60
DUO = f'duo-attention(scores="../../models/needle/{HEADS.name}", budget={{pairs}}, sinks={DUO_SINKS}, recent={DUO_RECENT})'
DUO_SHARES = (0.5, 0.75)


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
            counts = [pairs] * len(scores)
            if "pyramidkv" in text:
                counts = pyramid(press(), len(ids), len(scores), 1 - share)
                # It rounds each layer for itself.
                pairs = round(sum(counts) / len(counts))
            if "adakv" in text:
                kept = shared(scores, pairs)
            else:
                kept = [[top(head, count) for head in layer] for layer, count in zip(scores, counts)]
            cases.append({"method": text.format(pairs=pairs), "kept": kept})
    for share in SHARES:
        pairs = compute_n_kept(len(ids), 1 - share)
        cases.append({"method": KVZIP.format(pairs=pairs), "kept": repeated(ids, pairs, 1 - share)})
    for share in SHARES:
        scores = scores_of(kvpress.SnapKVPress(window_size=20, kernel_size=5), ids, "sdpa", 1 - share)
        kept = [[runs(head, 1 - share) for head in layer] for layer in scores]
        cases.append({"method": CHUNKS.format(pairs=len(kept[0][0])), "kept": kept})
    for share in DUO_SHARES:
        kept = by_heads(len(ids), share)
        counts = [len(head) for layer in kept for head in layer]
        cases.append({"method": DUO.format(pairs=sum(counts) // len(counts)), "kept": kept})
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


def pyramid(press: kvpress.PyramidKVPress, tokens: int, layers: int, dropped: float) -> list[int]:
    """Pairs that each layer keeps."""
    press.compression_ratio = dropped
    config = SimpleNamespace(num_hidden_layers=layers)
    return [press.get_layer_budget(SimpleNamespace(config=config, layer_idx=layer), tokens) for layer in range(layers)]


def repeated(ids: list[int], pairs: int, dropped: float) -> list[list[list[int]]]:
    """The highest scores of all layers and heads together that repeating the prompt gives, first tokens first."""
    model = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, attn_implementation="sdpa").eval()
    press = kvpress.KVzipPress(compression_ratio=dropped, n_sink=SINKS)
    found: dict[str, torch.Tensor] = {}
    # What it would mask, taken before it does.
    press.compress_post = lambda _: found.update(scores=press.score_val.clone())
    with torch.no_grad(), press(model):
        model(torch.tensor([ids]), past_key_values=transformers.DynamicCache(), use_cache=True)
    scores = found["scores"][:, 0]
    layers, heads, tokens = scores.shape
    scores[:, :, : press.n_sink] = float("inf")
    best = scores.flatten().topk(pairs * layers * heads).indices.tolist()
    kept: list[list[list[int]]] = [[[] for _ in range(heads)] for _ in range(layers)]
    for at in sorted(best):
        kept[at // tokens // heads][at // tokens % heads].append(at % tokens)
    return kept


def runs(scores: torch.Tensor, dropped: float) -> list[int]:
    """What the runs of one head with these scores keep."""

    class Known(kvpress.RandomPress):
        def score(self, *_: Any) -> torch.Tensor:
            return scores[None, None]

    press = kvpress.ChunkKVPress(press=Known(compression_ratio=dropped), chunk_length=RUN)
    numbers = torch.arange(len(scores))[None, None, :, None]
    kept, _ = press.compress(SimpleNamespace(head_dim=1), None, numbers, numbers, None, {})
    return kept.flatten().tolist()


def by_heads(tokens: int, share: float) -> list[list[list[int]]]:
    """What stays where this share of the heads keep their first and last tokens only."""
    scores = np.loadtxt(HEADS, dtype=float, delimiter="\t")

    class Known(kvpress.DuoAttentionPress):
        @staticmethod
        def load_attention_pattern(_: Any) -> tuple[int, int, np.ndarray]:
            return DUO_SINKS, DUO_RECENT, scores

    press = Known(head_compression_ratio=share)
    press.post_init_from_model(SimpleNamespace(device="cpu"))
    kept = []
    for layer, heads in enumerate(scores):
        keys = torch.zeros(1, len(heads), tokens, 1)
        module = SimpleNamespace(layer_idx=layer, config=SimpleNamespace(_attn_implementation="sdpa"))
        press.compress(module, None, keys, keys, None, {})
        _, masked_heads, masked = module.masked_key_indices
        gone = [set(masked[masked_heads == head].tolist()) for head in range(len(heads))]
        kept.append([[token for token in range(tokens) if token not in of_head] for of_head in gone])
    return kept


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
