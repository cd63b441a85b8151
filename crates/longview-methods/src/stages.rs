//! The stages before reuse: the exact path of each, which is computed when nothing else is asked for,
//! and the forms that keys and values can be stored in.

use longview_kv::KvType;

use crate::method::{Build, Method, Stage};

/// The methods of the stages before keep; the first of a stage is its default.
pub(crate) static BEFORE_KEEP: &[Method] = &[
    exact(
        Stage::Prompt,
        "whole",
        "the whole prompt is read",
        Build::Nothing,
    ),
    exact(
        Stage::Prefill,
        "dense",
        "every query attends to every key before it",
        Build::Nothing,
    ),
];

/// The methods of the stages after it, up to reuse.
pub(crate) static AFTER_KEEP: &[Method] = &[
    exact(
        Stage::Store,
        "f16",
        "keys and values in half precision, as the default numerics class does",
        Build::Store(KvType::F16),
    ),
    exact(
        Stage::Store,
        "f32",
        "keys and values in single precision, as --numerics f32 does",
        Build::Store(KvType::F32),
    ),
    rounded(
        "bf16",
        "keys and values as bfloat16: each rounded by up to 0.4 %, of any size",
        KvType::BF16,
    ),
    rounded(
        "q8",
        "keys and values in 8 bits, a scale for every 32 channels of a token: each rounded by up to \
         0.4 % of the largest of its 32",
        KvType::Q8,
    ),
    rounded(
        "q4",
        "keys and values in 4 bits, a scale for every 32 channels of a token: each rounded by up to \
         6.7 % of the largest of its 32",
        KvType::Q4,
    ),
    exact(
        Stage::Read,
        "dense",
        "every decode step reads every key and value",
        Build::Nothing,
    ),
];

const fn exact(stage: Stage, name: &'static str, doc: &'static str, build: Build) -> Method {
    Method {
        stage,
        name,
        exact: true,
        paper: None,
        doc,
        parameters: &[],
        build,
    }
}

/// Keys and values in fewer bits than the model's numerics class has.
const fn rounded(name: &'static str, doc: &'static str, kv_type: KvType) -> Method {
    Method {
        exact: false,
        ..exact(Stage::Store, name, doc, Build::Store(kv_type))
    }
}
