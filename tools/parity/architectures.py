"""The tiny checkpoints: one entry for every architecture and variant that Longview reads.

Every `config` is written the way published checkpoints write it (flat `rope_theta` and
`rope_scaling`), because those are the files that people have. Dimensions are small, but every
matrix row is a multiple of 32 long, so that the checkpoints can also be quantised.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

VOCABULARY = 128
PROMPT_TOKENS = 300


@dataclass(frozen=True)
class Fixture:
    """One tiny checkpoint.

    `ablations` are changes to the configuration that must change the logits: they prove that the
    feature named by the fixture takes part in the expected numbers. `runs` maps the name of an
    expected file to the number of prompt tokens of its forward pass. `auto_class` is the class of
    transformers that loads it.
    """

    name: str
    config: dict[str, Any]
    generation: dict[str, Any] | None = None
    dtype: str = "float32"
    shards: int = 1
    ablations: tuple[dict[str, Any], ...] = ()
    runs: dict[str, int] = field(default_factory=lambda: {"expected": PROMPT_TOKENS})
    auto_class: str = "AutoModelForCausalLM"


def _base(model_type: str, architecture: str, **changes: Any) -> dict[str, Any]:
    """A configuration that all families share, with the family's own fields on top."""
    config = {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }
    config.update(changes)
    return {key: value for key, value in config.items() if value is not _ABSENT}


_ABSENT = object()

_LLAMA3_SCALING = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_type": "llama3",
}


