//! What tensors are called: by role, in a Hugging Face folder and in a GGUF file.

use crate::arch::Names;

/// What a tensor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
    /// Gate and up of all experts of a layer in one tensor.
    AllExpertsGateUp,
    /// Down of all experts in one tensor, under the name that folders have for it.
    AllExpertsDown,
    /// How much of the shared expert a row uses.
    SharedRouter,
    SharedGate,
    SharedUp,
    SharedDown,
    /// Of a gated delta layer: for each key head its query, key, values and gates.
    DeltaQkvz,
    /// For each key head what is written and how fast is forgotten.
    DeltaBetaAlpha,
    DeltaQkv,
    DeltaZ,
    DeltaBeta,
    DeltaAlpha,
    DeltaConv,
    /// How fast states are forgotten: its logarithm in folders, minus itself in GGUF files.
    DeltaRate,
    DeltaRateBias,
    DeltaNorm,
    DeltaOutput,
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
    (
        Role::AllExpertsGateUp,
        "model.layers.{l}.mlp.experts.gate_up_proj",
    ),
    (
        Role::AllExpertsDown,
        "model.layers.{l}.mlp.experts.down_proj",
    ),
    (
        Role::SharedRouter,
        "model.layers.{l}.mlp.shared_expert_gate",
    ),
    (
        Role::SharedGate,
        "model.layers.{l}.mlp.shared_expert.gate_proj",
    ),
    (Role::SharedUp, "model.layers.{l}.mlp.shared_expert.up_proj"),
    (
        Role::SharedDown,
        "model.layers.{l}.mlp.shared_expert.down_proj",
    ),
    (Role::DeltaQkvz, "model.layers.{l}.linear_attn.in_proj_qkvz"),
    (
        Role::DeltaBetaAlpha,
        "model.layers.{l}.linear_attn.in_proj_ba",
    ),
    (Role::DeltaQkv, "model.layers.{l}.linear_attn.in_proj_qkv"),
    (Role::DeltaZ, "model.layers.{l}.linear_attn.in_proj_z"),
    (Role::DeltaBeta, "model.layers.{l}.linear_attn.in_proj_b"),
    (Role::DeltaAlpha, "model.layers.{l}.linear_attn.in_proj_a"),
    (Role::DeltaConv, "model.layers.{l}.linear_attn.conv1d"),
    (Role::DeltaRate, "model.layers.{l}.linear_attn.A_log"),
    (Role::DeltaRateBias, "model.layers.{l}.linear_attn.dt_bias"),
    (Role::DeltaNorm, "model.layers.{l}.linear_attn.norm"),
    (Role::DeltaOutput, "model.layers.{l}.linear_attn.out_proj"),
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
    (Role::AllExpertsGateUp, "blk.{l}.ffn_gate_up_exps"),
    (Role::AllExpertsDown, "blk.{l}.ffn_down_exps"),
    (Role::SharedRouter, "blk.{l}.ffn_gate_inp_shexp"),
    (Role::SharedGate, "blk.{l}.ffn_gate_shexp"),
    (Role::SharedUp, "blk.{l}.ffn_up_shexp"),
    (Role::SharedDown, "blk.{l}.ffn_down_shexp"),
    (Role::DeltaQkvz, "blk.{l}.ssm_in"),
    (Role::DeltaBetaAlpha, "blk.{l}.ssm_ba"),
    (Role::DeltaQkv, "blk.{l}.attn_qkv"),
    (Role::DeltaZ, "blk.{l}.attn_gate"),
    (Role::DeltaBeta, "blk.{l}.ssm_beta"),
    (Role::DeltaAlpha, "blk.{l}.ssm_alpha"),
    (Role::DeltaConv, "blk.{l}.ssm_conv1d"),
    (Role::DeltaRate, "blk.{l}.ssm_a"),
    (Role::DeltaRateBias, "blk.{l}.ssm_dt"),
    (Role::DeltaNorm, "blk.{l}.ssm_norm"),
    (Role::DeltaOutput, "blk.{l}.ssm_out"),
];

/// The name of the weight with this role. `names` are the architecture's own.
pub(crate) fn weight(
    naming: Naming,
    names: Names,
    role: Role,
    layer: usize,
    expert: usize,
) -> String {
    let suffix = match (naming, role) {
        // Parameters of a layer itself and not of a part of it.
        (_, Role::DeltaRate) => "",
        (Naming::Gguf, Role::DeltaRateBias) => ".bias",
        (
            Naming::HuggingFace,
            Role::DeltaRateBias | Role::AllExpertsGateUp | Role::AllExpertsDown,
        ) => "",
        _ => ".weight",
    };
    stem(naming, names, role, layer, expert) + suffix
}

/// The name of the bias that is added to the products with the weight of this role.
pub(crate) fn bias(
    naming: Naming,
    names: Names,
    role: Role,
    layer: usize,
    expert: usize,
) -> String {
    stem(naming, names, role, layer, expert) + ".bias"
}

fn stem(naming: Naming, names: Names, role: Role, layer: usize, expert: usize) -> String {
    let tables = match naming {
        Naming::HuggingFace => [names.hugging_face, HUGGING_FACE],
        Naming::Gguf => [names.gguf, GGUF],
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
        let own = Names::hugging_face(&[(Role::Router, "model.layers.{l}.block_sparse_moe.gate")]);
        let of = |naming, role| weight(naming, own, role, 3, 7);
        let folder = Naming::HuggingFace;
        assert_eq!(
            of(folder, Role::Router),
            "model.layers.3.block_sparse_moe.gate.weight"
        );
        assert_eq!(
            of(folder, Role::ExpertUp),
            "model.layers.3.mlp.experts.7.up_proj.weight"
        );
        assert_eq!(of(Naming::Gguf, Role::Router), "blk.3.ffn_gate_inp.weight");
        assert_eq!(of(Naming::Gguf, Role::DeltaRateBias), "blk.3.ssm_dt.bias");
    }
}
