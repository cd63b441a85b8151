#!/usr/bin/env python3
"""Score kvpress (PyPI) on samples that `longview eval --export` wrote: the same document ids, the same share kept,
the same questions asked afterwards, answered greedily by transformers in float32.

    longview eval ruler --lengths 4k --samples 20 --export samples.jsonl
    pip install kvpress 'transformers<5.3'
    python tools/kvpress_scores.py samples.jsonl --share 25 --out kvpress.jsonl
    longview eval ruler --lengths 4k --samples 20 --output ours \\
        --methods "$(python tools/kvpress_scores.py --share 25 --spell)"
    python tools/kvpress_scores.py --compare kvpress.jsonl ours/results.jsonl

kvpress compresses when the document was read, before any question is known, so that is how ours are asked to. A
line of the output is one sample under one method, spelled as ours is; a run that was stopped goes on. `--part K/N`
takes every N-th sample, `--device cuda` a GPU.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, Callable

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "models/needle"
EOS = 1


# Which heads keep everything, and what the others keep: their first and last tokens.
HEADS = MODEL / "heads.tsv"
DUO_SINKS, DUO_RECENT = 4, 60


def methods() -> dict[str, tuple[Callable[[], Any], bool]]:
    """Our text for a budget of `{share}`, how kvpress spells the same, and whether it needs the attention of all rows."""
    import kvpress

    snapkv = lambda: kvpress.SnapKVPress(window_size=32, kernel_size=5)
    chunks, duo = per_head_chunks(), heads_of_file()
    heads = HEADS.relative_to(ROOT)
    return {
        "streaming-llm(budget={share}, sinks=4, block=never, decode=never)": (lambda: kvpress.StreamingLLMPress(n_sink=4), False),
        "snapkv(budget={share}, window=32, kernel=5, pool=avg)": (snapkv, False),
        "knorm(budget={share}, sinks=0, recent=0)": (kvpress.KnormPress, False),
        "keydiff(budget={share}, recent=0, block=never, decode=never)": (kvpress.KeyDiffPress, False),
        # kvpress keeps the newest token in any case.
        "tova(budget={share}, recent=1, decode=never)": (kvpress.TOVAPress, False),
        "expected-attention(budget={share}, future=512, sinks=4)": (lambda: kvpress.ExpectedAttentionPress(n_sink=4), False),
        "h2o(budget={share}, recent-share=0, normalise=rows, decode=never)": (kvpress.ObservedAttentionPress, True),
        "snapkv(budget={share}, window=32, kernel=5, pool=avg, alloc=adakv(floor=0))": (
            lambda: kvpress.AdaKVPress(snapkv(), alpha_safeguard=0.0),
            False,
        ),
        "snapkv(budget={share}, window=16, kernel=5, pool=avg, alloc=pyramidkv(beta=2, protected=inside))": (
            lambda: kvpress.PyramidKVPress(window_size=16, kernel_size=5, beta=2),
            False,
        ),
        # kvpress repeats what follows the tokens that the chat template puts before a user's words, here three.
        "kvzip(budget={share}, part=2048, sinks=3, recent=0, alloc=threshold)": (lambda: kvpress.KVzipPress(n_sink=3), False),
        "snapkv(budget={share}, window=32, kernel=5, pool=avg, chunks=16)": (lambda: chunks(press=snapkv(), chunk_length=16), False),
        f'duo-attention(scores="{heads}", budget={{share}}, sinks={DUO_SINKS}, recent={DUO_RECENT}, block=never, decode=never)': (duo, False),
    }


def per_head_chunks() -> type:
    """kvpress takes the same runs of tokens for all heads of a layer; ours choose head by head, so its press is asked about each alone."""
    import kvpress
    import torch

    class PerHead(kvpress.ChunkKVPress):
        def compress(self, module, hidden_states, keys, values, attentions, kwargs):  # type: ignore[no-untyped-def]
            scores = self.press.score(module, hidden_states, keys, values, attentions, kwargs)
            kept = []
            for head in range(keys.shape[1]):
                alone = kvpress.ChunkKVPress(press=given(scores[:, head : head + 1]), chunk_length=self.chunk_length)
                alone.press.compression_ratio = self.press.compression_ratio
                at = slice(head, head + 1)
                kept.append(alone.compress(module, hidden_states, keys[:, at], values[:, at], attentions, kwargs))
            return tuple(torch.cat(side, dim=1) for side in zip(*kept))

    def given(scores: Any) -> Any:
        class Given(kvpress.RandomPress):
            def score(self, *_: Any) -> Any:
                return scores

        return Given()

    return PerHead


def heads_of_file() -> type:
    """kvpress' press for whole and streaming heads, with the file's scores and as many whole heads as the share has room for."""
    import kvpress
    import numpy as np

    scores = np.loadtxt(HEADS, dtype=float, delimiter="\t")

    class OfFile(kvpress.DuoAttentionPress):
        def of_tokens(self, tokens: int, share: float) -> None:
            little = DUO_SINKS + DUO_RECENT
            whole = int((share * tokens - little) / (tokens - little) * scores.size)
            self.head_compression_ratio = 1 - whole / scores.size

        @staticmethod
        def load_attention_pattern(_: Any) -> tuple[int, int, Any]:
            return DUO_SINKS, DUO_RECENT, scores

    return OfFile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", type=Path, nargs="?")
    parser.add_argument("--share", type=int, default=25, help="per cent of the document's pairs that stay")
    parser.add_argument("--only", nargs="+", help="methods whose text has this in it")
    parser.add_argument("--part", default="1/1")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--spell", action="store_true", help="print our texts of the methods")
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("KVPRESS", "OURS"))
    arguments = parser.parse_args()
    if arguments.compare:
        compare(*arguments.compare)
        return
    chosen = {
        text.format(share=f"{arguments.share}%"): press
        for text, press in methods().items()
        if not arguments.only or any(name in text for name in arguments.only)
    }
    if arguments.spell:
        print(",".join(chosen))
        return
    if arguments.samples is None or arguments.out is None:
        parser.error("samples and --out are needed")
    score(arguments, chosen)


def score(arguments: argparse.Namespace, chosen: dict[str, tuple[Callable[[], Any], bool]]) -> None:
    """Asks every sample of the part under every method, and writes a line for each."""
    import torch
    import transformers

    index, of = (int(number) for number in arguments.part.split("/"))
    lines = arguments.samples.read_text(encoding="utf-8").splitlines()
    samples = [sample for sample in map(json.loads, lines) if sample["sample"] % of == index - 1]
    samples.sort(key=lambda sample: sample["sample"])
    done = {tuple(one[:3]) for one in read(arguments.out)} if arguments.out.exists() else set()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(MODEL / "tokenizer.json"))
    models: dict[bool, Any] = {}

    def model(eager: bool) -> Any:
        if eager not in models:
            kind = "eager" if eager else "sdpa"
            made = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, attn_implementation=kind)
            models[eager] = made.to(arguments.device).eval()
        return models[eager]

    with arguments.out.open("a", encoding="utf-8") as out, torch.no_grad():
        for at, sample in enumerate(samples):
            for text, (press, eager) in ({"dense": (None, False)} | chosen).items():
                if (sample["task"], sample["sample"], text) in done:
                    continue
                made = press() if press else None
                if hasattr(made, "of_tokens"):
                    made.of_tokens(len(sample["document"]), arguments.share / 100)
                elif made:
                    of_score = made.press if hasattr(made, "press") else made
                    of_score.compression_ratio = 1 - arguments.share / 100
                right, answers = ask(model(eager), made, sample, tokenizer)
                line = {"task": sample["task"], "sample": sample["sample"], "setup": text, "score": right, "answers": answers}
                out.write(json.dumps(line) + "\n")
            out.flush()
            print(f"{at + 1} of {len(samples)} samples", file=sys.stderr, flush=True)


def ask(model: Any, press: Any, sample: dict[str, Any], tokenizer: Any) -> tuple[float, list[str]]:
    """The score, 0 to 100, of what is answered to a sample's questions, and the answers."""
    import contextlib

    import torch
    import transformers

    cache = transformers.DynamicCache()
    document = torch.tensor([sample["document"]], device=model.device)
    with press(model) if press else contextlib.nullcontext():
        model.model(input_ids=document, past_key_values=cache)
    held = [(layer.keys, layer.values) for layer in cache.layers]
    # Where layers hold different numbers of tokens no mask fits them all, and one row needs none.
    at_once = len({keys.shape[2] for keys, _ in held}) == 1
    found, answers = [], []
    for question in sample["questions"]:
        for layer, (keys, values) in zip(cache.layers, held):
            # Tokens are appended to copies, and fake keys written into them.
            layer.keys, layer.values = keys.clone(), values.clone()
        ids, rows, first = [], question["tokens"], len(sample["document"])
        if not at_once:
            for token in rows[:-1]:
                advance(model, cache, [token], first)
                first += 1
            rows = rows[-1:]
        while len(ids) < question["max_tokens"]:
            logits = advance(model, cache, rows, first)
            first += len(rows)
            rows = [int(logits.argmax())]
            ids += rows
            if rows[0] == EOS:
                break
        answer = tokenizer.decode(ids)
        hits = [holds(answer, wanted) for wanted in question["answers"]]
        found.append(float(any(hits)) if question["scorer"] == "any" else sum(hits) / len(hits))
        answers.append(answer)
    return 100 * sum(found) / len(found), answers


