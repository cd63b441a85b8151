#!/usr/bin/env python3
"""Measure what contexts that last save, and whether --memory holds.

    python tools/measure_contexts.py --longview target/release/longview --text examples/red_headed_league_with_a_secret.txt

Two Markdown tables for docs/contexts.md. The first: seconds to the first token of the first question about
a text, of a second question in the same process, and of the second question after a restart, each beside
what it could be at best. Before the restart the store's files are dropped from the system's cache, and the
disk's own sequential rate is measured on the same files in the same way. The second: the most memory the
process held, as the operating system counts it, against the number given with --memory; the bytes that were
read back, beside the fewest that had to be. With --others N the second table is made a second time in a folder
that holds N blocks of other texts already: what is known of them takes memory too. A minute for a text of
15,000 tokens on the reference model, half an hour for a whole book, three minutes more for 10,000 other blocks.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

READ_BYTES = 8 << 20

BLOCK_TOKENS = 64

# Other texts have so many words of these letters, about 13,000 tokens.
OTHER_WORDS = 3_000
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass
class Ran:
    """One run of the program: its JSON, or what it said when it refused; its peak resident set in bytes."""

    code: int
    result: dict[str, Any]
    said: str
    peak_bytes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--longview", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--model", help="a model; without, the reference model")
    parser.add_argument("--first", default="Who is the teller of this story?")
    parser.add_argument("--second", default="What is the special magic number for amber falcon?")
    parser.add_argument(
        "--memory", nargs="*", default=["48MiB", "64MiB", "72MiB", "80MiB", "96MiB"], help="limits to hold"
    )
    parser.add_argument("--memory-text", type=Path, help="the text to read under the limits; without, the same")
    parser.add_argument("--others", type=int, default=0, help="blocks of other texts, for a second table of limits")
    parser.add_argument("--max-tokens", type=int, default=16)
    arguments = parser.parse_args()
    program = Program(arguments.longview, arguments.model, arguments.max_tokens)
    questions(program, arguments.text, arguments.first, arguments.second)
    if arguments.memory:
        print()
        text = arguments.memory_text or arguments.text
        limits(program, text, arguments.second, arguments.memory)
        if arguments.others:
            with tempfile.TemporaryDirectory() as cache:
                blocks = fill(program, cache, arguments.others)
                print(f"\nBeside {blocks:,} blocks of other texts in the folder:\n", flush=True)
                limits(program, text, arguments.second, arguments.memory, cache)


class Program:
    """The program with the model and the length of answers settled."""

    def __init__(self, path: Path, model: str | None, max_tokens: int) -> None:
        self.path = path
        self.model = ["--model", model] if model else []
        self.max_tokens = max_tokens

    def ask(self, text: Path, asked: list[str], cache: str, more: list[str] | None = None) -> Ran:
        ask = ["ask", "--file", str(text), "--cache-dir", cache, "-n", str(self.max_tokens), *asked]
        return self.run([*ask, *self.model, *(more or [])])

    def run(self, command: list[str]) -> Ran:
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as said:
            process = subprocess.Popen([self.path, *command, "--json"], stdout=out, stderr=said)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            out.seek(0)
            said.seek(0)
            text = out.read().decode()
            return Ran(
                code=process.returncode,
                result=json.loads(text) if text else {},
                said=said.read().decode(),
                # Linux counts in KiB.
                peak_bytes=usage.ru_maxrss * 1024,
            )


def questions(program: Program, text: Path, first: str, second: str) -> None:
    """The first table."""
    with tempfile.TemporaryDirectory() as cache:
        here = done(program.ask(text, [first, second], cache)).result
        answers = here["answers"]
        drop_from_cache(cache)
        rate = sequential_rate(cache)
        drop_from_cache(cache)
        later = done(program.ask(text, [second], cache)).result
    again = answers[1]
    best = {
        "second, same process": least_seconds(program, again),
        "second, after a restart": least_seconds(program, later) + later["store_read_bytes"] / rate,
    }
    print(f"{text.name}, {answers[0]['prompt_tokens']:,} tokens, {here['model']}, {here['threads']} threads; ", end="")
    print(f"disk {rate / 1e6:,.0f} MB/s; loading the model {later['seconds_to_load']:.2f} s, not counted below\n")
    print("| question | seconds to first token | tokens reused | tokens read | MB read from disk | at best, seconds | ratio |")
    print("|---|---|---|---|---|---|---|")
    rows = [("first", answers[0]), ("second, same process", again), ("second, after a restart", later)]
    for name, answer in rows:
        seconds = answer["seconds_to_first_token"]
        least = best.get(name)
        beside = f"{least:.3f} | {seconds / least:.2f}" if least else "– | –"
        print(
            f"| {name} | {seconds:.3f} | {answer['reused_tokens']:,} | {answer['computed_tokens']:,} | "
            f"{answer['store_read_bytes'] / 1e6:,.1f} | {beside} |"
        )
    if again["generated_ids"] != later["generated_ids"]:
        raise SystemExit("the answer after the restart differs from the one before")


def least_seconds(program: Program, answer: dict[str, Any]) -> float:
    """Reading the question at that depth and one decode step, as `bench` measures them."""
    read = answer["computed_tokens"]
    depth = answer["prompt_tokens"] - read
    bench = ["bench", "--prompt", str(read), "--generate", "8", "--depth", str(depth), "--synthetic-kv"]
    runs = done(program.run([*bench, *program.model])).result["runs"]
    speed = {run["kind"]: run["tokens_per_second"] for run in runs}
    return read / speed["prefill"] + 1 / speed["decode"]


def limits(program: Program, text: Path, question: str, memory: list[str], full: str | None = None) -> None:
    """The second table: with an empty folder for each row, or in a `full` one, where no row finds what another read."""
    print("| --memory | peak resident | of the limit | keys and values | on disk | read back | least possible | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for limit in memory:
        with tempfile.TemporaryDirectory() as empty:
            ran = program.ask(text, [question], full or empty, ["--memory", limit, "--salt", f"under {limit}"])
        if ran.code != 0:
            last = ran.said.strip().splitlines()[0] if ran.said.strip() else f"exit code {ran.code}"
            print(f"| {limit} | refused: {last} | | | | | | |", flush=True)
            continue
        answer = ran.result
        share = ran.peak_bytes / size(limit)
        read, least = answer["store_read_bytes"], answer["least_bytes_read"]
        ratio = f"{read / least:.2f}" if least else "–"
        print(
            f"| {limit} | {mebibytes(ran.peak_bytes)} | {share:.0%} | "
            f"{mebibytes(answer['kv_bytes'])} | {mebibytes(answer['kv_bytes_on_disk'])} | "
            f"{mebibytes(read)} | {mebibytes(least)} | {ratio} |",
            flush=True,
        )


def fill(program: Program, cache: str, wanted: int) -> int:
    """Reads texts of random words into a folder until it has the blocks wanted; how many it has then."""
    blocks = 0
    draw = random.Random(1)
    with tempfile.TemporaryDirectory() as folder:
        while blocks < wanted:
            words = ("".join(draw.choices(LETTERS, k=draw.randint(2, 8))) for _ in range(OTHER_WORDS))
            text = Path(folder) / "other.txt"
            text.write_text(" ".join(words))
            save = ["contexts", "save", f"other {blocks}", "--prompt-file", str(text), "--cache-dir", cache]
            saved = done(program.run([*save, *program.model])).result
            blocks += saved["tokens"] // BLOCK_TOKENS
    return blocks


def done(ran: Ran) -> Ran:
    if ran.code != 0:
        raise SystemExit(f"exit code {ran.code}: {ran.said}")
    return ran


def files(folder: str) -> list[Path]:
    return [path for path in Path(folder).rglob("*") if path.is_file()]


def drop_from_cache(folder: str) -> None:
    """Makes the next read come from the disk."""
    for path in files(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def sequential_rate(folder: str) -> float:
    """Bytes a second of reading the files one after another."""
    start = time.monotonic()
    read = 0
    for path in files(folder):
        with path.open("rb", buffering=0) as file:
            while block := file.read(READ_BYTES):
                read += len(block)
    return read / (time.monotonic() - start)


def mebibytes(count: float) -> str:
    return f"{count / (1 << 20):,.1f} MiB"


def size(text: str) -> int:
    units = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
    for unit, factor in units.items():
        if text.endswith(unit):
            return int(float(text[: -len(unit)]) * factor)
    return int(text)


if __name__ == "__main__":
    main()
