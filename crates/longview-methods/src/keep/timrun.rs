//! Paper: <https://arxiv.org/abs/2507.16784> (Luo et al., Beyond Context Limits: Subconscious Threads for
//! Long-Horizon Reasoning, 2025); its runtime is closed, and what is not in the paper is ours.
//!
//! A conversation's finished work leaves the context: results of tools that an answer has followed, and
//! lists of sub-tasks that have closed. The last `last` pieces stay, since a conclusion is read from them.
//! What follows a gap is read again with the positions that follow now, so that the context is what
//! reading the rest alone gives, to the bit (`tail=anew`, the paper's); or it moves up with the keys and
//! values it has (`tail=moved`, its cheaper variant). No pair is scored. Any model will do; the paper's
//! was trained to write such trees, and others may miss what has left. Work leaves between turns and, where an
//! answer itself reports it as finished, while that is written.

use longview_engine::{Prune, Tail};

use crate::method::{Build, Domain, Method, Parameter, Stage};

/// `timrun(last, tail)`.
pub(crate) const METHOD: Method = Method {
    stage: Stage::Keep,
    name: "timrun",
    exact: false,
    paper: Some("https://arxiv.org/abs/2507.16784"),
    claim: Some("less than half of the context in memory at about equal accuracy"),
    doc: "finished tool results and sub-tasks leave a conversation",
    parameters: &[
        Parameter {
            name: "last",
            default: "1",
            unit: "pieces of work",
            doc: "so many that were finished last stay",
            domain: Domain::Whole,
        },
        Parameter {
            name: "tail",
            default: "anew",
            unit: "",
            doc: "what follows a gap: anew is read again, moved keeps what was computed",
            domain: Domain::Word(&["anew", "moved"]),
        },
    ],
    build: Build::Prune(|arguments| Prune {
        last: arguments.count("last"),
        tail: match arguments.word("tail") {
            "moved" => Tail::Moved,
            _ => Tail::Anew,
        },
    }),
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::choice::Methods;

    #[test]
    fn it_is_for_conversations_alone() {
        let mut methods = Methods::new();
        methods.set_in_conversation(Stage::Keep, "timrun").unwrap();
        let prune = |last, tail| Some(Prune { last, tail });
        assert_eq!(methods.prune(), prune(1, Tail::Anew));
        assert!(methods.keep().is_none());
        methods
            .set_in_conversation(Stage::Keep, "timrun(0, tail=moved)")
            .unwrap();
        assert_eq!(methods.prune(), prune(0, Tail::Moved));
        methods.set_in_conversation(Stage::Keep, "knorm").unwrap();
        assert_eq!(methods.prune(), None);
        let refused = Methods::new().set(Stage::Keep, "timrun(3)").unwrap_err();
        let message = refused.to_string();
        assert!(message.contains("timrun(last=3, tail=anew)"), "{message}");
        assert!(message.contains("longview chat"), "{message}");
    }
}
