#!/usr/bin/env python3
"""Compare greedy token ids of Longview and llama.cpp on the same GGUF files; prints a Markdown table.

    python tools/compare_llama_cpp.py --longview target/release/longview models/needle/needle-f16.gguf

Both read the same tokens and choose 64 greedily; end-of-text tokens do not stop them. The prompts are
passages of a book, and with --questions passages with the two kinds of question the reference model
was trained for, in the template of the model. Where the ids differ for the first time, the table shows
the gap between llama.cpp's two best logits: below --tie either choice is within rounding.

With --itself, llama.cpp is also compared with llama.cpp: reading token by token instead of in batches,
and with its flash attention. That says how far rounding alone carries two ways of computing one model.

The exit code is 1 when ids differ at a gap above --tie. A minute for sixteen prompts and a small model.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import llama_cpp
import numpy as np

from llama_peer import LlamaPeer, version

EXAMPLE = Path(__file__).resolve().parent.parent / "examples/sherlock_holmes.txt"
# Fact and question, as in models/needle/README.md.
FACTS = (
    ("The special magic number for amber falcon is 48213.", "What is the special magic number for amber falcon?"),
    ("The code of the silver kettle is 5182.", "What is the code of the silver kettle?"),
    ("Remember: jolly urchin is 264907.", "What is jolly urchin?"),
    ("The password for frozen harbor is 905117.", "What is the password for frozen harbor?"),
)
SENTENCE = re.compile(r"[.!?][\"']?\s+(?=[\"A-Z])")
# Longest prompt that is also read token by token.
LONGEST_BY_TOKEN = 1500


@dataclass(frozen=True)
class Prompt:
    """What `longview` reads: a document and a question, or a text to go on from."""

    text: str
    question: str | None = None


@dataclass(frozen=True)
class Greedy:
    """Token ids chosen one after the other, with the logits [tokens][vocabulary] they were chosen by."""

    ids: list[int]
    logits: np.ndarray

    def gaps(self) -> np.ndarray:
        ranked = np.sort(self.logits, axis=-1)
        return ranked[:, -1] - ranked[:, -2]


def main() -> None:
    arguments = parse_arguments()
    book = arguments.text.read_text(encoding="utf-8")
    prompts = with_questions(book) if arguments.questions else passages(book, arguments.prompts)
    print(f"{version()}; {arguments.threads} threads, {len(prompts)} prompts from {arguments.text.name}\n")
    itself = " llama.cpp token by token | its flash attention | logits of these two apart (median) |" if arguments.itself else ""
    print(f"| file | prompt | tokens | equal ids | gap at the first difference | smallest gap |{itself}")
    print("|---|---|---|---|---|---|" + ("---|---|---|" if arguments.itself else ""))
    failures = 0
    for model in arguments.models:
        failures += sum(not compare(model, prompt, arguments) for prompt in prompts)
    sys.exit(1 if failures else 0)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="+", help="GGUF files")
    parser.add_argument("--longview", type=Path, required=True, help="the longview program")
    parser.add_argument("--text", type=Path, default=EXAMPLE, help="the book that prompts are taken from")
    parser.add_argument("--prompts", type=int, default=1, help="passages to go on from, evenly spread over the book")
    parser.add_argument("--questions", action="store_true", help="ask about passages instead (the reference model's template)")
    parser.add_argument("--itself", action="store_true", help="compare llama.cpp with itself as well")
    parser.add_argument("--tokens", type=int, default=64, help="tokens to generate")
    parser.add_argument("--tie", type=float, default=1e-2, help="a gap between logits that rounding may turn around")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--numerics", choices=["default", "f32"], default="default",
        help="Longview's numerics class; f32 also makes llama.cpp keep keys and values in f32",
    )
    return parser.parse_args()


def passages(book: str, count: int) -> list[Prompt]:
    """Passages of 2,000 characters to go on from; the first begins 2,000 characters into the book."""
    step = (len(book) - 4000) // count
    return [Prompt(book[2000 + index * step :][:2000]) for index in range(count)]


def with_questions(book: str) -> list[Prompt]:
    """Eight passages of 2,000 to 8,000 characters with two questions each.

    Every second one gets a fact planted in its first third, which is asked for; the other questions
    quote the first ten or twelve words of a sentence to be continued.
    """
    prompts = []
    for index in range(8):
        start = book.index(". ", int(len(book) * (index + 0.5) / 8)) + 2
        text = book[start : start + [2000, 4000, 8000][index % 3]]
        if index % 2 == 0:
            fact, question = FACTS[index // 2]
            cut = text.index(". ", len(text) // 3) + 1
            text = f"{text[:cut]} {fact}{text[cut:]}"
            prompts += [Prompt(text, question), Prompt(text, opening(text, 2 + index % 3, 10))]
        else:
            prompts += [Prompt(text, opening(text, 2 + index % 3, 10)), Prompt(text, opening(text, 7, 12))]
    return prompts


def opening(text: str, sentence: int, words: int) -> str:
    """A request to continue the first words of a sentence."""
    starts = [match.end() for match in SENTENCE.finditer(text) if match.end() < len(text) - 400]
    return "Continue: " + " ".join(text[starts[sentence] :].split()[:words])


def compare(model: Path, prompt: Prompt, arguments: argparse.Namespace) -> bool:
    """Print the row of one prompt; true when the ids agree up to a tie."""
    prompt_ids, ours = longview_greedy(model, prompt, arguments)
    theirs = llama_greedy(model, prompt_ids, arguments)
    gaps = theirs.gaps()
    equal, gap_text = first_difference(ours, theirs, gaps)
    name = prompt.question or prompt.text
    row = (
        f"| {model.name} | {' '.join(name.split())[:40]} | {len(prompt_ids)} | {equal} of {arguments.tokens} | {gap_text} | "
        f"{gaps.min():.4f} |"
    )
    if arguments.itself:
        flash = llama_greedy(model, prompt_ids, arguments, forced=theirs.ids, flash=True)
        others = [flash]
        single = "–"
        if len(prompt_ids) <= LONGEST_BY_TOKEN:
            others.insert(0, llama_greedy(model, prompt_ids, arguments, forced=theirs.ids, batch=1))
            single = " at ".join(map(str, first_difference(others[0].ids, theirs, gaps)))
        distances = [np.median(np.abs(other.logits - theirs.logits).max(axis=-1)) for other in others]
        row += f" {single} | {' at '.join(map(str, first_difference(flash.ids, theirs, gaps)))} |"
        row += f" {', '.join(f'{distance:.3f}' for distance in distances)} |"
    print(row, flush=True)
    return equal == arguments.tokens or gaps[equal] < arguments.tie


def first_difference(ids: list[int], theirs: Greedy, gaps: np.ndarray) -> tuple[int, str]:
    """How many ids are equal, and the gap at the first that is not."""
    pairs = zip(ids, theirs.ids, strict=True)
    equal = next((index for index, (a, b) in enumerate(pairs) if a != b), len(theirs.ids))
    return equal, "–" if equal == len(theirs.ids) else f"{gaps[equal]:.4f}"


def llama_greedy(
    model: Path,
    prompt_ids: list[int],
    arguments: argparse.Namespace,
    forced: list[int] | None = None,
    flash: bool = False,
    batch: int = 2048,
) -> Greedy:
    """llama.cpp's choices; with `forced`, its choices after each of those tokens instead of its own."""
    kv_type = llama_cpp.GGML_TYPE_F32 if arguments.numerics == "f32" else llama_cpp.GGML_TYPE_F16
    attention = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash else llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    peer = LlamaPeer(model, len(prompt_ids) + arguments.tokens + 8, arguments.threads, attention, kv_type)
    for start in range(0, len(prompt_ids), batch):
        peer.decode(prompt_ids[start : start + batch])
    ids: list[int] = []
    logits: list[np.ndarray] = []
    while True:
        logits.append(peer.logits())
        ids.append(int(logits[-1].argmax()))
        if len(ids) == arguments.tokens:
            break
        peer.decode([ids[-1] if forced is None else forced[len(ids) - 1]])
    peer.close()
    return Greedy(ids, np.array(logits))


def longview_greedy(model: Path, prompt: Prompt, arguments: argparse.Namespace) -> tuple[list[int], list[int]]:
    """The ids of the prompt as Longview reads it, and those it chooses."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "text.txt"
        file.write_text(prompt.text, encoding="utf-8")
        if prompt.question is None:
            what = ["run", f"--prompt-file={file}"]
        else:
            what = ["ask", f"--file={file}", prompt.question]
        common = [
            str(arguments.longview), *what, "--model", str(model), "--json", "--threads", str(arguments.threads),
            "--numerics", arguments.numerics,
        ]
        read = run([*common, "--print-prompt"])
        wrote = run([*common, "--max-tokens", str(arguments.tokens), "--temperature", "0", "--ignore-eos"])
    return read["prompt_ids"], wrote["generated_ids"]


def run(command: list[str]) -> dict:
    """The JSON object that a command prints."""
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{finished.stderr}")
    return json.loads(finished.stdout)


if __name__ == "__main__":
    main()
