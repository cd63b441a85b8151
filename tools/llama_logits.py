#!/usr/bin/env python3
"""Logits of llama.cpp on GGUF files that Longview makes of the parity fixtures, against those of transformers.

    python tools/llama_logits.py --longview target/release/longview qwen3_next qwen3_5 qwen3_5_moe

Longview and transformers agree on the folders (the parity tests). Where llama.cpp agrees on the converted
files too, names, settings and the order of rows in them are what llama.cpp takes them to be. Prints a Markdown
table with the largest max|difference| ÷ max|logit| of any position; exit code 1 above 1e-4. Fixtures have no
vocabulary, so the files are given one without tokens.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
from safetensors.numpy import load_file

from llama_peer import LlamaPeer, version

FIXTURES = Path(__file__).resolve().parent.parent / "crates/longview-models/tests/fixtures"
LARGEST_ERROR = 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", help="fixtures")
    parser.add_argument("--longview", type=Path, required=True, help="the longview program")
    arguments = parser.parse_args()
    print(f"{version()}\n\n| fixture | tokens | worst | median |\n|---|---|---|---|")
    worst = 0.0
    for name in arguments.names:
        with tempfile.TemporaryDirectory() as scratch:
            made, readable = Path(scratch) / "made.gguf", Path(scratch) / "readable.gguf"
            command = [arguments.longview, "quantize", FIXTURES / name, made, "--type", "f32"]
            subprocess.run(command, check=True, capture_output=True)
            without_vocabulary(made, readable)
            errors = compare(readable, load_file(FIXTURES / name / "expected.safetensors"))
        print(f"| {name} | {len(errors)} | {errors.max():.1e} | {np.median(errors):.1e} |", flush=True)
        worst = max(worst, errors.max())
    if not worst <= LARGEST_ERROR:
        raise SystemExit(f"{worst:.1e} is more than {LARGEST_ERROR:.0e}")


def without_vocabulary(source: Path, target: Path) -> None:
    """A copy whose tokenizer is none, which llama.cpp loads."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for key, value in reader.fields.items():
        if not key.startswith(("GGUF.", "tokenizer.")) and key != "general.architecture":
            writer.add_key_value(key, value.contents(), *value.types[:2])
    writer.add_string("tokenizer.ggml.model", "no_vocab")
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def compare(model: Path, expected: dict[str, np.ndarray]) -> np.ndarray:
    """max|difference| ÷ max|logit| of every position, read token by token."""
    ids, logits = expected["input_ids"].tolist(), expected["logits"]
    peer = LlamaPeer(model, len(ids) + 8, 2, llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED, llama_cpp.GGML_TYPE_F32)
    rows = []
    for token in ids:
        peer.decode([token])
        rows.append(peer.logits())
    peer.close()
    return np.abs(np.stack(rows) - logits).max(axis=-1) / np.abs(logits).max(axis=-1)


if __name__ == "__main__":
    main()
