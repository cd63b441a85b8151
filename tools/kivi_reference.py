#!/usr/bin/env python3
"""Score KIVI, and mustafar, as published, on the reference model: a float32 forward pass in torch whose keys and
values are replaced by what the codes stand for.

    longview eval niah-single-1,niah-multikey-1 --lengths 4k --samples 40 --export samples.jsonl
    python tools/kivi_reference.py samples.jsonl --variants dense 'kivi2 after' 'kivi2 while' --out scores.jsonl
    python tools/kivi_reference.py --table scores.jsonl

`after` is the published way: the prompt is read in full precision and quantised when it has been read. `while` is
Longview's: a row of the prompt, too, reads tokens that are no longer among the latest from their codes. `kivi2 k`
and `kivi2 v` quantise keys or values alone. A line is written for every sample, with the mean relative error of keys
and values of each layer, and what is there already is not asked again. The table has the differences from `dense` on
the same samples, with their 95 % interval.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "models/needle"
BLOCK = 64
EOS = 1


@dataclass
class Variant:
    """How keys and values are held."""

    name: str
    kind: str = "dense"
    bits: int = 16
    group: int = 32
    residual: int = 128
    while_reading: bool = False
    keys: bool = True
    values: bool = True
    sparsity: float = 0.5
    # Layers that keep full precision.
    exempt: set[int] = field(default_factory=set)

    @staticmethod
    def parse(text: str) -> Variant:
        made = Variant(text)
        for word in text.split():
            if match := re.fullmatch(r"kivi(\d)", word):
                made.kind, made.bits = "kivi", int(match[1])
            elif match := re.fullmatch(r"mustafar(\d+)", word):
                made.kind, made.sparsity, made.residual = "mustafar", int(match[1]) / 100, 32
            elif word in ("after", "while"):
                made.while_reading = word == "while"
            elif word == "k":
                made.values = False
            elif word == "v":
                made.keys = False
            elif match := re.fullmatch(r"(group|residual)=(\d+)", word):
                setattr(made, match[1], int(match[2]))
            elif match := re.fullmatch(r"exempt=([\d,]+)", word):
                made.exempt = {int(layer) for layer in match[1].split(",")}
            elif word != "dense":
                raise SystemExit(f"{text!r}: what is {word!r}?")
        return made

    def held_keys(self, k: torch.Tensor) -> torch.Tensor:
        """`[heads][tokens][channels]`, whole groups of tokens."""
        if not self.keys:
            return k
        if self.kind == "mustafar":
            return pruned(k, self.sparsity)
        heads, tokens, channels = k.shape
        groups = k.reshape(heads, tokens // self.group, self.group, channels)
        return rounded(groups, 2, self.bits).reshape(k.shape)

    def held_values(self, v: torch.Tensor) -> torch.Tensor:
        if not self.values:
            return v
        if self.kind == "mustafar":
            return pruned(v, self.sparsity)
        heads, tokens, channels = v.shape
        return rounded(v.reshape(heads, tokens, channels // 32, 32), 3, self.bits).reshape(v.shape)


def rounded(x: torch.Tensor, axis: int, bits: int) -> torch.Tensor:
    """What codes counted from the smallest number of a group stand for."""
    low, high = x.amin(axis, keepdim=True), x.amax(axis, keepdim=True)
    scale = (high - low) / (2**bits - 1)
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    codes = torch.round((x - low) / scale).clamp(0, 2**bits - 1)
    return codes * scale.half().float() + low.half().float()


def pruned(x: torch.Tensor, sparsity: float) -> torch.Tensor:
    """Of every token the numbers of largest magnitude."""
    kept = x.shape[-1] - int(x.shape[-1] * sparsity)
    top = x.abs().topk(kept, dim=-1).indices
    return torch.zeros_like(x).scatter(-1, top, x.gather(-1, top))


class Model:
    """The reference model, written out."""

    def __init__(self) -> None:
        self.config = json.loads((MODEL / "config.json").read_text())
        device = torch.get_default_device()
        stored = load_file(MODEL / "model.safetensors")
        self.weights = {name: tensor.to(device, torch.float32) for name, tensor in stored.items()}
        self.heads, self.kv_heads, self.dim = 8, 2, 64
        inverse = self.config["rope_theta"] ** (-torch.arange(0, self.dim, 2, dtype=torch.float64) / self.dim)
        self.inverse = inverse

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.config["rms_norm_eps"]) * self.weights[name]

    def rotated(self, x: torch.Tensor, first: int) -> torch.Tensor:
        """`[heads][tokens][dim]`, tokens from position `first` on."""
        angles = torch.outer(torch.arange(first, first + x.shape[1], dtype=torch.float64), self.inverse)
        cos, sin = angles.cos().float().repeat(1, 2), angles.sin().float().repeat(1, 2)
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat((-b, a), -1) * sin

    def read(self, cache: "Cache", ids: list[int], prompt: bool) -> torch.Tensor:
        """Logits of the last token."""
        w, first = self.weights, cache.tokens
        x = w["model.embed_tokens.weight"][torch.tensor(ids)]
        for layer in range(self.config["num_hidden_layers"]):
            name = f"model.layers.{layer}."
            normed = self.norm(x, name + "input_layernorm.weight")

            def heads(part: str, count: int) -> torch.Tensor:
                return (normed @ w[f"{name}self_attn.{part}_proj.weight"].T).reshape(len(ids), count, self.dim).transpose(0, 1)

            q = self.rotated(heads("q", self.heads), first)
            cache.add(layer, self.rotated(heads("k", self.kv_heads), first), heads("v", self.kv_heads))
            out = torch.empty(self.heads, len(ids), self.dim)
            for head in range(self.heads):
                out[head] = cache.attend(layer, head * self.kv_heads // self.heads, q[head], first, prompt)
            x = x + out.transpose(0, 1).reshape(len(ids), -1) @ w[name + "self_attn.o_proj.weight"].T
            normed = self.norm(x, name + "post_attention_layernorm.weight")
            gate = torch.nn.functional.silu(normed @ w[name + "mlp.gate_proj.weight"].T)
            x = x + (gate * (normed @ w[name + "mlp.up_proj.weight"].T)) @ w[name + "mlp.down_proj.weight"].T
        cache.tokens += len(ids)
        return self.norm(x[-1], "model.norm.weight") @ w["lm_head.weight"].T


class Cache:
    """Keys and values as computed, and as a variant holds them."""

    def __init__(self, variant: Variant, layers: int) -> None:
        self.variant, self.tokens = variant, 0
        self.k: list[torch.Tensor | None] = [None] * layers
        self.v: list[torch.Tensor | None] = [None] * layers
        self.held: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * layers

    def fork(self, variant: Variant | None = None) -> Cache:
        """The same, held as `variant` says where one is given."""
        fork = Cache(variant or self.variant, len(self.k))
        fork.tokens = self.tokens
        fork.k, fork.v, fork.held = list(self.k), list(self.v), list(self.held)
        if variant is not None:
            for layer in range(len(fork.k)):
                fork.hold(layer)
        return fork

    def add(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        before = self.k[layer]
        self.k[layer] = k if before is None else torch.cat((before, k), 1)
        self.v[layer] = v if before is None else torch.cat((self.v[layer], v), 1)
        self.hold(layer)

    def hold(self, layer: int) -> None:
        """Puts blocks that are full into the form of the variant."""
        variant = self.variant
        if variant.kind == "dense" or layer in variant.exempt:
            return
        held = self.held[layer]
        done = 0 if held is None else held[0].shape[1]
        end = self.k[layer].shape[1] // BLOCK * BLOCK
        if end > done:
            new = variant.held_keys(self.k[layer][:, done:end]), variant.held_values(self.v[layer][:, done:end])
            self.held[layer] = new if held is None else tuple(torch.cat(pair, 1) for pair in zip(held, new))

    def attend(self, layer: int, head: int, q: torch.Tensor, first: int, prompt: bool) -> torch.Tensor:
        """Attention of rows `q [rows][channels]` from position `first` on."""
        k, v = self.k[layer][head], self.v[layer][head]
        rows, scale = torch.arange(first, first + len(q)), q.shape[-1] ** -0.5
        future = torch.arange(len(k))[None, :] > rows[:, None]
        logits = (q @ k.T * scale).masked_fill(future, float("-inf"))
        held = self.held[layer]
        if held is None or (prompt and not self.variant.while_reading):
            return torch.softmax(logits, -1) @ v
        # The first token that a row reads as it was written.
        edge = (rows + 1 - self.variant.residual).clamp(min=0) // BLOCK * BLOCK
        held_k, held_v = held[0][head], held[1][head]
        old = torch.arange(len(held_k))[None, :] < edge[:, None]
        logits[:, : len(held_k)] = torch.where(old, (q @ held_k.T * scale), logits[:, : len(held_k)])
        weights = torch.softmax(logits, -1)
        of_held = torch.where(old, weights[:, : len(held_k)], torch.zeros(()))
        weights[:, : len(held_k)] -= of_held
        return weights @ v + of_held @ held_v

    def errors(self) -> list[tuple[float, float]]:
        """Of each layer the root of the mean square error of keys and of values, as a share of theirs."""
        found = []
        for layer, held in enumerate(self.held):
            if held is None:
                continue
            end = held[0].shape[1]
            share = lambda a, b: ((a - b).pow(2).mean() / b.pow(2).mean()).sqrt().item()
            found.append((share(held[0], self.k[layer][:, :end]), share(held[1], self.v[layer][:, :end])))
        return found


def holds(answer: str, wanted: str) -> bool:
    plain = lambda text: " ".join(text.split()).lower()
    return re.search(rf"(?<![^\W_]){re.escape(plain(wanted))}(?![^\W_])", plain(answer)) is not None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", type=Path, nargs="?")
    parser.add_argument("--variants", nargs="+", default=["dense", "kivi4 after", "kivi4 while", "kivi2 after", "kivi2 while"])
    parser.add_argument("--device", default="cpu", help="such as cuda")
    parser.add_argument("--part", default="1/1", help="every n-th sample")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path, nargs="+")
    arguments = parser.parse_args()
    if arguments.table:
        table([json.loads(line) for path in arguments.table for line in path.read_text().splitlines()])
    elif arguments.samples and arguments.out:
        score(arguments)
    else:
        parser.error("samples and --out are needed, or --table")


def score(arguments: argparse.Namespace) -> None:
    """Asks every sample of the part of every variant."""
    torch.set_default_device(arguments.device)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(MODEL / "tokenizer.json"))
    model = Model()
    layers = model.config["num_hidden_layers"]
    index, of = (int(number) for number in arguments.part.split("/"))
    samples = [json.loads(line) for line in arguments.samples.read_text().splitlines()]
    samples = sorted((one for one in samples if one["sample"] % of == index - 1), key=lambda one: one["sample"])
    there = arguments.out.read_text().splitlines() if arguments.out.exists() else []
    done = {(one["task"], one["sample"], one["variant"]) for one in map(json.loads, there)}
    with arguments.out.open("a") as out, torch.no_grad():
        for sample in samples:
            whole = None
            for variant in map(Variant.parse, arguments.variants):
                if (sample["task"], sample["sample"], variant.name) in done:
                    continue
                if variant.while_reading:
                    cache = Cache(variant, layers)
                    model.read(cache, sample["document"], prompt=True)
                else:
                    if whole is None:
                        whole = Cache(Variant("dense"), layers)
                        model.read(whole, sample["document"], prompt=True)
                    cache = whole.fork(variant)
                line = {"task": sample["task"], "sample": sample["sample"], "variant": variant.name}
                line |= {"score": ask(model, cache, sample, tokenizer), "errors": cache.errors()}
                out.write(json.dumps(line) + "\n")
            out.flush()


def table(lines: list[dict]) -> None:
    """Prints scores of each task, and what each variant is from the dense path on the same samples."""
    scores: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for one in lines:
        scores[one["task"]][one["variant"]][one["sample"]] = one["score"]
    for task, variants in scores.items():
        dense = variants.get("dense", {})
        for variant, of in variants.items():
            text = f"{task}: {variant} {sum(of.values()) / len(of):.1f} ({len(of)})"
            off = [of[sample] - dense[sample] for sample in of if sample in dense]
            if variant != "dense" and len(off) > 1:
                text += f", {statistics.mean(off):+.1f} ± {1.96 * statistics.stdev(off) / len(off) ** 0.5:.1f} ({len(off)})"
            print(text)
    for name in sorted({one["variant"] for one in lines}):
        for layer, of in enumerate(zip(*(one["errors"] for one in lines if one["variant"] == name))):
            keys, values = (100 * statistics.mean(side) for side in zip(*of))
            print(f"{name}, layer {layer}: keys {keys:.1f} %, values {values:.1f} %")


def ask(model: Model, cache: Cache, sample: dict, tokenizer: PreTrainedTokenizerFast) -> float:
    """The score, 0 to 100, of what is answered to a sample's questions."""
    found = []
    for question in sample["questions"]:
        fork, ids = cache.fork(), []
        logits = model.read(fork, question["tokens"], prompt=True)
        while len(ids) < question["max_tokens"]:
            ids.append(int(logits.argmax()))
            if ids[-1] == EOS:
                break
            logits = model.read(fork, ids[-1:], prompt=False)
        answer = tokenizer.decode(ids)
        hits = [holds(answer, wanted) for wanted in question["answers"]]
        found.append(float(any(hits)) if question["scorer"] == "any" else sum(hits) / len(hits))
    return 100 * sum(found) / len(found)


if __name__ == "__main__":
    main()