def _llama_family() -> list[Fixture]:
    llama = "LlamaForCausalLM"
    return [
        Fixture(
            "llama2",
            # Like the first llama files: no head_dim, no rope_theta, one key-value head a head.
            _base("llama", llama, num_key_value_heads=4, rope_theta=_ABSENT, rope_scaling=None),
            generation={"bos_token_id": 1, "eos_token_id": 2, "do_sample": True, "temperature": 0.6, "top_p": 0.9},
            ablations=({"rope_theta": 500.0},),
        ),
        Fixture(
            "llama31",
            _base(
                "llama", llama, head_dim=16, rope_theta=500000.0, rope_scaling=_LLAMA3_SCALING,
                eos_token_id=[2, 3, 5], attention_bias=False, mlp_bias=False,
            ),
            generation={"bos_token_id": 1, "eos_token_id": [2, 3, 5], "do_sample": True, "temperature": 0.6, "top_p": 0.9},
            ablations=({"rope_scaling": None}, {"rope_theta": 10000.0}),
        ),
        Fixture(
            "llama31_bias",
            _base(
                "llama", llama, head_dim=16, rope_theta=10000.0, rope_scaling=_LLAMA3_SCALING,
                attention_bias=True, mlp_bias=True, tie_word_embeddings=True,
            ),
            ablations=({"rope_scaling": None},),
        ),
        Fixture(
            "llama_linear",
            # The older spelling: "type" instead of "rope_type".
            _base("llama", llama, num_hidden_layers=2, head_dim=16, rope_scaling={"type": "linear", "factor": 4.0}),
            ablations=({"rope_scaling": None},),
        ),
        Fixture(
            "llama_yarn",
            _base(
                "llama", llama, num_hidden_layers=2, head_dim=16,
                rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256},
            ),
            ablations=({"rope_scaling": None}, {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
        ),
        Fixture(
            "mistral",
            _base("mistral", "MistralForCausalLM", head_dim=16, rope_theta=1000000.0, sliding_window=None),
            dtype="float16",
            ablations=({"sliding_window": 64},),
        ),
        Fixture(
            "mistral_window",
            _base("mistral", "MistralForCausalLM", head_dim=8, sliding_window=64),
            dtype="bfloat16",
            ablations=({"sliding_window": None}, {"sliding_window": 63}),
        ),
        Fixture(
            "mixtral",
            _base(
                "mixtral", "MixtralForCausalLM", num_hidden_layers=2, intermediate_size=32, rope_theta=1000000.0,
                num_local_experts=4, num_experts_per_tok=2, sliding_window=None, output_router_logits=False,
            ),
            ablations=({"num_experts_per_tok": 1},),
        ),
    ]


def _qwen_family() -> list[Fixture]:
    moe = dict(
        head_dim=16, rope_theta=1000000.0, rms_norm_eps=1e-6, moe_intermediate_size=32, num_experts=4,
        num_experts_per_tok=2, attention_bias=False, sliding_window=None, use_sliding_window=False,
    )
    return [
        Fixture(
            "qwen2",
            _base(
                "qwen2", "Qwen2ForCausalLM", rope_theta=1000000.0, rms_norm_eps=1e-6,
                sliding_window=64, use_sliding_window=False, max_window_layers=3,
            ),
            generation={
                "bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": 1, "do_sample": True,
                "repetition_penalty": 1.1, "temperature": 0.7, "top_k": 20, "top_p": 0.8,
            },
            shards=3,
            ablations=({"use_sliding_window": True, "max_window_layers": 1},),
        ),
        Fixture(
            "qwen2_tied",
            _base(
                "qwen2", "Qwen2ForCausalLM", rope_theta=1000000.0, rms_norm_eps=1e-6, tie_word_embeddings=True,
                sliding_window=64, use_sliding_window=True, max_window_layers=2,
            ),
            ablations=({"use_sliding_window": False}, {"max_window_layers": 1}),
        ),
        Fixture(
            "qwen3",
            _base(
                "qwen3", "Qwen3ForCausalLM", head_dim=24, rope_theta=1000000.0, rms_norm_eps=1e-6,
                tie_word_embeddings=True, attention_bias=False, sliding_window=None, use_sliding_window=False,
                max_window_layers=3,
            ),
            ablations=({"rope_theta": 1000.0},),
        ),
        Fixture(
            "qwen3_moe",
            _base(
                "qwen3_moe", "Qwen3MoeForCausalLM", **moe, norm_topk_prob=True, decoder_sparse_step=1,
                mlp_only_layers=[1],
            ),
            ablations=({"norm_topk_prob": False}, {"num_experts_per_tok": 1}),
        ),
        Fixture(
            "qwen3_moe_step",
            # Every second layer has experts, and their weights are not normalised.
            _base(
                "qwen3_moe", "Qwen3MoeForCausalLM", **(moe | {"num_experts_per_tok": 3}), num_hidden_layers=2,
                norm_topk_prob=False, decoder_sparse_step=2, mlp_only_layers=[],
            ),
            ablations=({"norm_topk_prob": True},),
        ),
    ]


def _hybrid_family() -> list[Fixture]:
    linear = dict(
        head_dim=16, rms_norm_eps=1e-6, attention_bias=False, linear_conv_kernel_dim=4, linear_key_head_dim=16,
        linear_value_head_dim=16, linear_num_key_heads=2, linear_num_value_heads=4, num_hidden_layers=4,
    )
    experts = dict(
        num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, shared_expert_intermediate_size=32,
    )
    # Qwen3.5 writes the newer spelling from the start; its sections order the parts of an image.
    rope = {
        "rope_type": "default", "rope_theta": 1000000.0, "partial_rotary_factor": 0.5,
        "mrope_interleaved": True, "mrope_section": [2, 1, 1],
    }
    return [
        Fixture(
            "qwen3_next",
            _base(
                "qwen3_next", "Qwen3NextForCausalLM", **linear, **experts, rope_theta=1000000.0,
                partial_rotary_factor=0.25, full_attention_interval=2, norm_topk_prob=True, decoder_sparse_step=1,
                mlp_only_layers=[],
            ),
            ablations=(
                {"partial_rotary_factor": 1.0},
                {"num_experts_per_tok": 1},
                {"norm_topk_prob": False},
            ),
        ),
        Fixture(
            "qwen3_next_dense",
            # A layer without experts, layer types in words, biases, as many value heads as key heads.
            _base(
                "qwen3_next", "Qwen3NextForCausalLM",
                **(linear | {"linear_num_value_heads": 2, "linear_value_head_dim": 32, "attention_bias": True}),
                **experts, rope_theta=10000.0, norm_topk_prob=False, decoder_sparse_step=1, mlp_only_layers=[1],
                layer_types=["linear_attention", "linear_attention", "full_attention", "full_attention"],
            ),
            ablations=({"partial_rotary_factor": 0.5}, {"norm_topk_prob": True}),
        ),
        Fixture(
            "qwen3_5",
            _base(
                "qwen3_5_text", "Qwen3_5ForCausalLM", **linear, rope_theta=_ABSENT, rope_parameters=rope,
                full_attention_interval=4, tie_word_embeddings=True,
            ),
            ablations=({"rope_parameters": rope | {"partial_rotary_factor": 1.0}},),
        ),
        Fixture(
            "qwen3_5_moe",
            _base(
                "qwen3_5_moe_text", "Qwen3_5MoeForCausalLM",
                **(linear | {"linear_conv_kernel_dim": 3, "linear_num_value_heads": 6}), **experts,
                intermediate_size=_ABSENT, rope_theta=_ABSENT, rope_parameters=rope,
                layer_types=["linear_attention", "full_attention", "linear_attention", "linear_attention"],
            ),
            ablations=({"num_experts_per_tok": 1},),
        ),
    ]


def _gemma_family() -> list[Fixture]:
    gemma = dict(
        head_dim=16, rms_norm_eps=1e-6, hidden_activation="gelu_pytorch_tanh", attention_bias=False,
        bos_token_id=2, eos_token_id=1, pad_token_id=0, tie_word_embeddings=_ABSENT, sliding_window=64,
    )
    return [
        Fixture(
            "gemma2",
            _base(
                "gemma2", "Gemma2ForCausalLM", **gemma, hidden_act="gelu_pytorch_tanh", num_hidden_layers=4,
                query_pre_attn_scalar=24, attn_logit_softcapping=4.0, final_logit_softcapping=10.0,
                cache_implementation="hybrid",
            ),
            ablations=(
                {"query_pre_attn_scalar": 16},
                {"attn_logit_softcapping": None},
                {"final_logit_softcapping": None},
                {"sliding_window": 65},
            ),
        ),
        Fixture(
            "gemma3",
            _base(
                "gemma3_text", "Gemma3ForCausalLM", **gemma, hidden_act=_ABSENT, num_hidden_layers=4,
                query_pre_attn_scalar=20, attn_logit_softcapping=None, final_logit_softcapping=None,
                rope_theta=1000000.0, rope_local_base_freq=10000.0,
                rope_scaling={"factor": 8.0, "rope_type": "linear"}, sliding_window_pattern=3,
                cache_implementation="hybrid",
            ),
            generation={"bos_token_id": 2, "eos_token_id": [1, 106], "pad_token_id": 0, "do_sample": True, "top_k": 64, "top_p": 0.95},
            ablations=(
                {"query_pre_attn_scalar": 16},
                {"rope_scaling": None},
                {"rope_local_base_freq": 1000000.0},
                {"sliding_window_pattern": 2},
                {"sliding_window": 65},
            ),
        ),
    ]


def _phi_family() -> list[Fixture]:
    phi = dict(num_attention_heads=2, num_key_value_heads=1, pad_token_id=0, attention_bias=False)
    short = [1.0, 1.05, 1.1, 1.3, 1.5, 1.8, 2.0, 2.2]
    long = [1.2, 1.5, 2.5, 4.0, 6.5, 9.0, 14.0, 20.0]
    longrope = {"type": "longrope", "short_factor": short, "long_factor": long}
    return [
        Fixture(
            "phi3",
            _base("phi3", "Phi3ForCausalLM", **phi, partial_rotary_factor=0.5, rope_scaling=None, sliding_window=64),
            ablations=({"partial_rotary_factor": 1.0}, {"sliding_window": None}),
        ),
        Fixture(
            "phi3_longrope",
            _base(
                "phi3", "Phi3ForCausalLM", **phi, rope_scaling=longrope, original_max_position_embeddings=128,
                sliding_window=None,
            ),
            ablations=({"rope_scaling": None}, {"rope_scaling": longrope | {"long_factor": short}}),
            # The short factors hold up to 128 positions, the long ones beyond.
            runs={"expected": PROMPT_TOKENS, "expected_short": 100},
        ),
        Fixture(
            "phi3_longrope_partial",
            # Like Phi-4-mini: only part of a head is rotated, so there are fewer factors.
            _base(
                "phi3", "Phi3ForCausalLM", **phi, rope_scaling=longrope | {"short_factor": short[:6], "long_factor": long[:6]},
                partial_rotary_factor=0.75, original_max_position_embeddings=128, sliding_window=None,
                tie_word_embeddings=True, num_hidden_layers=2,
            ),
            ablations=({"rope_scaling": None},),
            runs={"expected": PROMPT_TOKENS, "expected_short": 100},
        ),
    ]


def _models_that_also_see() -> list[Fixture]:
    """Text models inside larger ones; their `text_config` names only what differs from the defaults."""
    vision = dict(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14,
    )
    gemma_text = dict(
        model_type="gemma3_text", vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=6,
        num_attention_heads=2, num_key_value_heads=1, sliding_window=64,
        rope_scaling={"factor": 8.0, "rope_type": "linear"},
    )
    mistral_text = dict(
        model_type="mistral", vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, rope_theta=1e9, sliding_window=None,
        tie_word_embeddings=False,
    )
    return [
        Fixture(
            "gemma3_vision",
            {
                "architectures": ["Gemma3ForConditionalGeneration"],
                "model_type": "gemma3",
                "boi_token_index": VOCABULARY - 3,
                "eoi_token_index": VOCABULARY - 2,
                "image_token_index": VOCABULARY - 1,
                "eos_token_id": [1, 106],
                "mm_tokens_per_image": 4,
                "text_config": gemma_text,
                "vision_config": vision | {"model_type": "siglip_vision_model", "vision_use_head": False},
            },
            dtype="bfloat16",
            ablations=(
                {"text_config": gemma_text | {"rope_scaling": None}},
                {"text_config": gemma_text | {"sliding_window": 65}},
                {"text_config": gemma_text | {"query_pre_attn_scalar": 128}},
            ),
            auto_class="AutoModelForImageTextToText",
        ),
        Fixture(
            "mistral3_vision",
            {
                "architectures": ["Mistral3ForConditionalGeneration"],
                "model_type": "mistral3",
                "image_token_index": VOCABULARY - 1,
                "multimodal_projector_bias": False,
                "projector_hidden_act": "gelu",
                "spatial_merge_size": 2,
                "tie_word_embeddings": False,
                "text_config": mistral_text,
                "vision_config": vision | {"model_type": "pixtral", "head_dim": 8},
                "vision_feature_layer": -1,
            },
            dtype="bfloat16",
            ablations=({"text_config": mistral_text | {"rope_theta": 1e4}},),
            auto_class="AutoModelForImageTextToText",
        ),
    ]


def all_fixtures() -> list[Fixture]:
    """Every fixture, in the order of the families."""
    families = _llama_family() + _qwen_family() + _hybrid_family() + _gemma_family() + _phi_family()
    return families + _models_that_also_see()
