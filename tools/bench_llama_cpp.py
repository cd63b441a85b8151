#!/usr/bin/env python3
"""Measure llama.cpp and Longview on the same GGUF in turns and print a Markdown table.

    python tools/bench_llama_cpp.py model.gguf --longview target/release/longview

Prefill and decode at several depths. The programs take turns, round by round, so that a machine that grows slower
grows slower for both; the table has medians with the smallest and largest round, the median of the rounds' ratios,
Longview's share of the limits it measured, and the peak memory of both. llama.cpp runs with and without flash
attention and the faster counts. Every cell has processes of its own, with room for no more tokens than it needs, so
that peaks are those of the cell; where llama.cpp's slower way takes less memory, the table says how much. Cells with a store (`decode:8@65536/q8`) compare Longview in that form of keys and
values with all of llama.cpp's, each measured once.

The default cells take some forty minutes on two cores for a 1B model. `--samples FILE` keeps what was measured and adds to
it, so that the table may be made in pieces: choose with `--cells`, print with `--rounds 0`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench_common import LONGVIEW, Cell, Samples, measure_longview
from peer_process import PeerProcess

DEFAULT_CELLS = [
    "prefill:512@0", "prefill:4096@0", "decode:32@0", "prefill:512@16384", "decode:16@16384",
    "decode:8@32768/q8", "decode:8@65536/q8",
]  # fmt: skip
# Flash attention, keys, values. llama.cpp reads quantised values with flash attention only. BF16 is missing: llama.cpp
# cannot move such keys to other positions, which copying them to a depth needs; they are as many bytes as F16.
USUAL = [("on", "F16", "F16"), ("off", "F16", "F16")]
ALL_TYPES = [
    *USUAL,
    *(("on", name, name) for name in ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "IQ4_NL")),
    ("off", "Q8_0", "F16"), ("off", "Q4_0", "F16"),
]  # fmt: skip


def main() -> None:
    arguments = parse_arguments()
    samples = Samples(arguments.samples)
    if arguments.rounds > 0:
        for cell in arguments.cells:
            measure_cell(arguments, cell, samples)
    print(f"{arguments.model.name}, {arguments.threads} threads, depths {arguments.fill}. {samples.versions()}\n")
    print(samples.table())
    print("\nEvery way of llama.cpp that was measured, medians:\n")
    print(samples.all_peers())


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a GGUF file")
    parser.add_argument("--longview", type=Path, help="the longview program; without it only llama.cpp is measured")
    parser.add_argument(
        "--cells", type=Cell.parse, nargs="+", default=[Cell.parse(cell) for cell in DEFAULT_CELLS],
        help="lines of the table, KIND:TOKENS@DEPTH with KIND prefill or decode, and /STORE for Longview's --store",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="turns of every program at each cell")
    parser.add_argument("--samples", type=Path, help="a JSON file that keeps the rounds of several calls")
    parser.add_argument(
        "--fill", choices=["copied", "computed"], default="copied",
        help="how the depth is filled: with copies of one prefill's pairs (Longview: random ones), or by reading it",
    )  # fmt: skip
    return parser.parse_args()


def measure_cell(arguments: argparse.Namespace, cell: Cell, samples: Samples) -> None:
    """A cell, in turns. All of llama.cpp's forms of keys and values are opened one by one, for they may be large."""
    rounds = arguments.rounds if cell.store is None else 1
    groups = [USUAL] if cell.store is None else [[form] for form in ALL_TYPES]
    for number, group in enumerate(groups):
        peers = {name_of(*form): open_peer(arguments, cell, *form) for form in group}
        for _ in range(rounds):
            for name, peer in peers.items():
                samples.add(cell, name, peer.measure(cell.kind, cell.tokens, cell.passes))
                print(f"{cell} {name}: {samples.cells[str(cell)][name][-1]}", file=sys.stderr)
            if arguments.longview is not None and number == 0:
                synthetic = arguments.fill == "copied"
                ours = measure_longview(arguments.longview, arguments.model, cell, arguments.threads, synthetic)
                samples.add(cell, LONGVIEW, ours)
                print(f"{cell} {LONGVIEW}: {samples.cells[str(cell)][LONGVIEW][-1]}", file=sys.stderr)
        for peer in peers.values():
            peer.close()


def open_peer(arguments: argparse.Namespace, cell: Cell, flash: str, keys: str, values: str) -> PeerProcess:
    worker = Path(__file__).with_name("llama_worker.py")
    return PeerProcess([
        sys.executable, str(worker), str(arguments.model), "--depth", str(cell.depth),
        "--room", str(cell.tokens), "--threads", str(arguments.threads),
        "--flash", flash, "--keys", keys, "--values", values, "--fill", arguments.fill,
    ])  # fmt: skip


def name_of(flash: str, keys: str, values: str) -> str:
    form = keys.lower() if keys == values else f"{keys.lower()} keys, {values.lower()} values"
    return f"{'flash attention' if flash == 'on' else 'no flash attention'}, {form}"


if __name__ == "__main__":
    main()
