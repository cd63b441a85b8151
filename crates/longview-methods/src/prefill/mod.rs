//! The prefill stage: which keys a query attends to while a prompt is read.

mod a_shape;

use crate::method::{Build, Method, Stage};

/// The methods of this stage; the first is the default.
pub(crate) static METHODS: &[Method] = &[
    Method {
        stage: Stage::Prefill,
        name: "dense",
        exact: true,
        paper: None,
        claim: None,
        doc: "every query attends to every key before it",
        parameters: &[],
        build: Build::Nothing,
    },
    a_shape::METHOD,
];
