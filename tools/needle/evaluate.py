#!/usr/bin/env python3
"""Score a checkpoint: facts recalled, passages continued and variables followed, by length of text.

Answers are teacher-forced: a row counts when the greedy choice is right at every token of the answer.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tokenizers import Tokenizer

from corpus import encode_corpus
from induction import install_induction_circuit
from model import NeedleModel, Shape
from tasks import TaskGenerator
from words import ADJECTIVES, DIGITS, FACTS, NOUNS, QUESTIONS

# The prompt up to the answer, and the answer, as token ids.
Case = tuple[list[int], list[int]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, help="from train.py (default: the untrained circuit)")
    parser.add_argument("--texts", type=Path, required=True, help="folder of .txt files")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096], help="tokens of a prompt")
    parser.add_argument("--cases", type=int, default=8, help="prompts for each kind and length")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    tokenizer = Tokenizer.from_file(str(arguments.tokenizer))
    generator = TaskGenerator(tokenizer, encode_corpus(tokenizer, arguments.texts), seed=12345)
    model = load(arguments.checkpoint).eval()
    print("| tokens | kind | answers right | answer tokens right |\n|---|---|---|---|")
    for length in arguments.lengths:
        for kind, make in CASES.items():
            results = [score(model, *make(generator, length)) for _ in range(arguments.cases)]
            whole = sum(right == 1.0 for right in results)
            share = sum(results) / len(results)
            print(f"| {length} | {kind} | {whole}/{len(results)} | {share:.2f} |", flush=True)


def load(checkpoint: Path | None) -> NeedleModel:
    model = NeedleModel(Shape())
    install_induction_circuit(model)
    if checkpoint is not None:
        model.load_state_dict(torch.load(checkpoint, weights_only=True)["model"])
    return model


def score(model: NeedleModel, prompt: list[int], answer: list[int]) -> float:
    """The share of the answer's tokens that are the model's first choice."""
    tokens = torch.tensor([prompt + answer])
    hidden = model.hidden(tokens, torch.arange(tokens.shape[1])[None])[0, len(prompt) - 1 : -1]
    choices = model.logits(hidden).argmax(-1).tolist()
    return sum(a == b for a, b in zip(choices, answer)) / len(answer)


def recall_case(generator: TaskGenerator, length: int, facts: int) -> Case:
    """`facts` numbers hidden in text and a question about one of them."""
    draw = generator.random
    keys: list[str] = []
    while len(keys) < facts:
        key = draw.choice(ADJECTIVES) + " " + draw.choice(NOUNS)
        if key not in keys:
            keys.append(key)
    numbers = ["".join(draw.choice(DIGITS) for _ in range(6)) for _ in keys]
    sentences = [generator.encode(" " + FACTS[0].format(k=k, v=v)) for k, v in zip(keys, numbers)]
    key, number = draw.choice(list(zip(keys, numbers)))
    question = [generator.user] + generator.encode(" " + QUESTIONS[0].format(k=key)) + [generator.assistant]
    question += generator.encode(f" The special magic number for {key} is")
    answer = generator.encode(f" {number}")
    body = length - 1 - len(question) - len(answer) - sum(map(len, sentences))
    return spread(generator, body, sentences) + question, answer


def quote_case(generator: TaskGenerator, length: int) -> Case:
    """A text and the opening of one of its passages; twelve tokens are to follow."""
    body = generator.filler(length - 60)
    start = generator.random.randrange(len(body) - 45)
    question = [generator.user] + generator.encode(" Continue:") + body[start : start + 10] + [generator.assistant]
    return [generator.bos] + body + question, body[start + 10 : start + 22]


def track_case(generator: TaskGenerator, length: int) -> Case:
    """Three variables set one from the other, and the value of the second."""
    first, second, third = generator.variable_names(3)
    number = "".join(generator.random.choice(DIGITS) for _ in range(5))
    facts = [f" VAR {first} = {number}.", f" VAR {second} = VAR {first}.", f" VAR {third} = VAR {second}."]
    sentences = [generator.encode(fact) for fact in facts]
    question = [generator.user] + generator.encode(f" What is the value of VAR {second}?") + [generator.assistant]
    question += generator.encode(f" VAR {second} =")
    body = length - 1 - len(question) - sum(map(len, sentences))
    return spread(generator, body, sentences) + question, generator.encode(f" VAR {first} = {number}")


def spread(generator: TaskGenerator, length: int, sentences: list[list[int]]) -> list[int]:
    """`length` tokens of one text with the sentences at random places, in order."""
    cuts = sorted(generator.random.randrange(length) for _ in sentences)
    filler = generator.filler(length)
    tokens, previous = [generator.bos], 0
    for cut, sentence in zip(cuts, sentences):
        tokens += filler[previous:cut] + sentence
        previous = cut
    return tokens + filler[previous:]


CASES = {
    "one fact": lambda generator, length: recall_case(generator, length, 1),
    "one of eight facts": lambda generator, length: recall_case(generator, length, 8),
    "quoted passage, 12 tokens": quote_case,
    "variable chain of two": track_case,
}


if __name__ == "__main__":
    main()
