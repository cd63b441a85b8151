//! Paper: <https://arxiv.org/abs/2406.10774> (Tang et al., Quest, 2024).
//!
//! Nothing leaves the cache. For every page of keys the smallest and the largest number of each channel
//! are kept. They bound what a query can score against any key of the page: Σ max(q·min, q·max) over
//! channels. A row of an answer reads the pages with the highest bounds and no others, with the first
//! page and its own among them. Prompts and the first layers, where attention is spread, read all.
//!
//! Longview's own: what is read are blocks of 64 tokens, the pages of its store; a block's bound is
//! the highest of its parts of `page` tokens, 16 as in the paper, so the bounds are as tight as there
//! and a block is read whole for one part's sake. Query heads that share a KV head share what
//! they read: a block's bound is the highest of theirs. The budget counts all blocks that are read,
//! at least 3 as in the published evaluation. Bounds of 1,024 tokens above find the same blocks sooner.

use longview_kv::BLOCK_TOKENS;
use longview_kv::keep::Budget;
use longview_kv::read::{Part, ReadPlan, RowQuery, Select};

use crate::arguments::Arguments;
use crate::error::MethodError;
use crate::method::{Build, Domain, Method, Parameter, Stage};

/// The fewest blocks that a row reads: the first, its own, and one that it chooses.
const LEAST_BLOCKS: usize = 3;

/// `quest(budget, page, dense)`.
pub(super) const METHOD: Method = Method {
    stage: Stage::Read,
    name: "quest",
    exact: false,
    paper: Some("https://arxiv.org/abs/2406.10774"),
    claim: Some(
        "attention up to 7.03 times as fast at negligible loss, with budgets \
             of 256 to 4,096 tokens",
    ),
    doc: "while an answer is written, each step reads the pages whose keys may score highest",
    parameters: &[
        Parameter {
            name: "budget",
            default: "2048",
            unit: "tokens",
            doc: "what a step reads with each KV head, in tokens or as a share of those before it",
            domain: Domain::Reading,
        },
        Parameter {
            name: "page",
            default: "16",
            unit: "tokens",
            doc: "the tokens whose keys share bounds, 16, 32 or 64: fewer are tighter and take more memory",
            domain: Domain::Count,
        },
        Parameter {
            name: "dense",
            default: "2",
            unit: "layers",
            doc: "the first layers, which read everything",
            domain: Domain::Whole,
        },
    ],
    build: Build::Read(build),
};

fn build(arguments: &Arguments) -> Result<Box<dyn Select>, MethodError> {
    let part = match arguments.count("page") {
        16 => Part::Tokens16,
        32 => Part::Tokens32,
        64 => Part::Tokens64,
        other => {
            return Err(MethodError::Value {
                method: METHOD.name.to_owned(),
                parameter: "page".to_owned(),
                value: other.to_string(),
                wanted: "16, 32 or 64".to_owned(),
            });
        }
    };
    Ok(Box::new(Quest {
        budget: arguments.budget("budget"),
        part,
        dense: arguments.count("dense"),
    }))
}

struct Quest {
    budget: Budget,
    part: Part,
    dense: usize,
}

impl Quest {
    /// Blocks that a row reads which sees `blocks`.
    fn blocks(&self, blocks: usize) -> usize {
        let wanted = match self.budget {
            Budget::Pairs(tokens) => tokens / BLOCK_TOKENS,
            Budget::Share(share) => (share * blocks as f64).floor() as usize,
            Budget::Bytes(_) => unreachable!("Domain::Reading takes no bytes"),
        };
        wanted.clamp(LEAST_BLOCKS, blocks.max(LEAST_BLOCKS))
    }
}

impl Select for Quest {
    fn bounds(&self) -> Option<Part> {
        Some(self.part)
    }

    fn reads_all(&self, layer: usize, blocks: usize) -> bool {
        layer < self.dense || self.blocks(blocks) >= blocks
    }

    fn select(&self, row: &mut RowQuery<'_>, plan: &mut ReadPlan) {
        let (latest, end) = (row.latest(), row.own() + 1);
        let first = usize::from(latest > 0);
        let free = self.blocks(end).saturating_sub(first + end - latest).max(1);
        plan.add(0..first);
        for &block in row.best(first..latest, free) {
            plan.add(block as usize..block as usize + 1);
        }
        plan.add(latest..end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::choice::Methods;

    fn quest(text: &str) -> Quest {
        let mut methods = Methods::new();
        methods.set(Stage::Read, text).unwrap();
        let resolved = crate::registry::resolve(Stage::Read, text).unwrap();
        let arguments = &resolved[0].1;
        assert_eq!(methods.read().unwrap().text, arguments.to_string());
        Quest {
            budget: arguments.budget("budget"),
            part: Part::Tokens16,
            dense: arguments.count("dense"),
        }
    }

    #[test]
    fn budgets_by_hand() {
        let tokens = quest("quest(budget=700)");
        // Ten blocks of 64 tokens and a part of one; three at least, and never more than there are.
        let of = |quest: &Quest, blocks: &[usize]| -> Vec<usize> {
            blocks.iter().map(|&blocks| quest.blocks(blocks)).collect()
        };
        assert_eq!(of(&tokens, &[3, 10, 11, 512]), [3, 10, 10, 10]);
        assert_eq!(
            of(&quest("quest(budget=10%)"), &[20, 39, 512]),
            [3, 3, 51],
            "a share of the blocks a row sees, rounded down"
        );
        assert_eq!(of(&quest("quest(budget=64)"), &[512]), [3]);
        assert!(tokens.reads_all(0, 512) && tokens.reads_all(1, 512));
        assert!(!tokens.reads_all(2, 11) && tokens.reads_all(2, 10));
        assert!(!quest("quest(dense=0)").reads_all(0, 33));
        assert!(quest("quest(budget=100%, dense=0)").reads_all(0, 10_000));
    }

    #[test]
    fn what_it_cannot_be_is_refused() {
        for (text, words) in [
            (
                "quest(budget=64MiB)",
                "a whole number of tokens of at least 1",
            ),
            ("quest(budget=0)", "share up to 100%"),
            ("quest(budget=200%)", "share up to 100%"),
            ("quest(page=20)", "page = 20 is not 16, 32 or 64"),
            ("quest(pages=16)", "did you mean \"page\"?"),
            ("qest", "did you mean \"quest\"?"),
        ] {
            let error = Methods::new().set(Stage::Read, text).unwrap_err();
            assert!(error.to_string().contains(words), "{text}: {error}");
        }
        let mut methods = Methods::new();
        methods.set(Stage::Read, "quest").unwrap();
        assert_eq!(
            methods.read().unwrap().text,
            "quest(budget=2048, page=16, dense=2)"
        );
        assert!(methods.notices()[0].starts_with("read quest is approximate"));
        methods.set(Stage::Read, "dense").unwrap();
        assert!(methods.read().is_none());
    }
}
