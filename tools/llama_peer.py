"""A thin wrapper around llama.cpp's C interface (PyPI `llama-cpp-python`), for comparisons and benchmarks."""

from __future__ import annotations

import ctypes
from pathlib import Path

import llama_cpp
import numpy as np

MAIN_SEQUENCE = 0
SCRATCH_SEQUENCE = 1


@llama_cpp.llama_log_callback
def _drop_log(_level: int, _text: bytes, _data: ctypes.c_void_p) -> None:
    """llama.cpp logs every tensor it loads; tables on stdout are what the tools are for."""


class LlamaPeer:
    """One model with one context of `context_tokens` positions."""

    def __init__(
        self,
        model: Path,
        context_tokens: int,
        threads: int,
        flash_attention: int,
        k_type: int = llama_cpp.GGML_TYPE_F16,
        v_type: int | None = None,
        sequences: int = 2,
    ) -> None:
        """`flash_attention` is one of LLAMA_FLASH_ATTN_TYPE_*, the types of keys and values are GGML_TYPE_* of
        llama_cpp; values are of the keys' type unless another is given. `sequences` share one cache."""
        llama_cpp.llama_log_set(_drop_log, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        model_parameters = llama_cpp.llama_model_default_params()
        model_parameters.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(str(model).encode(), model_parameters)
        if not self.model:
            raise SystemExit(f"{model}: llama.cpp cannot load this file")
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = context_tokens
        parameters.n_batch = 2048
        parameters.n_ubatch = 512
        parameters.n_seq_max = sequences
        parameters.kv_unified = True
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.flash_attn_type = flash_attention
        parameters.type_k = k_type
        parameters.type_v = k_type if v_type is None else v_type
        self.context = llama_cpp.llama_init_from_model(self.model, parameters)
        if not self.context:
            raise SystemExit(f"{model}: llama.cpp cannot make a context of {context_tokens} tokens")
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        self.vocabulary_size = llama_cpp.llama_vocab_n_tokens(self.vocabulary)

    def tokenize(self, text: str) -> list[int]:
        """Ids of `text` with the special tokens the file asks for; special tokens in the text stay text."""
        data = text.encode()
        ids = (llama_cpp.llama_token * (len(data) + 8))()
        count = llama_cpp.llama_tokenize(self.vocabulary, data, len(data), ids, len(ids), True, False)
        if count < 0:
            raise SystemExit(f"llama.cpp needs {-count} tokens for {len(data)} bytes of text")
        return list(ids[:count])

    def decode(self, tokens: list[int]) -> None:
        """Append `tokens` to the main sequence and wait until they are computed."""
        batch_size = llama_cpp.llama_n_batch(self.context)
        for start in range(0, len(tokens), batch_size):
            part = tokens[start : start + batch_size]
            ids = (llama_cpp.llama_token * len(part))(*part)
            result = llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(ids, len(part)))
            if result != 0:
                raise SystemExit(f"llama_decode returned {result}")
        llama_cpp.llama_synchronize(self.context)

    def read(self, tokens: list[int]) -> None:
        """As `decode`, without any logits."""
        batch_size = llama_cpp.llama_n_batch(self.context)
        for start in range(0, len(tokens), batch_size):
            part = tokens[start : start + batch_size]
            # The batch only points to these.
            ids, wanted = (llama_cpp.llama_token * len(part))(*part), (ctypes.c_int8 * len(part))()
            batch = llama_cpp.llama_batch_get_one(ids, len(part))
            batch.logits = wanted
            result = llama_cpp.llama_decode(self.context, batch)
            if result != 0:
                raise SystemExit(f"llama_decode returned {result}")
        llama_cpp.llama_synchronize(self.context)

    def logits(self) -> np.ndarray:
        """Logits [vocabulary] of the last token."""
        pointer = llama_cpp.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(pointer, shape=(self.vocabulary_size,)).copy()

    def truncate(self, tokens: int) -> None:
        """Keep the first `tokens` positions."""
        llama_cpp.llama_memory_seq_rm(self.memory, MAIN_SEQUENCE, tokens, -1)

    def tile(self, tokens: int, seed_tokens: list[int]) -> None:
        """Fill the empty context to `tokens` positions with copies of the pairs of `seed_tokens`.

        The time of a step depends on how many pairs there are, not on which; computing them all
        would take most of a benchmark. The seed is computed once, saved, and loaded again and again
        behind itself; llama.cpp rotates the moved keys.
        """
        self.decode(seed_tokens)
        size = llama_cpp.llama_state_seq_get_size(self.context, MAIN_SEQUENCE)
        state = (ctypes.c_uint8 * size)()
        llama_cpp.llama_state_seq_get_data(self.context, state, size, MAIN_SEQUENCE)
        for start in range(len(seed_tokens), tokens, len(seed_tokens)):
            if llama_cpp.llama_state_seq_set_data(self.context, state, size, SCRATCH_SEQUENCE) == 0:
                raise SystemExit(f"llama.cpp could not load a copied state at position {start}")
            llama_cpp.llama_memory_seq_add(self.memory, SCRATCH_SEQUENCE, 0, -1, start)
            llama_cpp.llama_memory_seq_cp(self.memory, SCRATCH_SEQUENCE, MAIN_SEQUENCE, -1, -1)
            llama_cpp.llama_memory_seq_rm(self.memory, SCRATCH_SEQUENCE, -1, -1)
        self.truncate(tokens)
        last = llama_cpp.llama_memory_seq_pos_max(self.memory, MAIN_SEQUENCE)
        if last != tokens - 1:
            raise SystemExit(f"llama.cpp holds {last + 1} tokens instead of {tokens}")

    def close(self) -> None:
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)


def version() -> str:
    """The package's version and the instruction sets llama.cpp was compiled for."""
    features = llama_cpp.llama_print_system_info().decode()
    return f"llama-cpp-python {llama_cpp.__version__}; {features.strip(' |')}"
