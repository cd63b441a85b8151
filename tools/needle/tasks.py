"""Training sequences: facts to recall, variables to follow, passages to continue, tokens to copy, plain text.

Every task returns `(tokens, weights)`, two lists of equal length; the weight of a token says how
much predicting it counts in the loss. The answer's own tokens count most.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
from tokenizers import Tokenizer

from words import ADJECTIVES, DIGITS, FACTS, LETTERS, NOUNS, QUESTIONS

Sequence = tuple[list[int], list[float]]

# Weights of tokens in the loss.
TEXT_IN_TASK = 0.25
PLAIN_TEXT = 0.5
ANSWER = 4.0
REPEATED_FACT = 1.0
CONTINUATION = 2.0
# Questions and answers together take at most this share of a sequence.
QUESTION_SHARE = 0.45


class TaskGenerator:
    """Draws training sequences; the same seed draws the same ones."""

    def __init__(self, tokenizer: Tokenizer, corpus: np.ndarray, seed: int) -> None:
        """`corpus` holds the token ids [tokens] of all texts, one after the other."""
        self.tokenizer = tokenizer
        self.corpus = corpus
        self.random = random.Random(seed)
        self.bos, self.eos, self.user, self.assistant = (
            tokenizer.token_to_id(token) for token in ("<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>")
        )
        self.sentence_ends = np.where(corpus == tokenizer.token_to_id("."))[0]
        self.tasks: dict[str, Callable[[int], Sequence]] = {
            "recall": self.recall,
            "track": self.track,
            "quote": self.quote,
            "copy": self.copy,
            "text": self.text,
        }

    def sample(self, length: int, mix: dict[str, float]) -> Sequence:
        """One sequence of exactly `length` tokens of a task drawn with the probabilities in `mix`."""
        task = self.random.choices(list(mix), weights=list(mix.values()))[0]
        tokens, weights = self.tasks[task](length)
        padding = length - len(tokens)
        return tokens + [self.eos] * padding, weights + [0] * padding

    def positions(self, length: int, limit: int, skip_probability: float) -> np.ndarray:
        """Positions [length] for a sequence; some sequences jump ahead, so that large distances are seen."""
        positions = np.arange(length)
        if self.random.random() < skip_probability:
            jumps = self.random.choice([1, 2, 4, 8])
            cuts = sorted(self.random.randrange(1, length) for _ in range(jumps))
            room = int((limit - length) * self.random.random() ** 2)
            shares = [self.random.random() for _ in range(jumps)]
            total = sum(shares)
            for cut, share in zip(cuts, shares):
                positions[cut:] += int(room * share / total)
        return positions

    def recall(self, length: int) -> Sequence:
        """Facts hidden in text, then questions about them in another order."""
        count = self.random.choice([2, 4, 8, 12, 16, 24]) if length <= 1024 else self.random.choice([4, 8, 16, 32, 48])
        keys: list[str] = []
        while len(keys) < count:
            key = self.key()
            if key not in keys:
                keys.append(key)
        facts = []
        for key in keys:
            wording = self.random.randrange(len(FACTS))
            facts.append((key, self.value(), wording))
        sentences = [self.encode(" " + FACTS[w].format(k=k, v=v)) for k, v, w in facts]
        order = list(range(count))
        self.random.shuffle(order)
        self.random.random()  # unused; keeps the sequence of draws that trained the published weights
        dialogue = []
        for index in order:
            key, value, wording = facts[index]
            opening = FACTS[wording].split("{v}")[0].format(k=key).rstrip()
            dialogue.append((QUESTIONS[wording].format(k=key), " " + opening, f" {value}."))
        return self.hide(length, sentences, dialogue)

    def track(self, length: int) -> Sequence:
        """Variables that are set from numbers or from each other, then questions about their chains."""
        count = self.random.choice([4, 8, 12])
        names = self.variable_names(count)
        values: dict[str, str] = {}
        parents: dict[str, str] = {}
        facts = []
        for index, name in enumerate(names):
            if index == 0 or self.random.random() < 0.4:
                values[name] = "".join(self.random.choice(DIGITS) for _ in range(5))
                facts.append(f" VAR {name} = {values[name]}.")
            else:
                parent = self.random.choice(names[max(0, index - 3) : index])
                values[name] = values[parent]
                parents[name] = parent
                facts.append(f" VAR {name} = VAR {parent}.")
        sentences = [self.encode(fact) for fact in facts]
        order = names[:]
        self.random.shuffle(order)
        dialogue = [
            (f"What is the value of VAR {name}?", f" VAR {name} =", chain(name, parents, values) + ".") for name in order
        ]
        return self.hide(length, sentences, dialogue)

    def quote(self, length: int) -> Sequence:
        """A text, then openings of its passages with the words that follow them."""
        body = self.filler(int(length * 0.6))
        tokens = [self.bos] + body
        weights = [0] + [TEXT_IN_TASK] * len(body)
        while len(tokens) < length - 60:
            start = self.random.randrange(0, len(body) - 45)
            opening = body[start : start + self.random.choice([6, 8, 12])]
            end = start + len(opening)
            continuation = body[end : end + 20]
            question = [self.user] + self.encode(" Continue:") + opening + [self.assistant]
            tokens += question + continuation
            weights += [0] * len(question) + [CONTINUATION] * len(continuation)
        rest = self.filler(length - len(tokens))
        tokens += rest
        weights += [TEXT_IN_TASK] * len(rest)
        return tokens[:length], weights[:length]

    def copy(self, length: int) -> Sequence:
        """A run of random tokens again and again: nothing but looking back helps."""
        period = self.random.choice([8, 16, 24, 32, 48, length // 2])
        run = [self.random.randrange(10, self.tokenizer.get_vocab_size()) for _ in range(period)]
        tokens, weights = [self.bos], [0]
        while len(tokens) < length:
            weights += [0.0 if len(tokens) == 1 else 1.0] * period
            tokens += run
        return tokens[:length], weights[:length]

    def text(self, length: int) -> Sequence:
        """Plain text."""
        return [self.bos] + self.filler(length - 1), [0] + [PLAIN_TEXT] * (length - 1)

    def hide(self, length: int, sentences: list[list[int]], dialogue: list[tuple[str, str, str]]) -> Sequence:
        """Spread sentences over text and append as many (question, opening, answer) as there is room for."""
        tail: list[int] = []
        tail_weights: list[float] = []
        for question_text, opening_text, answer_text in dialogue:
            question = [self.user] + self.encode(" " + question_text) + [self.assistant]
            opening = self.encode(opening_text)
            answer = self.encode(answer_text)
            if len(tail) + len(question) + len(opening) + len(answer) > length * QUESTION_SHARE:
                break
            tail += question + opening + answer + [self.eos]
            tail_weights += [0] * len(question) + [REPEATED_FACT] * len(opening)
            tail_weights += [ANSWER] * len(answer) + [REPEATED_FACT]
        body = length - 1 - len(tail) - sum(map(len, sentences))
        if body < 0:
            return self.recall(length)
        shares = [self.random.random() ** 2 for _ in range(len(sentences) + 1)]
        total = sum(shares)
        gaps = [int(body * share / total) for share in shares]
        gaps[-1] += body - sum(gaps)
        tokens = [self.bos]
        for gap, sentence in zip(gaps, sentences):
            tokens += self.filler(gap) + sentence
        tokens += self.filler(gaps[-1])
        weights = [0] + [TEXT_IN_TASK] * (len(tokens) - 1) + tail_weights
        return (tokens + tail)[:length], weights[:length]

    def filler(self, length: int) -> list[int]:
        """At most `length` tokens of text from the start of a sentence."""
        if length <= 0:
            return []
        start = self.sentence_ends[self.random.randrange(len(self.sentence_ends) - 2)] + 1
        return self.corpus[start : start + length].tolist()

    def key(self) -> str:
        """What a fact is about: two words, one word, or a few capital letters."""
        kind = self.random.random()
        if kind < 0.75:
            return self.random.choice(ADJECTIVES) + " " + self.random.choice(NOUNS)
        if kind < 0.9:
            return self.random.choice(NOUNS)
        return "".join(self.random.choice(LETTERS) for _ in range(self.random.choice([3, 4])))

    def value(self) -> str:
        """What a fact says: a number, two words, or one word."""
        kind = self.random.random()
        if kind < 0.7:
            digits = self.random.choice([3, 4, 5, 6, 7])
            return "".join(self.random.choice(DIGITS) for _ in range(digits))
        if kind < 0.85:
            return self.random.choice(ADJECTIVES) + "-" + self.random.choice(NOUNS)
        return self.random.choice(NOUNS)

    def variable_names(self, count: int) -> list[str]:
        """Different names of three capital letters."""
        names: list[str] = []
        while len(names) < count:
            name = "".join(self.random.choice(LETTERS) for _ in range(3))
            if name not in names:
                names.append(name)
        return names

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids


def chain(name: str, parents: dict[str, str], values: dict[str, str]) -> str:
    """The assignments from `name` down to its number: " VAR ABC = VAR DEF = 12345" without the first name."""
    text = ""
    while name in parents:
        name = parents[name]
        text += f" VAR {name} ="
    return f"{text} {values[name]}"
