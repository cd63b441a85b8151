"""OpenVINO (PyPI `openvino`, `optimum-intel`, `nncf`) as a peer: making a model of a shape, and measuring it.

    python tools/openvino_peer.py make FOLDER          write FOLDER/int8 and FOLDER/int4
    python tools/openvino_peer.py serve FOLDER/int8    measure on request, see peer_process.py

The shape is that of `longview make-model --shape llama-3.2-1b`, the weights are random. The logits of the last
token alone are computed, as OpenVINO's own generation library (GenAI) has it.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from peer_process import serve

LLAMA_3_2_1B = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    },
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=["make", "serve"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.action == "make":
        make(arguments.folder)
    else:
        serve(lambda: OpenVinoPeer(arguments.folder, arguments.threads))


def make(folder: Path) -> None:
    """Random weights, exported with int8 and with int4 weights as optimum-intel compresses them by default."""
    import torch
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "source"
    torch.manual_seed(1)
    LlamaForCausalLM(LlamaConfig(**LLAMA_3_2_1B)).to(torch.float16).save_pretrained(source)
    for bits in (8, 4):
        config = OVWeightQuantizationConfig(bits=bits)
        model = OVModelForCausalLM.from_pretrained(source, export=True, compile=False, quantization_config=config)
        model.save_pretrained(folder / f"int{bits}")


class OpenVinoPeer:
    """One compiled model with one sequence."""

    def __init__(self, folder: Path, threads: int) -> None:
        import openvino

        core = openvino.Core()
        model = core.read_model(folder / "openvino_model.xml")
        keep_last_logits(model)
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
        self.request = core.compile_model(model, "CPU", settings).create_infer_request()
        self.vocabulary_size = LLAMA_3_2_1B["vocab_size"]
        self.inputs = {name for port in model.inputs for name in port.names}
        self.version = f"OpenVINO {openvino.__version__}"
        self.length = 0

    def measure(self, kind: str, tokens: int, passes: int) -> float:
        """Seconds of the best pass from an empty context."""
        prompt = np.random.default_rng(tokens).integers(0, self.vocabulary_size, tokens)
        best = float("inf")
        for _ in range(passes):
            self.reset()
            if kind == "decode":
                self.step(prompt[:1])
            start = time.perf_counter()
            if kind == "prefill":
                self.step(prompt)
            else:
                for token in prompt:
                    self.step([token])
            best = min(best, time.perf_counter() - start)
        return best

    def reset(self) -> None:
        self.request.reset_state()
        self.length = 0

    def step(self, tokens) -> None:
        """Append tokens to the sequence."""
        ids = np.asarray(tokens, dtype=np.int64).reshape(1, -1)
        end = self.length + ids.shape[1]
        values = {
            "input_ids": ids,
            "attention_mask": np.ones((1, end), dtype=np.int64),
            "position_ids": np.arange(self.length, end, dtype=np.int64).reshape(1, -1),
            "beam_idx": np.zeros(1, dtype=np.int32),
        }
        self.request.infer({name: value for name, value in values.items() if name in self.inputs})
        self.length = end


def keep_last_logits(model) -> None:
    """Cut the input of the output matrix to the last position."""
    from openvino import opset13

    for result in model.get_results():
        node = result.input_value(0).get_node()
        while node.get_type_name() in ("Convert", "Add"):
            node = node.input_value(0).get_node()
        if node.get_type_name() != "MatMul":
            raise SystemExit(f"the logits come from a {node.get_type_name()}, not from a matrix product")
        hidden = node.input_value(0)
        last = opset13.slice(hidden, np.array([-1]), np.array([np.iinfo(np.int64).max]), np.array([1]), np.array([1]))
        node.input(0).replace_source_output(last.output(0))
    model.validate_nodes_and_infer_types()


if __name__ == "__main__":
    main()
