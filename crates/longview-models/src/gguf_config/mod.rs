//! A GGUF file's metadata, in the words of `config.json`, and back.
//!
//! Reading a GGUF translates its keys into settings, writing one translates settings into keys;
//! what is a mere change of name stands in one table for both.

mod read;
mod write;

pub(crate) use read::translate;
pub(crate) use write::{factor_tensors, period, write};

/// Keys that mean the same under two names: `config.json`'s, and GGUF's after the architecture.
const WHOLE_NUMBERS: [(&str, &str); 14] = [
    ("max_position_embeddings", "context_length"),
    ("hidden_size", "embedding_length"),
    ("num_hidden_layers", "block_count"),
    ("intermediate_size", "feed_forward_length"),
    ("num_attention_heads", "attention.head_count"),
    ("num_key_value_heads", "attention.head_count_kv"),
    ("head_dim", "attention.key_length"),
    ("sliding_window", "attention.sliding_window"),
    (
        "original_max_position_embeddings",
        "rope.scaling.original_context_length",
    ),
    ("num_experts", "expert_count"),
    ("num_local_experts", "expert_count"),
    ("num_experts_per_tok", "expert_used_count"),
    ("moe_intermediate_size", "expert_feed_forward_length"),
    (
        "shared_expert_intermediate_size",
        "expert_shared_feed_forward_length",
    ),
];

/// The same for numbers with a fraction.
const NUMBERS: [(&str, &str); 5] = [
    ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
    ("rope_theta", "rope.freq_base"),
    ("rope_local_base_freq", "rope.freq_base_swa"),
    ("attn_logit_softcapping", "attn_logit_softcapping"),
    ("final_logit_softcapping", "final_logit_softcapping"),
];
