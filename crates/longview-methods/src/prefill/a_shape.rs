//! Paper: <https://arxiv.org/abs/2407.02490> (Jiang et al., MInference 1.0, 2024), its pattern A-shape.
//!
//! While a prompt is read, a query attends to the first tokens and to a window of the latest ones:
//! time grows with the length, not with its square. All keys and values are kept, and decoding reads
//! them all. What lies between window and first tokens reaches a query only through later layers.
//!
//! Longview's own: both ends are whole blocks of 64 tokens, so a query sees at least what was asked
//! for and up to 63 tokens more at either; and the pattern is the same for all heads of all full
//! layers, where the paper chooses one of three for every head.

use std::ops::Range;

use longview_kv::BLOCK_TOKENS;
use longview_kv::pattern::{Pattern, QueryBlock};

use crate::method::{Build, Domain, Method, Parameter, Stage};

/// `a-shape(sinks, local)`.
pub(super) const METHOD: Method = Method {
    stage: Stage::Prefill,
    name: "a-shape",
    exact: false,
    paper: Some("https://arxiv.org/abs/2407.02490"),
    claim: None,
    doc: "while a prompt is read, a query attends to the first tokens and to a window of the latest",
    parameters: &[
        Parameter {
            name: "sinks",
            default: "128",
            unit: "tokens",
            doc: "the first tokens that every query attends to",
            domain: Domain::Count,
        },
        Parameter {
            name: "local",
            default: "4096",
            unit: "tokens",
            doc: "the tokens before it that every query attends to",
            domain: Domain::Count,
        },
    ],
    build: Build::Prefill(|arguments| {
        Box::new(AShape {
            sinks: arguments.count("sinks").div_ceil(BLOCK_TOKENS),
            local: arguments.count("local").div_ceil(BLOCK_TOKENS),
        })
    }),
};

/// In blocks.
struct AShape {
    sinks: usize,
    local: usize,
}

impl Pattern for AShape {
    fn blocks(&self, query: &QueryBlock, seen: &mut Vec<Range<usize>>) {
        let end = query.block + 1;
        let window = query.block.saturating_sub(self.local);
        if window <= self.sinks {
            seen.push(0..end);
        } else {
            seen.extend([0..self.sinks, window..end]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::choice::Methods;

    #[test]
    fn blocks_by_hand() {
        let mut methods = Methods::new();
        methods
            .set(Stage::Prefill, "a-shape(sinks=65, local=128)")
            .unwrap();
        let prefill = methods.prefill().unwrap();
        assert_eq!(prefill.text, "a-shape(sinks=65, local=128)");
        for (block, expected) in [
            (0, &[(0, 1)][..]),
            (2, &[(0, 3)]),
            // Its window begins where the two blocks of first tokens end.
            (4, &[(0, 5)]),
            (5, &[(0, 2), (3, 6)]),
            (100, &[(0, 2), (98, 101)]),
        ] {
            let mut seen = Vec::new();
            let query = QueryBlock { layer: 0, block };
            prefill.pattern.blocks(&query, &mut seen);
            let seen: Vec<_> = seen.iter().map(|range| (range.start, range.end)).collect();
            assert_eq!(seen, expected, "{block}");
        }
        methods.set(Stage::Prefill, "dense").unwrap();
        assert!(methods.prefill().is_none());
        assert!(methods.set(Stage::Prefill, "a-shape(local=0)").is_err());
    }
}
