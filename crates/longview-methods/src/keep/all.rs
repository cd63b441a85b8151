//! Nothing leaves: the exact path.

use crate::method::{Build, Method, Stage};

/// `all`.
pub(crate) const METHOD: Method = Method {
    stage: Stage::Keep,
    name: "all",
    exact: true,
    paper: None,
    claim: None,
    doc: "every key and value stays",
    parameters: &[],
    build: Build::Nothing,
};
