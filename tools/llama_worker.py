"""llama.cpp measured on request in a process of its own, see peer_process.py; bench_llama_cpp.py starts it."""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import llama_cpp

from llama_peer import LlamaPeer, version
from peer_process import serve

SEED_TOKENS = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--depth", type=int, required=True, help="tokens in the context before anything is measured")
    parser.add_argument("--room", type=int, required=True, help="tokens that are read or decoded at most")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--flash", choices=["on", "off"], required=True)
    parser.add_argument("--keys", default="F16", help="a GGML type")
    parser.add_argument("--values", default="F16", help="a GGML type")
    parser.add_argument("--fill", choices=["copied", "computed"], default="copied")
    arguments = parser.parse_args()
    serve(lambda: Llama(arguments))


class Llama:
    """A context at a depth, to which every measurement returns."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        flash = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        if arguments.flash == "off":
            flash = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        keys, values = (getattr(llama_cpp, f"GGML_TYPE_{name}") for name in (arguments.keys, arguments.values))
        self.depth = arguments.depth
        room = self.depth + max(arguments.room, 8)
        if self.depth > 0 and arguments.fill == "copied":
            # Copies pass through a second sequence, which needs room of its own.
            room += SEED_TOKENS
        self.peer = LlamaPeer(arguments.model, room, arguments.threads, flash, keys, values)
        self.version = version()
        if self.depth > 0 and arguments.fill == "copied":
            self.peer.tile(self.depth, self.tokens(min(SEED_TOKENS, self.depth)))
        elif self.depth > 0:
            self.peer.read(self.tokens(self.depth))
        self.peer.decode(self.tokens(8))
        self.peer.truncate(self.depth)

    def tokens(self, count: int) -> list[int]:
        generator = random.Random(count)
        return [generator.randrange(self.peer.vocabulary_size) for _ in range(count)]

    def measure(self, kind: str, tokens: int, passes: int) -> float:
        """Seconds of the best pass. Prefill makes no logits, decoding those of every token."""
        ids = self.tokens(tokens)
        best = float("inf")
        for _ in range(passes):
            start = time.perf_counter()
            if kind == "prefill":
                self.peer.read(ids)
            else:
                for token in ids:
                    self.peer.decode([token])
            best = min(best, time.perf_counter() - start)
            self.peer.truncate(self.depth)
        return best


if __name__ == "__main__":
    main()
