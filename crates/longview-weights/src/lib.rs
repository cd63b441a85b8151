//! Files to named tensors: GGUF and Hugging Face folders, memory-mapped, hostile files refused
