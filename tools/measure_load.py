#!/usr/bin/env python3
"""Measure how long a model takes to load beside a plain read of its file, both with a cold page cache.

    python tools/measure_load.py --longview target/release/longview FILE.gguf…

Both take turns, round by round, after the system was asked to drop the file's pages. A plain read is `read` in pieces of
one megabyte, one after another, which is what `cp` and `cat` do. Prints a Markdown table of medians (lowest–highest) and
of the rounds' ratios; "warm" is a load with the file in the page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import time
from pathlib import Path

PIECE = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="+", help="GGUF files")
    parser.add_argument("--longview", type=Path, required=True, help="the longview program")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print("| file | MiB | plain read, s | load, s | ratio | load warm, s |\n|---|---|---|---|---|---|")
    for model in arguments.models:
        reads, loads, warm = [], [], []
        for _ in range(arguments.rounds):
            forget(model)
            reads.append(read(model))
            forget(model)
            loads.append(load(arguments, model))
            read(model)
            warm.append(load(arguments, model))
        ratios = [ours / plain for ours, plain in zip(loads, reads)]
        size = model.stat().st_size >> 20
        print(f"| {model.name} | {size:,} | {spread(reads)} | {spread(loads)} | **{spread(ratios)}** | {spread(warm)} |")


def forget(path: Path) -> None:
    """Asks the system to drop the file's pages; what was just written must be on disk first."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(path: Path) -> float:
    start = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        room = bytearray(PIECE)
        while file.readinto(room):
            pass
    return time.perf_counter() - start


def load(arguments: argparse.Namespace, model: Path) -> float:
    """What the program itself says: from its start until the model can compute."""
    command = [
        arguments.longview, "run", "--model", model, "--threads", str(arguments.threads), "--prompt", "a",
        "--max-tokens", "1", "--json",
    ]  # fmt: skip
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(answer.stdout)["seconds_to_load"]


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


if __name__ == "__main__":
    main()
