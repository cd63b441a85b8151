//! The read stage: which of the stored pairs one decode step touches.

use crate::method::{Build, Method, Stage};

/// The methods of this stage; the first is the default.
pub(crate) static METHODS: &[Method] = &[Method {
    stage: Stage::Read,
    name: "dense",
    exact: true,
    paper: None,
    doc: "every decode step reads every key and value",
    parameters: &[],
    build: Build::Nothing,
}];
