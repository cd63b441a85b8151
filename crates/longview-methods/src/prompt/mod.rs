//! The prompt stage: which text enters the model.

use crate::method::{Build, Method, Stage};

/// The methods of the prompt stage; the first is its default.
pub(crate) static METHODS: &[Method] = &[Method {
    stage: Stage::Prompt,
    name: "whole",
    exact: true,
    paper: None,
    claim: None,
    doc: "the whole prompt is read",
    parameters: &[],
    build: Build::Nothing,
}];
