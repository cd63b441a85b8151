"""llama.cpp writing several texts side by side, without its server: what its server can reach at most. Measured on request in
a process of its own, see peer_process.py; bench_server.py --llama-library starts it.

All texts go on from one shared beginning, which is read once and whose pairs they share (one unified cache); every step
is one batch with a row a text, and the most likely token of each is chosen.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import llama_cpp
import numpy as np

from llama_peer import LlamaPeer, version
from peer_process import serve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--shared", type=int, required=True, help="tokens that all texts begin with")
    parser.add_argument("--room", type=int, required=True, help="tokens of all texts together, at most")
    parser.add_argument("--streams", type=int, required=True, help="texts at once, at most")
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    serve(lambda: Streams(arguments))


class Streams:
    """A shared beginning, from which texts go on in sequences of their own."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.shared, self.most = arguments.shared, arguments.streams
        room = self.shared + arguments.room + 8 * arguments.streams
        self.peer = LlamaPeer(arguments.model, room, arguments.threads, llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED,
                              sequences=arguments.streams)
        self.version = version()
        generator = random.Random(self.shared)
        self.peer.read([generator.randrange(self.peer.vocabulary_size) for _ in range(self.shared)])
        self.batch = llama_cpp.llama_batch_init(self.most, 0, 1)

    def measure(self, kind: str, tokens: int, passes: int) -> float:
        """Seconds in which `kind` texts (a number) are written, `tokens` tokens in all; the best of `passes`."""
        count = int(kind)
        best = float("inf")
        for _ in range(passes):
            for sequence in range(1, count):
                llama_cpp.llama_memory_seq_cp(self.peer.memory, 0, sequence, -1, -1)
            # Different from the first token on, as different questions are.
            ids = self.step([7 + sequence for sequence in range(count)], self.shared)
            start = time.perf_counter()
            for at in range(tokens // count):
                ids = self.step(ids, self.shared + 1 + at)
            best = min(best, time.perf_counter() - start)
            for sequence in range(1, count):
                llama_cpp.llama_memory_seq_rm(self.peer.memory, sequence, -1, -1)
            self.peer.truncate(self.shared)
        return best

    def step(self, ids: list[int], position: int) -> list[int]:
        """One token of every text; the most likely next ones."""
        self.batch.n_tokens = len(ids)
        for row, token in enumerate(ids):
            self.batch.token[row], self.batch.pos[row], self.batch.logits[row] = token, position, 1
            self.batch.n_seq_id[row], self.batch.seq_id[row][0] = 1, row
        result = llama_cpp.llama_decode(self.peer.context, self.batch)
        if result != 0:
            raise SystemExit(f"llama_decode returned {result}")
        logits = llama_cpp.llama_get_logits(self.peer.context)
        rows = np.ctypeslib.as_array(logits, shape=(len(ids), self.peer.vocabulary_size))
        return [int(token) for token in rows.argmax(axis=1)]


if __name__ == "__main__":
    main()
