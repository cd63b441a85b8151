"""The tokenizer, and the plain text that planted facts are hidden in."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

HELD_OUT = "heldout.txt"
SPECIAL_TOKENS = ["<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>", "<|pad|>"]


def training_files(texts: Path) -> list[Path]:
    """The .txt files of a folder in the order of their names, without the held-out one."""
    files = sorted(path for path in texts.glob("*.txt") if path.name != HELD_OUT)
    if not files:
        raise SystemExit(f"{texts}: no .txt files to train on")
    return files


def train_tokenizer(texts: Path, vocabulary: int) -> Tokenizer:
    """Byte-level BPE in which every digit is a token of its own, so that numbers are copied digit by digit."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=SPECIAL_TOKENS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train([str(path) for path in training_files(texts)], trainer)
    return tokenizer


def load_or_train_tokenizer(path: Path, texts: Path, vocabulary: int) -> Tokenizer:
    """The tokenizer in `path`, which is made from the texts when it does not exist."""
    if not path.exists():
        train_tokenizer(texts, vocabulary).save(str(path))
    return Tokenizer.from_file(str(path))


def encode_corpus(tokenizer: Tokenizer, texts: Path) -> np.ndarray:
    """Token ids [tokens] of all texts, each once as printed and once with its line breaks removed."""
    parts = []
    for path in training_files(texts):
        printed = path.read_text(encoding="utf-8", errors="ignore")
        for text in (printed, re.sub(r"\s*\n\s*", " ", printed)):
            parts.append(np.array(tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int32))
    return np.concatenate(parts)
