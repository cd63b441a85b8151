//! The parameters that keep methods share, so that they mean the same everywhere.

use crate::method::{Domain, Parameter, Role};

/// How much stays.
pub(crate) const fn budget(default: &'static str) -> Parameter {
    Parameter {
        name: "budget",
        default,
        unit: "pairs a KV head, % of the prompt, or bytes",
        doc: "how much stays, on average over heads and layers",
        domain: Domain::Budget,
    }
}

/// The first tokens, which always stay.
pub(crate) const fn sinks(default: &'static str) -> Parameter {
    Parameter {
        name: "sinks",
        default,
        unit: "tokens",
        doc: "first tokens of the context that always stay",
        domain: Domain::Whole,
    }
}

/// The last tokens, which always stay.
pub(crate) const fn recent(default: &'static str) -> Parameter {
    Parameter {
        name: "recent",
        default,
        unit: "tokens",
        doc: "last tokens that always stay",
        domain: Domain::Whole,
    }
}

/// The last tokens, as a part of the budget.
pub(crate) const fn recent_share(default: &'static str) -> Parameter {
    Parameter {
        name: "recent-share",
        default,
        unit: "share",
        doc: "part of the budget that goes to the last tokens",
        domain: Domain::Share,
    }
}

/// How the budget is spread.
pub(crate) const fn alloc(default: &'static str) -> Parameter {
    Parameter {
        name: "alloc",
        default,
        unit: "",
        doc: "how the budget is spread over heads and layers",
        domain: Domain::Part(Role::Budgets),
    }
}

/// What evicted pairs leave behind.
pub(crate) const MERGE: Parameter = Parameter {
    name: "merge",
    default: "none",
    unit: "",
    doc: "what evicted pairs leave behind in those that stay",
    domain: Domain::Part(Role::Merge),
};

/// Whether runs of tokens stay or leave whole.
pub(crate) const CHUNKS: Parameter = Parameter {
    name: "chunks",
    default: "1",
    unit: "tokens",
    doc: "whole runs of so many tokens stay or leave, by the mean of their scores (ChunkKV); 1: each token \
          by itself",
    domain: Domain::Added(&Domain::Count),
};

/// How often pairs leave while text is generated, where papers speak of prompts alone.
pub(crate) const DECODE_TOO: Parameter = Parameter {
    domain: Domain::Added(&Domain::Every),
    ..decode("never")
};

/// How often pairs leave while a prompt is read.
pub(crate) const fn block(default: &'static str) -> Parameter {
    Parameter {
        name: "block",
        default,
        unit: "tokens",
        doc: "pairs leave each time so many tokens of the prompt have been read, so that the budget \
              holds meanwhile; never: only at its end",
        domain: Domain::Every,
    }
}

/// How often pairs leave while text is generated.
pub(crate) const fn decode(default: &'static str) -> Parameter {
    Parameter {
        name: "decode",
        default,
        unit: "tokens",
        doc: "pairs leave each time so many tokens were generated; never: what is generated stays",
        domain: Domain::Every,
    }
}

/// What positions are counted by.
pub(crate) const fn positions(default: &'static str) -> Parameter {
    Parameter {
        name: "positions",
        default,
        unit: "",
        doc: "text: keys keep the rotation of their places in the text; slots: of their places among what \
              is held, so that with block and decode a text may be longer than the model's positions",
        domain: Domain::Word(&["text", "slots"]),
    }
}
