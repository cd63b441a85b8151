//! The stages before keep: the exact path of each, which is computed when nothing else is asked for.

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
