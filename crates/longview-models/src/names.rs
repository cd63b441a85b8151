//! What tensors are called: by role, in a Hugging Face folder and in a GGUF file.

/// What a tensor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub(crate) enum Role {
    TokenEmbedding,
    OutputNorm,
    Output,
    AttentionNorm,
    Query,
    Key,
    Value,
    /// Queries, keys and values in one tensor.
    QueryKeyValue,
    AttentionOutput,
    QueryNorm,
    KeyNorm,
    /// Norm of the attention's output.
    PostAttentionNorm,
    /// Norm before the feed-forward part.
    FfnNorm,
    /// Norm of the feed-forward part's output.
    PostFfnNorm,
    Gate,
    Up,
    /// Gate and up in one tensor.
    GateUp,
    Down,
    Router,
    ExpertGate,
    ExpertUp,
    ExpertDown,
}

/// Which convention names follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Naming {
    /// `model.layers.0.self_attn.q_proj`; every expert has tensors of its own.
    HuggingFace,
    /// `blk.0.attn_q`; the experts of a layer lie in one tensor of three dimensions.
    Gguf,
}

/// Names that an architecture gives to some roles, before those common to all.
pub(crate) type NameTable = &'static [(Role, &'static str)];

/// `{l}` stands for the layer, `{e}` for the expert.
const HUGGING_FACE: NameTable = &[
    (Role::TokenEmbedding, "model.embed_tokens"),
    (Role::OutputNorm, "model.norm"),
    (Role::Output, "lm_head"),
    (Role::AttentionNorm, "model.layers.{l}.input_layernorm"),
    (Role::Query, "model.layers.{l}.self_attn.q_proj"),
    (Role::Key, "model.layers.{l}.self_attn.k_proj"),
    (Role::Value, "model.layers.{l}.self_attn.v_proj"),
    (Role::QueryKeyValue, "model.layers.{l}.self_attn.qkv_proj"),
    (Role::AttentionOutput, "model.layers.{l}.self_attn.o_proj"),
    (Role::QueryNorm, "model.layers.{l}.self_attn.q_norm"),
    (Role::KeyNorm, "model.layers.{l}.self_attn.k_norm"),
    (Role::FfnNorm, "model.layers.{l}.post_attention_layernorm"),
    (
        Role::PostFfnNorm,
        "model.layers.{l}.post_feedforward_layernorm",
    ),
    (Role::Gate, "model.layers.{l}.mlp.gate_proj"),
    (Role::Up, "model.layers.{l}.mlp.up_proj"),
    (Role::GateUp, "model.layers.{l}.mlp.gate_up_proj"),
    (Role::Down, "model.layers.{l}.mlp.down_proj"),
    (Role::Router, "model.layers.{l}.mlp.gate"),
    (
        Role::ExpertGate,
        "model.layers.{l}.mlp.experts.{e}.gate_proj",
    ),
    (Role::ExpertUp, "model.layers.{l}.mlp.experts.{e}.up_proj"),
    (
        Role::ExpertDown,
        "model.layers.{l}.mlp.experts.{e}.down_proj",
    ),
];

const GGUF: NameTable = &[
    (Role::TokenEmbedding, "token_embd"),
    (Role::OutputNorm, "output_norm"),
    (Role::Output, "output"),
    (Role::AttentionNorm, "blk.{l}.attn_norm"),
    (Role::Query, "blk.{l}.attn_q"),
    (Role::Key, "blk.{l}.attn_k"),
    (Role::Value, "blk.{l}.attn_v"),
    (Role::QueryKeyValue, "blk.{l}.attn_qkv"),
    (Role::AttentionOutput, "blk.{l}.attn_output"),
    (Role::QueryNorm, "blk.{l}.attn_q_norm"),
    (Role::KeyNorm, "blk.{l}.attn_k_norm"),
    (Role::PostAttentionNorm, "blk.{l}.post_attention_norm"),
    (Role::FfnNorm, "blk.{l}.ffn_norm"),
    (Role::PostFfnNorm, "blk.{l}.post_ffw_norm"),
    (Role::Gate, "blk.{l}.ffn_gate"),
    (Role::Up, "blk.{l}.ffn_up"),
    // The phi3 converter leaves the fused tensor under the name of its second half.
    (Role::GateUp, "blk.{l}.ffn_up"),
    (Role::Down, "blk.{l}.ffn_down"),
    (Role::Router, "blk.{l}.ffn_gate_inp"),
    (Role::ExpertGate, "blk.{l}.ffn_gate_exps"),
    (Role::ExpertUp, "blk.{l}.ffn_up_exps"),
    (Role::ExpertDown, "blk.{l}.ffn_down_exps"),
];

/// The stem of a tensor's name, to which `.weight` or `.bias` is appended.
///
/// `own` are the architecture's own Hugging Face names.
pub(crate) fn stem(
    naming: Naming,
    own: NameTable,
    role: Role,
    layer: usize,
    expert: usize,
) -> String {
    let tables: [NameTable; 2] = match naming {
        Naming::HuggingFace => [own, HUGGING_FACE],
        Naming::Gguf => [&[], GGUF],
    };
    let pattern = tables
        .into_iter()
        .flatten()
        .find_map(|(known, pattern)| (*known == role).then_some(*pattern))
        .expect("every role an architecture uses stands in its own table or the common one");
    pattern
        .replace("{l}", &layer.to_string())
        .replace("{e}", &expert.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_names_win_and_numbers_are_filled_in() {
        let own: NameTable = &[(Role::Router, "model.layers.{l}.block_sparse_moe.gate")];
        let of = |naming, role| stem(naming, own, role, 3, 7);
        assert_eq!(
            of(Naming::HuggingFace, Role::Router),
            "model.layers.3.block_sparse_moe.gate"
        );
        assert_eq!(
            of(Naming::HuggingFace, Role::ExpertUp),
            "model.layers.3.mlp.experts.7.up_proj"
        );
        assert_eq!(of(Naming::Gguf, Role::Router), "blk.3.ffn_gate_inp");
    }
}
