#!/usr/bin/env python3
"""Makes the block-format fixtures of longview-kernels: random blocks and what they dequantise to.

For each format two files in crates/longview-kernels/tests/data/formats/: NAME.blocks (the packed
bytes) and NAME.f32 (the reference values, little endian), the latter from the PyPI package `gguf`.
Where that package also writes a format, NAME.packed is what it makes of the values in normal.f32.
Tests read these files and need no Python. Run again only when a format is added:

    pip install numpy gguf && python tools/make_format_fixtures.py
"""

from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize

OUT = Path(__file__).resolve().parent.parent / "crates/longview-kernels/tests/data/formats"

# Byte offsets of the f16 factors in a block: random bytes there would be infinite or NaN.
HALVES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
    "IQ4_NL": [0], "IQ4_XS": [0],
}


def quantised(name: str, rng: np.random.Generator) -> np.ndarray:
    elements, size = GGML_QUANT_SIZES[Type[name]]
    count = 96 if elements == 32 else 24
    blocks = rng.integers(0, 256, (count, size), dtype=np.uint8)
    for offset in HALVES[name]:
        factor = (rng.standard_normal(count) * 10.0 ** rng.uniform(-6, 0, count)).astype(np.float16)
        factor[:3] = [0.0, -0.0, 6e-8]  # zero, negative zero, the smallest subnormal
        blocks[:, offset : offset + 2] = factor.view(np.uint8).reshape(count, 2)
    return blocks


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(20240229)
    for name in ["F32", "F16", "BF16", *HALVES]:
        if name in HALVES:
            blocks = quantised(name, rng)
        else:  # all bit patterns, infinities and NaN among them
            blocks = rng.integers(0, 256, (1, 1024 * GGML_QUANT_SIZES[Type[name]][1]), dtype=np.uint8)
        values = dequantize(blocks, Type[name]).astype("<f4")
        (OUT / f"{name}.blocks").write_bytes(blocks.tobytes())
        (OUT / f"{name}.f32").write_bytes(values.tobytes())
        print(f"{name:7} {blocks.size:7} bytes {values.size:6} values")

    normal = (rng.standard_normal(2048) * np.repeat(10.0 ** rng.uniform(-3, 1, 64), 32)).astype("<f4")
    normal[32:64] = 0.0
    (OUT / "normal.f32").write_bytes(normal.tobytes())
    for name in ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]:
        (OUT / f"{name}.packed").write_bytes(quantize(normal, Type[name]).tobytes())


if __name__ == "__main__":
    main()
