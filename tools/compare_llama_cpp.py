#!/usr/bin/env python3
"""Compare greedy token ids of Longview and llama.cpp on the same GGUF files; prints a Markdown table.

    python tools/compare_llama_cpp.py --longview target/release/longview models/needle/needle-f16.gguf

Both read the same text and choose 64 tokens greedily; end-of-text tokens do not stop them. Where the
ids differ for the first time, the table shows the gap between llama.cpp's two best logits: below
--tie either choice is within rounding. The exit code is 1 when ids differ at a larger gap, or when
the two do not agree on the number of prompt tokens. A few seconds for a small model.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import llama_cpp
import numpy as np

from llama_peer import LlamaPeer, version

EXAMPLE = Path(__file__).resolve().parent.parent / "examples/sherlock_holmes.txt"


@dataclass(frozen=True)
class Greedy:
    """Token ids chosen one after the other, and for each the gap between the two best logits."""

    prompt_tokens: int
    ids: list[int]
    gaps: list[float]


def main() -> None:
    arguments = parse_arguments()
    prompt = arguments.prompt_file.read_text(encoding="utf-8")[arguments.skip : arguments.skip + arguments.characters]
    print(f"{version()}; {arguments.threads} threads, prompt: {len(prompt)} characters of {arguments.prompt_file.name}\n")
    print("| file | prompt tokens | equal ids | llama.cpp's gap at the first difference | its smallest gap | different ids | result |")
    print("|---|---|---|---|---|---|---|")
    failures = 0
    for model in arguments.models:
        failures += not compare(model, prompt, arguments)
    sys.exit(1 if failures else 0)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="+", help="GGUF files")
    parser.add_argument("--longview", type=Path, required=True, help="the longview program")
    parser.add_argument("--prompt-file", type=Path, default=EXAMPLE, help="text to go on from")
    parser.add_argument("--skip", type=int, default=2000, help="characters of the text to leave out at its start")
    parser.add_argument("--characters", type=int, default=2000, help="characters of the text to read")
    parser.add_argument("--tokens", type=int, default=64, help="tokens to generate")
    parser.add_argument("--tie", type=float, default=1e-2, help="a gap between logits that rounding may turn around")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--numerics", choices=["default", "f32"], default="default",
        help="Longview's numerics class; f32 also makes llama.cpp keep keys and values in f32",
    )
    return parser.parse_args()


def compare(model: Path, prompt: str, arguments: argparse.Namespace) -> bool:
    """Print the row of one file; true when the ids agree up to a tie."""
    theirs = llama_greedy(model, prompt, arguments)
    prompt_tokens, ours = longview_greedy(model, prompt, arguments)
    equal = 0
    while equal < min(len(ours), len(theirs.ids)) and ours[equal] == theirs.ids[equal]:
        equal += 1
    complete = equal == arguments.tokens
    gap_text = "–" if complete else "no token" if equal >= len(theirs.ids) else f"{theirs.gaps[equal]:.4f}"
    tied = not complete and equal < min(len(ours), len(theirs.ids)) and theirs.gaps[equal] < arguments.tie
    if prompt_tokens != theirs.prompt_tokens:
        result = f"prompts differ: Longview reads {prompt_tokens} tokens"
    elif complete:
        result = "equal"
    else:
        result = "equal up to a tie" if tied else "different"
    print(
        f"| {model.name} | {theirs.prompt_tokens} | {equal} of {arguments.tokens} | {gap_text} | "
        f"{min(theirs.gaps):.4f} | {len(set(theirs.ids))} | {result} |",
        flush=True,
    )
    return result.startswith("equal")


def llama_greedy(model: Path, prompt: str, arguments: argparse.Namespace) -> Greedy:
    """llama.cpp's choices, without flash attention."""
    room = len(prompt.encode()) + arguments.tokens + 8
    kv_type = llama_cpp.GGML_TYPE_F32 if arguments.numerics == "f32" else llama_cpp.GGML_TYPE_F16
    peer = LlamaPeer(model, room, arguments.threads, llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED, kv_type)
    prompt_ids = peer.tokenize(prompt)
    peer.decode(prompt_ids)
    ids: list[int] = []
    gaps: list[float] = []
    while True:
        logits = peer.logits()
        second, best = np.sort(np.partition(logits, -2)[-2:])
        ids.append(int(logits.argmax()))
        gaps.append(float(best - second))
        if len(ids) == arguments.tokens:
            break
        peer.decode([ids[-1]])
    peer.close()
    return Greedy(len(prompt_ids), ids, gaps)


def longview_greedy(model: Path, prompt: str, arguments: argparse.Namespace) -> tuple[int, list[int]]:
    """The number of prompt tokens and the chosen ids of `longview run`."""
    with tempfile.TemporaryDirectory() as scratch:
        prompt_file = Path(scratch) / "prompt.txt"
        prompt_file.write_text(prompt, encoding="utf-8")
        command = [
            str(arguments.longview), "run", "--model", str(model), "--prompt-file", str(prompt_file),
            "--max-tokens", str(arguments.tokens), "--temperature", "0", "--ignore-eos", "--json",
            "--threads", str(arguments.threads), "--numerics", arguments.numerics,
        ]
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{finished.stderr}")
    answer = json.loads(finished.stdout)
    return answer["prompt_tokens"], answer["generated_ids"]


if __name__ == "__main__":
    main()
