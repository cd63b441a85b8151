#!/usr/bin/env python3
"""Measure what the reference model recalls by length of text, with Longview's own engine.

    python tools/needle/recall.py --longview target/release/longview --text examples/sherlock_holmes.txt

Facts are planted in a piece of the text; every question is asked with `longview ask --json`, as a
user would, and counts when the answer holds the fact's value (for passages: when it begins with the
words that follow). Prints the rows of the table in models/needle/README.md. Ten minutes on two
cores, most of them for the longest text.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from words import ADJECTIVES, DIGITS, FACTS, LETTERS, NOUNS, QUESTIONS

# Characters of English prose a token of the reference model stands for.
CHARACTERS_PER_TOKEN = 3.3


@dataclass
class Case:
    """A document, its questions, and what each answer must hold or begin with."""

    document: str
    questions: list[str]
    expected: list[str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--longview", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True, help="the text that facts are hidden in")
    parser.add_argument("--short", type=int, nargs="*", default=[1024, 4096], help="tokens of the short texts")
    parser.add_argument("--long", type=int, nargs="*", default=[4096, 16384, 40000, 100000], help="tokens of the long texts")
    parser.add_argument("--cases", type=int, default=20, help="short texts a column")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    text = arguments.text.read_text(encoding="utf-8")
    chance = random.Random(arguments.seed)

    print("| tokens | one fact | one of eight facts | quoted passage continued | variable chain of two |")
    print("|---|---|---|---|---|")
    one_line = re.sub(r"\s*\n\s*", " ", text)
    for length in arguments.short:
        makers = (
            lambda: facts_case(chance, piece(chance, one_line, length), 1, ask=1, wordings=1),
            lambda: facts_case(chance, piece(chance, one_line, length), 8, ask=1, wordings=1),
            lambda: passage_case(chance, piece(chance, one_line, length)),
            lambda: chain_case(chance, piece(chance, one_line, length)),
        )
        scores = [sum(score(arguments.longview, make()) for _ in range(arguments.cases)) for make in makers]
        print(f"| {length:,} | " + " | ".join(f"{right}/{arguments.cases}" for right in scores) + " |", flush=True)

    print("\n| tokens | 24 facts, all six wordings, raw text with line breaks |")
    print("|---|---|")
    for length in arguments.long:
        case = facts_case(chance, piece(chance, text, length), 24, ask=24, wordings=len(FACTS))
        print(f"| {length:,} | {score(arguments.longview, case)}/24 |", flush=True)


def piece(chance: random.Random, text: str, tokens: int) -> str:
    """A piece of the text of about so many tokens, from the beginning of a sentence on."""
    size = min(int(tokens * CHARACTERS_PER_TOKEN), len(text) - 1)
    start = chance.randrange(len(text) - size)
    start = max(text.find(". ", start, len(text) - size) + 1, 0)
    return " " + text[start : start + size].strip()


def facts_case(chance: random.Random, text: str, count: int, ask: int, wordings: int) -> Case:
    """Facts after sentences of the text, evenly drawn; questions about `ask` of them."""
    keys: list[str] = []
    while len(keys) < count:
        key = f"{chance.choice(ADJECTIVES)} {chance.choice(NOUNS)}"
        if key not in keys:
            keys.append(key)
    facts = [(key, digits(chance, 6), index % wordings) for index, key in enumerate(keys)]
    document = plant(chance, text, [FACTS[wording].format(k=key, v=value) for key, value, wording in facts])
    asked = chance.sample(facts, ask)
    return Case(document, [QUESTIONS[wording].format(k=key) for key, _, wording in asked], [value for _, value, _ in asked])


def passage_case(chance: random.Random, text: str) -> Case:
    """A quoted opening of eight words; the eight words that follow are wanted."""
    words = [match.span() for match in re.finditer(r"\S+", text)]
    first = chance.randrange(len(words) - 20)
    opening = text[words[first][0] : words[first + 7][1]]
    following = text[words[first + 8][0] : words[first + 15][1]]
    return Case(text, [f"Continue: {opening}"], [following])


def chain_case(chance: random.Random, text: str) -> Case:
    """Three variables, each the one before; the second is asked for."""
    names = ["".join(chance.choice(LETTERS) for _ in range(3)) for _ in range(3)]
    value = digits(chance, 5)
    facts = [f"VAR {names[0]} = {value}.", f"VAR {names[1]} = VAR {names[0]}.", f"VAR {names[2]} = VAR {names[1]}."]
    return Case(plant(chance, text, facts), [f"What is the value of VAR {names[1]}?"], [f"VAR {names[1]} = VAR {names[0]} = {value}"])


def plant(chance: random.Random, text: str, sentences: list[str]) -> str:
    """The text with the sentences in order, each after one of its own sentences."""
    ends = [match.end() - 1 for match in re.finditer(r"[.!?]\s", text)]
    cuts = sorted(chance.sample(ends, len(sentences)))
    parts, done = [], 0
    for cut, sentence in zip(cuts, sentences):
        parts += [text[done:cut], " ", sentence]
        done = cut
    return "".join(parts) + text[done:]


def digits(chance: random.Random, count: int) -> str:
    return "".join(chance.choice(DIGITS) for _ in range(count))


def score(longview: Path, case: Case) -> int:
    """How many questions of the case are answered right."""
    with tempfile.TemporaryDirectory() as folder:
        document = Path(folder) / "document.txt"
        document.write_text(case.document, encoding="utf-8")
        questions = Path(folder) / "questions.txt"
        questions.write_text("\n".join(case.questions) + "\n", encoding="utf-8")
        command = [str(longview), "ask", "--json", "--max-tokens", "32", "--file", str(document), "--questions", str(questions)]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
    answers = [answer["answer"] for answer in json.loads(run.stdout)["answers"]]
    return sum(normal(expected) in normal(answer) for expected, answer in zip(case.expected, answers, strict=True))


def normal(text: str) -> str:
    """White space does not count."""
    return " ".join(text.split())


if __name__ == "__main__":
    main()