def advance(model: Any, cache: Any, rows: list[int], first: int) -> Any:
    """Reads `rows`, the first at position `first`; the logits behind the last."""
    import torch

    positions = torch.arange(first, first + len(rows), device=model.device)[None]
    tokens = torch.tensor([rows], device=model.device)
    return model(input_ids=tokens, past_key_values=cache, position_ids=positions, logits_to_keep=1).logits[0, -1]


def holds(answer: str, wanted: str) -> bool:
    """Whether the answer has it as whole words."""
    plain = lambda text: " ".join(text.split()).lower()
    return re.search(rf"(?<![^\W_]){re.escape(plain(wanted))}(?![^\W_])", plain(answer)) is not None


def read(path: Path) -> list[tuple[str, int, str, float]]:
    """Task, sample, setup and score of every whole line of results, ours or kvpress'."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        one = json.loads(line) if line.endswith("\n") else {}
        if "setup" in one and one.get("question", "unseen") == "unseen":
            found.append((one["task"], one["sample"], one["setup"].removeprefix("keep="), one["score"]))
    return found


def compare(theirs: Path, ours: Path) -> None:
    """A Markdown table of both on the samples that both have."""
    left, right = read(theirs), read(ours)
    spelled = {setup: same_method(setup, {one[2] for one in right}) for setup in {one[2] for one in left}}
    scores = {one[:3]: one[3] for one in right}
    both, missing = defaultdict(list), set()
    for task, sample, setup, score in left:
        other = scores.get((task, sample, spelled[setup] or ""))
        if other is None:
            missing.add(setup)
        else:
            both[setup].append((score, other))
    print("| method | samples | kvpress | Longview | difference |\n|---|---|---|---|---|")
    for setup, pairs in sorted(both.items()):
        mean = [sum(side) / len(pairs) for side in zip(*pairs)]
        print(f"| `{setup}` | {len(pairs)} | {mean[0]:.1f} | {mean[1]:.1f} | {mean[1] - mean[0]:+.1f} |")
    if missing:
        print(f"\nNot, or not of every sample, in {ours}: {', '.join(sorted(missing))}")


def same_method(text: str, canonical: set[str]) -> str | None:
    """The canonical text that has every parameter of `text`, equal shares unless it names a rule."""
    name, wanted = taken_apart(text)
    if "(" in text and not any(parameter.startswith("alloc=") for parameter in wanted):
        wanted |= {"alloc=uniform"}
    for other in canonical:
        theirs, parameters = taken_apart(other)
        # What has no rule for budgets has equal shares.
        if not any(parameter.startswith("alloc=") for parameter in parameters):
            parameters |= {"alloc=uniform"}
        if theirs == name and wanted <= parameters:
            return other
    return None


def taken_apart(text: str) -> tuple[str, set[str]]:
    """A method's name and its parameters, each as written."""
    name, _, inside = text.removesuffix(")").partition("(")
    parameters, depth, begin = set(), 0, 0
    for at, letter in enumerate(inside + ","):
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            parameters.add(inside[begin:at].strip())
            begin = at + 1
    return name, parameters - {""}


if __name__ == "__main__":
    main()
