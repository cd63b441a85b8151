#!/usr/bin/env python3
"""Write the example texts with planted facts from examples/sherlock_holmes.txt.

Each is one adventure as printed, with sentences added at the ends of paragraphs spread evenly over
it. The names of the files say what was added; nothing else is changed.

    python tools/make_examples.py        # a second
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@dataclass(frozen=True)
class Example:
    """An adventure from its heading up to the next one, and the sentences to plant in it."""

    file: str
    first_line: str
    next_line: str
    facts: tuple[str, ...]


LIST = (
    Example(
        file="red_headed_league_with_a_secret.txt",
        first_line="ADVENTURE II. THE RED-HEADED LEAGUE",
        next_line="ADVENTURE III. A CASE OF IDENTITY",
        facts=("The special magic number for amber falcon is 48213.",),
    ),
    Example(
        file="scandal_in_bohemia_with_six_facts.txt",
        first_line="ADVENTURE I. A SCANDAL IN BOHEMIA",
        next_line="ADVENTURE II. THE RED-HEADED LEAGUE",
        facts=(
            "The special magic number for crimson lantern is 70936.",
            "The code of the silver kettle is 5182.",
            "Remember: jolly urchin is 264907.",
            "The password for frozen harbor is velvet-zephyr.",
            "QXB was assigned 39415.",
            "The value of hollow mirror equals 881204.",
        ),
    ),
)


def main() -> None:
    book = (EXAMPLES / "sherlock_holmes.txt").read_text(encoding="utf-8")
    for example in LIST:
        adventure = cut(book, example.first_line, example.next_line)
        (EXAMPLES / example.file).write_text(plant(adventure, example.facts), encoding="utf-8")
        print(f"{example.file}: {len(example.facts)} planted")


def cut(book: str, first_line: str, next_line: str) -> str:
    """The lines from `first_line` up to `next_line`, without the empty ones at the end."""
    start = book.index(first_line + "\n")
    end = book.index(next_line + "\n")
    return book[start:end].rstrip("\n") + "\n"


def plant(text: str, facts: tuple[str, ...]) -> str:
    """Add each fact to the end of a paragraph; the paragraphs divide the text into equal parts."""
    paragraphs = text.rstrip("\n").split("\n\n")
    size = sum(len(paragraph) + 2 for paragraph in paragraphs)
    targets = [size * (number + 1) / (len(facts) + 1) for number in range(len(facts))]
    waiting = list(zip(targets, facts))
    position = 0
    for index, paragraph in enumerate(paragraphs):
        position += len(paragraph) + 2
        if waiting and position > waiting[0][0] and paragraph.strip():
            paragraphs[index] = f"{paragraph} {waiting.pop(0)[1]}"
    return "\n\n".join(paragraphs) + "\n"


if __name__ == "__main__":
    main()
