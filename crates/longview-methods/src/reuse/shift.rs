//! Paper: <https://arxiv.org/abs/2311.04934> (Gim et al., Prompt Cache, 2023) for reusing attention
//! states of text at other positions; here by moving whole spans of one earlier version.
//!
//! When a text has changed in the middle (a thinking part is gone, a date is another), spans that
//! both versions have are moved to their new positions instead of being computed again. Rotary
//! embedding is corrected exactly, by rotating the queries; what the span's tokens saw before them
//! is not, so the result is an approximation.

use longview_engine::Reuse;

use crate::method::{Build, Domain, Method, Parameter, Stage};

/// `shift(least)`.
pub(crate) const METHOD: Method = Method {
    stage: Stage::Reuse,
    name: "shift",
    exact: false,
    paper: Some("https://arxiv.org/abs/2311.04934"),
    claim: None,
    doc: "when a conversation's earlier text changes, unchanged later spans are moved, not read again",
    parameters: &[Parameter {
        name: "least",
        default: "64",
        unit: "tokens",
        doc: "shorter spans are read again",
        domain: Domain::Count,
    }],
    build: Build::Reuse(|arguments| Reuse::Shift {
        least_tokens: arguments.count("least"),
    }),
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::choice::Methods;

    #[test]
    fn the_text_says_how_long_a_span_must_be() {
        let mut methods = Methods::new();
        assert_eq!(methods.reuse(), Reuse::Prefix);
        methods.set(Stage::Reuse, "shift").unwrap();
        assert_eq!(methods.reuse(), Reuse::Shift { least_tokens: 64 });
        methods.set(Stage::Reuse, "shift(200)").unwrap();
        assert_eq!(methods.reuse(), Reuse::Shift { least_tokens: 200 });
        assert!(methods.set(Stage::Reuse, "shift(0)").is_err());
    }
}
