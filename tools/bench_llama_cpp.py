#!/usr/bin/env python3
"""Measure llama.cpp and Longview on the same GGUF in turns and print a Markdown table.

    python tools/bench_llama_cpp.py model.gguf --longview target/release/longview --depth 0 16384

Prefill of --prompt tokens and decoding of --generate tokens, at each depth, with f16 keys and
values. The programs take turns, so that a machine that grows slower grows slower for both; medians
are shown. A 1B model at depths 0 and 16,384 takes about fifteen minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import time
from collections import defaultdict
from pathlib import Path

import llama_cpp

from llama_peer import LlamaPeer, version

FLASH = {
    "llama.cpp, flash attention": llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    "llama.cpp, no flash attention": llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}
LONGVIEW = "Longview"
SEED_TOKENS = 512

# Tokens per second of every repetition, by (kind, depth) and program.
Samples = dict[tuple[str, int], dict[str, list[float]]]


def main() -> None:
    arguments = parse_arguments()
    samples: Samples = defaultdict(lambda: defaultdict(list))
    for depth in arguments.depth:
        peers = {name: open_peer(arguments, depth, flash) for name, flash in FLASH.items()}
        for _ in range(arguments.repetitions):
            for name, peer in peers.items():
                measure_llama(peer, name, depth, arguments, samples)
                if arguments.longview is not None:
                    measure_longview(depth, arguments, samples)
        for peer in peers.values():
            peer.close()
    print_table(samples, arguments)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a GGUF file")
    parser.add_argument("--longview", type=Path, help="the longview program; without it only llama.cpp is measured")
    parser.add_argument("--depth", type=int, nargs="+", default=[0, 16384], help="tokens already in the context")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of a prefill")
    parser.add_argument("--generate", type=int, default=64, help="tokens decoded one by one")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=3, help="turns of every program at each depth")
    parser.add_argument(
        "--fill", choices=["copied", "computed"], default="copied",
        help="how the depth is filled: with copies of one prefill's pairs (fast), or by a prefill of that length",
    )
    return parser.parse_args()


def open_peer(arguments: argparse.Namespace, depth: int, flash: int) -> LlamaPeer:
    """A context that holds `depth` tokens and has been warmed up."""
    room = depth + max(arguments.prompt, arguments.generate) + SEED_TOKENS
    peer = LlamaPeer(arguments.model, room, arguments.threads, flash)
    if depth > 0 and arguments.fill == "copied":
        peer.tile(depth, random_tokens(peer, min(SEED_TOKENS, depth)))
    elif depth > 0:
        peer.decode(random_tokens(peer, depth))
    peer.decode(random_tokens(peer, 8))
    peer.truncate(depth)
    return peer


def random_tokens(peer: LlamaPeer, count: int) -> list[int]:
    generator = random.Random(count)
    return [generator.randrange(peer.vocabulary_size) for _ in range(count)]


def measure_llama(peer: LlamaPeer, name: str, depth: int, arguments: argparse.Namespace, samples: Samples) -> None:
    """One prefill and one run of decoding; the context is as before afterwards."""
    prompt = random_tokens(peer, arguments.prompt)
    start = time.perf_counter()
    peer.decode(prompt)
    samples["prefill", depth][name].append(len(prompt) / (time.perf_counter() - start))
    peer.truncate(depth)
    start = time.perf_counter()
    for token in prompt[: arguments.generate]:
        peer.decode([token])
    samples["decode", depth][name].append(arguments.generate / (time.perf_counter() - start))
    peer.truncate(depth)


def measure_longview(depth: int, arguments: argparse.Namespace, samples: Samples) -> None:
    """One run of `longview bench` at one depth."""
    command = [
        str(arguments.longview), "bench", "--model", str(arguments.model), "--prompt", str(arguments.prompt),
        "--generate", str(arguments.generate), "--depth", str(depth), "--threads", str(arguments.threads), "--json",
    ]
    if depth > 0 and arguments.fill == "copied":
        command.append("--synthetic-kv")
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{finished.stderr}")
    for run in json.loads(finished.stdout)["runs"]:
        samples[run["kind"], run["depth"]][LONGVIEW].append(run["tokens_per_second"])


def print_table(samples: Samples, arguments: argparse.Namespace) -> None:
    """Medians in tokens per second, with the smallest and largest repetition, and Longview's ratio to the best."""
    programs = list(FLASH) + ([LONGVIEW] if arguments.longview is not None else [])
    print(f"{arguments.model.name}, {arguments.threads} threads, {arguments.repetitions} repetitions, ", end="")
    print(f"depth {arguments.fill}. {version()}\n")
    print(f"| tokens per second | {' | '.join(programs)} |" + (" ratio to the better |" if LONGVIEW in programs else ""))
    print("|---" * (len(programs) + 1 + (LONGVIEW in programs)) + "|")
    for (kind, depth), by_program in sorted(samples.items(), key=lambda item: (item[0][1], item[0][0] != "prefill")):
        tokens = arguments.prompt if kind == "prefill" else arguments.generate
        cells = [cell(by_program[program]) for program in programs]
        if LONGVIEW in programs:
            best = max(statistics.median(by_program[program]) for program in FLASH)
            cells.append(f"{statistics.median(by_program[LONGVIEW]) / best:.2f}")
        print(f"| {kind} {tokens} at depth {depth:,} | {' | '.join(cells)} |")


def cell(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f}–{max(values):.1f})"


if __name__ == "__main__":
    main()
