#!/usr/bin/env python3
"""Train Locret's retaining heads (arXiv 2410.01805) beside a frozen llama-like model.

A head is two matrices a layer: of a token's query, key and value before rotary embedding, side by side, it
makes a number for every KV head, which is to say how much later tokens will look at the token. What it is to
say is the largest attention logit that any token of an answer gives to it, by any query head of the group.
Texts are pages of a book with facts planted in them, questions about the facts, and the answers.

    python tools/locret/train.py --fingerprint-of heads.tsv          # the reference model, minutes on two cores
    python tools/locret/train.py --model FOLDER --out heads.safetensors

The file written has the published names (model.layers.N.self_attn.fc1.weight, fc2.weight) in f16. Its
metadata name the model by the fingerprint that `longview calibrate` writes into its file, if one is given, so
that Longview refuses it for another model.
"""

from __future__ import annotations

import argparse
import random
import re
import time
from pathlib import Path
from typing import Iterator

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

ROOT = Path(__file__).resolve().parent.parent.parent
MODEL = ROOT / "models/needle"
TEXT = ROOT / "examples/sherlock_holmes.txt"

# The loss of the paper: how much neighbours may differ, beside how far a score is off.
SMOOTHNESS = 0.0025
GRADIENT_LIMIT = 0.5

ADJECTIVES = "quiet amber hollow silver ancient crimson gentle frozen narrow bitter golden distant bright humble".split()
NOUNS = "river lantern castle falcon meadow harbor engine garden mirror needle ocean pepper quarry ribbon".split()


class Retaining(nn.Module):
    """The head of one layer."""

    def __init__(self, inputs: int, middle: int, kv_heads: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, middle, bias=False)
        self.fc2 = nn.Linear(middle, kv_heads, bias=False)

    def forward(self, rows: Tensor) -> Tensor:
        """`[tokens][inputs]` to `[tokens][KV heads]`."""
        return self.fc2(functional.silu(self.fc1(rows)))


