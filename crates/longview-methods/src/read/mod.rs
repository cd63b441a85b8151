//! The read stage: which of the stored pairs one decode step touches.

mod quest;

use crate::method::{Build, Method, Stage};

/// The methods of this stage; the first is the default.
pub(crate) static METHODS: &[Method] = &[
    Method {
        stage: Stage::Read,
        name: "dense",
        exact: true,
        paper: None,
        claim: None,
        doc: "every decode step reads every key and value",
        parameters: &[],
        build: Build::Nothing,
    },
    quest::METHOD,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_lists_every_method_in_the_registrys_words() {
        let document = include_str!("../../../../docs/read.md");
        for method in METHODS.iter().chain(crate::prefill::METHODS) {
            let row = format!("| `{}` | {} |", method.name, method.doc);
            assert!(document.contains(&row), "docs/read.md lacks {row}");
        }
    }
}
