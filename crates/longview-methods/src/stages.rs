//! The exact path of every stage before reuse: what is computed when nothing else is asked for.

use longview_kv::KvType;

use crate::method::{Build, Method, Stage};

/// The stages' exact methods; the first of a stage is its default.
pub(crate) static METHODS: [Method; 6] = [
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
    exact(
        Stage::Keep,
        "all",
        "every key and value stays",
        Build::Nothing,
    ),
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
