//! What can go wrong in the store.

use crate::forms::KvForm;
use crate::ledger::Purpose;
use crate::tier::TierError;

/// An error of the store; what contexts hold is as it was when one is returned.
#[derive(Debug, thiserror::Error)]
pub enum KvError {
    /// A prefill pattern cannot be used.
    #[error("--prefill {method}: {why}")]
    PatternRefused {
        /// Its canonical text.
        method: String,
        /// What stands in the way.
        why: String,
    },
    /// A read method cannot be used.
    #[error("--read {method}: {why}")]
    ReadRefused {
        /// Its canonical text.
        method: String,
        /// What stands in the way.
        why: String,
    },
    /// Attention that cannot be observed.
    #[error(
        "what attention rests on cannot be observed under --keep {method}: what it drops is not there to be \
         looked at; leave one of the two out"
    )]
    WatchRefused {
        /// The keep method.
        method: String,
    },
    /// The memory limit does not allow it.
    #[error(
        "out of memory: {purpose} needs {} more, but {} of the {} allowed are in use; \
         give more with --memory, or shorten the context",
        human_bytes(*.wanted), human_bytes(*.used), human_bytes(*.limit)
    )]
    OverLimit {
        /// What the bytes were for.
        purpose: Purpose,
        /// Bytes asked for.
        wanted: u64,
        /// Bytes in use, all purposes together.
        used: u64,
        /// Bytes allowed in all.
        limit: u64,
    },
    /// Positions that a window layer has already let go.
    #[error(
        "cannot go back to token {wanted}: sliding-window layers have dropped everything before \
         token {kept}; create the context anew"
    )]
    WindowPassed {
        /// Length asked for, in tokens.
        wanted: usize,
        /// First token that the window layers still hold.
        kept: usize,
    },
    /// Positions where recurrent layers kept no state.
    #[error(
        "cannot go back to token {wanted}: recurrent layers kept their state at token {nearest} \
         and none between; go back to there and read the rest again"
    )]
    NoCheckpoint {
        /// Length asked for, in tokens.
        wanted: usize,
        /// The nearest length before it that the context can go back to.
        nearest: usize,
    },
    /// Tokens to be removed or moved, in a state that cannot be taken apart.
    #[error(
        "tokens {}..{} cannot be removed or moved: recurrent layers keep one state of all they \
         have read; go back to before them and read the rest again", span.start, span.end
    )]
    SpanInState {
        /// The tokens.
        span: std::ops::Range<usize>,
    },
    /// Tokens moved to where first tokens have a form of their own.
    #[error(
        "text cannot be moved among the first {tokens} tokens: they are stored in a form of their own; \
         read it anew there, or store the context without sinks="
    )]
    SinksMoved {
        /// How many tokens these are.
        tokens: usize,
    },
    /// Layers with a form of their own that the model does not have.
    #[error(
        "--store gives layers {first}-{last} the form {form}, but the model has {layers} layers, numbered \
         from 0; name layers up to {}", .layers.saturating_sub(1)
    )]
    NoSuchLayers {
        /// The first layer named.
        first: u32,
        /// The last layer named.
        last: u32,
        /// Their form.
        form: KvForm,
        /// Layers of the model.
        layers: usize,
    },
    /// Positions whose pairs a keep method has dropped.
    #[error(
        "cannot go back to token {wanted} or move text there: {method} decides which pairs stay, and \
         those before token {edge} are settled; read the text again in a new context"
    )]
    PairsGone {
        /// Length asked for, in tokens.
        wanted: usize,
        /// The first token that is whole.
        edge: usize,
        /// The keep method.
        method: String,
    },
    /// A keep method that cannot do what is asked of it.
    #[error("--keep {method}: {why}")]
    KeepRefused {
        /// The method's canonical text.
        method: String,
        /// Why, and what to do instead.
        why: String,
    },
    /// A keep method that needs what was not gathered.
    #[error(
        "the keep method needs {what}, which is not known: that part of the context was taken over \
         or read without it; read it anew with the method chosen (--cache-max 0 takes nothing over)"
    )]
    NotObserved {
        /// What is not known.
        what: String,
    },
    /// Truncation beyond the end.
    #[error("cannot truncate to {wanted} tokens: the context holds {held}")]
    BeyondEnd {
        /// Length asked for, in tokens.
        wanted: usize,
        /// Tokens held.
        held: usize,
    },
    /// The tokens do not begin with what the context holds.
    #[error(
        "the tokens do not begin with those that the context holds; truncate it to what they have in common"
    )]
    Parted,
    /// Blocks of the context could not be read back from where they were kept.
    #[error(transparent)]
    Lost(#[from] TierError),
    /// A pass that has failed before was asked to go on.
    #[error("the pass has failed already")]
    PassOver,
    /// The batch holds no rows.
    #[error("a batch needs at least one token in every segment")]
    EmptyBatch,
    /// A context made for another model or numerics class.
    #[error("the context was created for a different model or numerics class")]
    WrongIdentity,
}

/// Bytes as people read them, such as `1.5 GiB`: in units of 1,024, one decimal above bytes.
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{bytes} B")
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_read_well() {
        assert_eq!(human_bytes(17), "17 B");
        assert_eq!(human_bytes(1023), "1023 B");
        assert_eq!(human_bytes(1536), "1.5 KiB");
        assert_eq!(human_bytes(3 << 29), "1.5 GiB");
    }
}
