#!/usr/bin/env python3
"""Measure OpenVINO and Longview on the same shape in turns and print a Markdown table.

    python tools/openvino_peer.py make OV                          once: random weights, int8 and int4
    python tools/bench_openvino.py OV/int8 model-q8_0.gguf --longview target/release/longview
    python tools/bench_openvino.py OV/int4 model-q4_0.gguf --longview target/release/longview

OpenVINO cannot read the GGUF, so the weights are other random numbers of the same shape and width. Needs an environment
with `openvino`, `optimum-intel` and `nncf` (these pin another version of transformers than the other tools).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench_common import LONGVIEW, Cell, Samples, measure_longview
from peer_process import PeerProcess

DEFAULT_CELLS = ["prefill:512@0", "prefill:4096@0", "decode:32@0"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a folder that `openvino_peer.py make` wrote")
    parser.add_argument("model", type=Path, help="a GGUF file of the same shape")
    parser.add_argument("--longview", type=Path, required=True)
    parser.add_argument(
        "--cells", type=Cell.parse, nargs="+", default=[Cell.parse(cell) for cell in DEFAULT_CELLS],
        help="lines of the table, KIND:TOKENS@0",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=Path, help="a JSON file that keeps the rounds of several calls")
    arguments = parser.parse_args()
    if any(cell.depth > 0 for cell in arguments.cells):
        parser.error("OpenVINO is measured from an empty context only")
    samples = Samples(arguments.samples)
    if arguments.rounds > 0:
        measure(arguments, samples)
    print(f"{arguments.folder.name} beside {arguments.model.name}, {arguments.threads} threads. {samples.versions()}\n")
    print(samples.table())


def measure(arguments: argparse.Namespace, samples: Samples) -> None:
    worker = Path(__file__).with_name("openvino_peer.py")
    threads = str(arguments.threads)
    peer = PeerProcess([sys.executable, str(worker), "serve", str(arguments.folder), "--threads", threads])
    name = f"OpenVINO {arguments.folder.name}"
    # Once without a record: the first pass of a length prepares its kernels.
    for cell in arguments.cells:
        peer.measure(cell.kind, min(cell.tokens, 64), 1)
    for _ in range(arguments.rounds):
        for cell in arguments.cells:
            samples.add(cell, name, peer.measure(cell.kind, cell.tokens, cell.passes))
            ours = measure_longview(arguments.longview, arguments.model, cell, arguments.threads, False)
            samples.add(cell, LONGVIEW, ours)
    peer.close()


if __name__ == "__main__":
    main()