class Watched:
    """A frozen model whose projections are kept."""

    def __init__(self, folder: Path) -> None:
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.model.requires_grad_(False)
        self.layers = self.model.model.layers
        config = self.model.config
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.dim = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.seen: list[dict[str, Tensor]] = [{} for _ in self.layers]
        for seen, layer in zip(self.seen, self.layers):
            for name in ("q_proj", "k_proj", "v_proj"):
                getattr(layer.self_attn, name).register_forward_hook(
                    lambda _, __, out, seen=seen, name=name: seen.__setitem__(name, out[0])
                )

    @torch.no_grad()
    def read(self, ids: list[int], asked: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """For every layer the rows `[tokens][inputs]` and their labels `[tokens][KV heads]`, given the tokens
        `asked` that look back."""
        self.model.model(torch.tensor([ids]))
        places = torch.arange(len(ids))[None]
        for seen in self.seen:
            q, k, v = seen["q_proj"], seen["k_proj"], seen["v_proj"]
            cos, sin = self.model.model.rotary_emb(v[None], places)
            split = lambda x, heads: x.view(1, len(ids), heads, self.dim).transpose(1, 2)
            turned_q, turned_k = apply_rotary_pos_emb(split(q, self.heads), split(k, self.kv_heads), cos, sin)
            group = self.heads // self.kv_heads
            queries = turned_q[0][:, asked].reshape(self.kv_heads, group * len(asked), self.dim)
            logits = queries @ turned_k[0].transpose(1, 2) / self.dim**0.5
            later = asked.repeat(group)[None, :, None] >= torch.arange(len(ids))[None, None]
            labels = logits.masked_fill(~later, float("-inf")).amax(dim=1)
            yield torch.cat([q, k, v], dim=1), labels.transpose(0, 1)


class Texts:
    """Pages with facts, questions about them, and answers."""

    def __init__(self, folder: Path, text: Path, tokens: int, seed: int) -> None:
        self.tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
        words = text.read_text(encoding="utf-8").split()
        self.pages = [" ".join(words[at : at + 60]) for at in range(0, len(words) - 60, 60)]
        self.tokens, self.random = tokens, random.Random(seed)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def draw(self) -> tuple[list[int], int, Tensor]:
        """Ids, the number of those that are the document, and the places of tokens that answer."""
        draw = self.random
        facts = {}
        while len(facts) < 6:
            facts[f"{draw.choice(ADJECTIVES)} {draw.choice(NOUNS)}"] = str(draw.randrange(10_000, 1_000_000))
        sentence = lambda key: f"The special magic number for {key} is {facts[key]}."
        start = draw.randrange(len(self.pages))
        parts: list[list[int]] = []
        at = 0
        while sum(map(len, parts)) < self.tokens:
            parts.append(self.encode(" " + self.pages[(start + at) % len(self.pages)]))
            at += 1
        for key in facts:
            parts.insert(draw.randrange(len(parts) + 1), self.encode(" " + sentence(key)))
        ids = [0] + [token for part in parts for token in part]
        document, asked = len(ids), []
        for key in draw.sample(sorted(facts), 3):
            ids += self.encode(f"<|user|> What is the special magic number for {key}?<|assistant|>")
            answer = self.encode(" " + sentence(key))
            # The token before each one is what chooses it.
            asked += range(len(ids) - 1, len(ids) + len(answer) - 1)
            ids += answer + [1]
        return ids, document, torch.tensor(asked)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL, help="a Hugging Face folder")
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--out", type=Path, default=MODEL / "locret.safetensors")
    parser.add_argument("--middle", type=int, default=128, help="numbers between the two matrices; the paper has 1024")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--tokens", type=int, default=500, help="tokens of a text")
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--fingerprint-of", type=Path, help="a file that longview calibrate wrote for the model")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    watched = Watched(args.model)
    texts = Texts(args.model, args.text, args.tokens, args.seed)
    inputs = (watched.heads + 2 * watched.kv_heads) * watched.dim
    heads = nn.ModuleList(Retaining(inputs, args.middle, watched.kv_heads) for _ in watched.layers)
    optimizer = torch.optim.AdamW(heads.parameters(), lr=args.rate, betas=(0.9, 0.95))
    warm = max(1, args.steps // 10)
    rate = lambda step: min((step + 1) / warm, max(0.0, (args.steps - step) / (args.steps - warm)))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    begun = time.time()
    for step in range(args.steps):
        ids, document, asked = texts.draw()
        loss = torch.zeros(())
        for head, (rows, labels) in zip(heads, watched.read(ids, asked)):
            scores = head(rows[:document])
            loss = loss + functional.smooth_l1_loss(scores, labels[:document])
            loss = loss + SMOOTHNESS * (scores[1:] - scores[:-1]).square().mean()
        optimizer.zero_grad()
        (loss / len(heads)).backward()
        nn.utils.clip_grad_value_(heads.parameters(), GRADIENT_LIMIT)
        optimizer.step()
        schedule.step()
        if (step + 1) % 50 == 0:
            print(f"step {step + 1}: loss {loss.item() / len(heads):.3f}, {time.time() - begun:.0f} s", flush=True)
    report(watched, heads, texts)
    save(heads, args)


@torch.no_grad()
def report(watched: Watched, heads: nn.ModuleList, texts: Texts, samples: int = 8) -> None:
    """How many of the tenth of tokens that answers look at most are in the tenth that score highest."""
    found = [0.0] * len(heads)
    for _ in range(samples):
        ids, document, asked = texts.draw()
        for layer, (head, (rows, labels)) in enumerate(zip(heads, watched.read(ids, asked))):
            count = document // 10
            ours = head(rows[:document]).topk(count, dim=0).indices
            theirs = labels[:document].topk(count, dim=0).indices
            for kv_head in range(watched.kv_heads):
                same = set(ours[:, kv_head].tolist()) & set(theirs[:, kv_head].tolist())
                found[layer] += len(same) / count / watched.kv_heads / samples
    print("of the tenth looked at most, in the tenth scored highest, by layer:", [f"{share:.2f}" for share in found])


def save(heads: nn.ModuleList, args: argparse.Namespace) -> None:
    tensors = {}
    for layer, head in enumerate(heads):
        for name, matrix in (("fc1", head.fc1), ("fc2", head.fc2)):
            tensors[f"model.layers.{layer}.self_attn.{name}.weight"] = matrix.weight.detach().half().contiguous()
    about = {"made_by": f"tools/locret/train.py --steps {args.steps} --tokens {args.tokens} --seed {args.seed}"}
    if args.fingerprint_of:
        found = re.search(r"^# model fingerprint: (\S+)$", args.fingerprint_of.read_text(), re.MULTILINE)
        if not found:
            raise SystemExit(f"{args.fingerprint_of}: no fingerprint; let longview calibrate write it")
        about["fingerprint"] = found.group(1)
    save_file(tensors, args.out, about)
    print(f"{args.out}: {args.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
