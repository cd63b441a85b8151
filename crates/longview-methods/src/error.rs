//! What can be wrong with methods as people write them.

use crate::method::Stage;

/// A method text cannot be understood or asks for what does not exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MethodError {
    /// The text does not follow the grammar.
    #[error("cannot read the method {text:?} at character {place}: {what}")]
    Syntax {
        /// The text as it was written, or its beginning.
        text: String,
        /// The place, counted in characters from 1; 0 for the text as a whole.
        place: usize,
        /// What is wrong there.
        what: String,
    },

    /// No method of the stage has this name.
    #[error("{flag}: there is no {stage} method {name:?}{hint}; known: {known}", flag = .stage.flag())]
    UnknownMethod {
        /// The stage.
        stage: Stage,
        /// The name that was written.
        name: String,
        /// The nearest name as a question, after a semicolon; may be empty.
        hint: String,
        /// The names there are.
        known: String,
    },

    /// No method that this one can be put together with has this name.
    #[error("{method}: {parameter} = {name}: there is no such method{hint}; known: {known}")]
    UnknownPart {
        /// The method.
        method: String,
        /// The parameter's name.
        parameter: String,
        /// The name that was written.
        name: String,
        /// The nearest name as a question, after a semicolon; may be empty.
        hint: String,
        /// The names there are.
        known: String,
    },

    /// A file that a method names cannot be used.
    #[error("{method}: {path}: {problem}")]
    File {
        /// The method.
        method: String,
        /// The file.
        path: String,
        /// What is wrong with it.
        problem: String,
    },

    /// The method has no parameter of this name.
    #[error("{method}: there is no parameter {name:?}{hint}; known: {known}")]
    UnknownParameter {
        /// The method.
        method: String,
        /// The name that was written.
        name: String,
        /// The nearest name as a question, after a semicolon; may be empty.
        hint: String,
        /// The names there are.
        known: String,
    },

    /// More values than parameters.
    #[error("{method}: too many values; its parameters are: {known}")]
    TooManyValues {
        /// The method.
        method: String,
        /// The names there are.
        known: String,
    },

    /// A parameter is given twice.
    #[error("{method}: {parameter} is given twice")]
    Twice {
        /// The method.
        method: String,
        /// The parameter's name.
        parameter: String,
    },

    /// A value that the parameter cannot have.
    #[error("{method}: {parameter} = {value} is not {wanted}")]
    Value {
        /// The method.
        method: String,
        /// The parameter's name.
        parameter: String,
        /// The value that was written.
        value: String,
        /// What the value must be.
        wanted: String,
    },

    /// A parameter without a default was not given.
    #[error("{method}: {parameter} must be given: {wanted}")]
    Missing {
        /// The method.
        method: String,
        /// The parameter's name.
        parameter: String,
        /// What the value must be.
        wanted: String,
    },

    /// The stage takes one method.
    #[error("{flag} takes one method, not {count}: {text}", flag = .stage.flag())]
    OneMethod {
        /// The stage.
        stage: Stage,
        /// How many were given.
        count: usize,
        /// The text as it was written, or its beginning.
        text: String,
    },

    /// A method that acts between the turns of a conversation, where there are none.
    #[error(
        "{flag} {text} acts between the turns of a conversation: longview chat has it, and the library's \
         Engine::prune",
        flag = .stage.flag()
    )]
    Conversation {
        /// The stage.
        stage: Stage,
        /// The text as it was written, or its beginning.
        text: String,
    },

    /// A selector such as `k=` or `layers 0-1=` where the stage has no use for one.
    #[error("{flag}: \"{selector}=\" cannot be used here; write the method alone", flag = .stage.flag())]
    Selector {
        /// The stage.
        stage: Stage,
        /// What stands before the equals sign.
        selector: String,
    },

    /// A selector that the store stage does not know.
    #[error("--store: \"{key}=\" is neither k=, v=, layers A-B=, sinks= nor recent={hint}")]
    StoreKey {
        /// What stands before the equals sign.
        key: String,
        /// The nearest name as a question; may be empty.
        hint: String,
    },

    /// Forms that make no sense together.
    #[error("--store: {why}")]
    StoreSense {
        /// Which, and what to write instead.
        why: String,
    },

    /// More ranges of layers than a store text may have.
    #[error("--store: at most 8 ranges of layers can have forms of their own")]
    StoreLayers,

    /// Tokens are to be exempt from no form.
    #[error(
        "--store: sinks= and recent= leave tokens out of a quantised form; name a form as well, as in \
         \"kivi, sinks=64\""
    )]
    StoreExempt,

    /// Something follows the method that chooses the token.
    #[error(
        "--decode: {finish} chooses the token, so nothing can follow it; move {after} before it"
    )]
    AfterFinish {
        /// The method that chooses.
        finish: String,
        /// What follows it.
        after: String,
    },
}

impl MethodError {
    /// The message for whoever gave the text as the field `field` of a request, and knows nothing of the
    /// program's flag for the same stage.
    pub fn in_field(&self, field: &str) -> String {
        let text = self.to_string();
        let flags = Stage::ALL.map(Stage::flag);
        match flags.into_iter().find(|flag| text.starts_with(flag)) {
            Some(flag) => text.replacen(flag, field, 1),
            None => text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::choice::Methods;

    #[test]
    fn a_field_of_a_request_is_named_in_place_of_a_flag() {
        let refused = |stage, text| Methods::new().set(stage, text).unwrap_err();
        for (stage, text) in [
            (Stage::Keep, "snapvk"),
            (Stage::Store, "f16, f32"),
            (Stage::Store, "x=f16"),
            (Stage::Decode, "greedy, top-k(4)"),
            (Stage::Prefill, "k=dense"),
        ] {
            let error = refused(stage, text);
            assert!(error.to_string().starts_with(stage.flag()), "{error}");
            let told = error.in_field("longview.x");
            assert!(
                told.starts_with("longview.x") && !told.contains("--"),
                "{told}"
            );
        }
        // What names no flag stays as it is.
        let error = refused(Stage::Keep, "snapkv(");
        assert_eq!(error.in_field("longview.keep"), error.to_string());
    }
}
