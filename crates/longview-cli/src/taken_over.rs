//! Tokens of a prompt that were not read again, by where they were found.

use std::collections::BTreeMap;

use longview::records::Record;
use longview::{BLOCK_TOKENS, Context, EngineError, KvError, Reuse};
use serde::Serialize;

use crate::failure::Failure;
use crate::progress::Progress;
use crate::saved;
use crate::session::{Session, show};
use crate::size::human_count;

/// Tokens the open context held already: of the documents asked before, of earlier turns.
const CONTEXT: &str = "context";

/// Tokens found in memory, where another context of this process has put them.
const MEMORY: &str = "memory";

/// Tokens whose keys and values were moved from another place in the text, which is approximate.
const MOVED: &str = "moved";

/// Tokens of a saved context of which a keep method has left some pairs, which is approximate.
const KEPT: &str = "kept";

/// Tokens taken over, by place: `context`, `memory`, `moved`, `kept`, or the name of a tier such as `disk`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(crate) struct TakenOver(BTreeMap<String, usize>);

impl TakenOver {
    /// The first `tokens` tokens of an open context.
    pub(crate) fn of_context(tokens: usize) -> TakenOver {
        let mut taken = TakenOver::default();
        taken.add(CONTEXT, tokens);
        taken
    }

    /// Lets `context` take over what the store has of `tokens`, which begin with what it holds.
    pub(crate) fn take_over(context: &mut Context, tokens: &[u32]) -> Result<TakenOver, Failure> {
        let store_error = |error: KvError| Failure::from(EngineError::from(error));
        let explanation = context.explain(tokens).map_err(store_error)?;
        let mut at = context.len();
        let held = context.attach(tokens).map_err(store_error)?;
        let mut taken = TakenOver::default();
        for (block, place) in explanation.places.iter().enumerate() {
            let end = held.min((block + 1) * BLOCK_TOKENS);
            if end > at {
                taken.add(place, end - at);
                at = end;
            }
        }
        // Put there by another process between the two looks.
        taken.add(MEMORY, held.saturating_sub(at));
        Ok(taken)
    }

    /// Makes `context`, an empty one, what a keep method has left of the one that `record` was made of, if it
    /// is of the same model and settings. `None` where that was saved whole.
    pub(crate) fn restored(
        context: &mut Context,
        record: &Record,
    ) -> Result<Option<TakenOver>, Failure> {
        let Some(left) = record.left() else {
            return Ok(None);
        };
        if let Some(origin) = context.origin() {
            let same = record.summary.check_origin(origin);
            same.map_err(saved::failure)?;
        }
        let restored = context.restore_kept(&record.tokens, left);
        restored.map_err(|error| Failure::from(EngineError::from(error)))?;
        let mut taken = TakenOver::default();
        taken.add(KEPT, record.tokens.len());
        Ok(Some(taken))
    }

    /// Lets `context`, which holds an earlier version of `tokens`, move what both have in common, and
    /// reads what lies between; `None`, with the context as it was or shortened, where nothing moved.
    pub(crate) fn moved(
        session: &Session,
        context: &mut Context,
        tokens: &[u32],
        reuse: Reuse,
        bar: &Progress,
    ) -> Result<Option<TakenOver>, Failure> {
        let realigned = match session
            .engine
            .realign(context, tokens, reuse, &mut |progress| show(bar, progress))
        {
            // There is another way to go on.
            Err(EngineError::Kv(
                KvError::WindowPassed { .. }
                | KvError::NoCheckpoint { .. }
                | KvError::PairsGone { .. },
            )) => {
                return Ok(None);
            }
            realigned => realigned?,
        };
        if realigned.moved == 0 {
            return Ok(None);
        }
        let mut taken =
            TakenOver::of_context(realigned.held - realigned.moved - realigned.computed);
        taken.add(MOVED, realigned.moved);
        Ok(Some(taken))
    }

    /// All of them.
    pub(crate) fn tokens(&self) -> usize {
        self.0.values().sum()
    }

    /// Those that were in a tier below memory.
    pub(crate) fn below_memory(&self) -> usize {
        let elsewhere = [CONTEXT, MEMORY, MOVED, KEPT];
        let below = self
            .0
            .iter()
            .filter(|(place, _)| !elsewhere.contains(&place.as_str()));
        below.map(|(_, tokens)| tokens).sum()
    }

    /// Both together.
    pub(crate) fn and(mut self, other: &TakenOver) -> TakenOver {
        for (place, &tokens) in &other.0 {
            self.add(place, tokens);
        }
        self
    }

    /// Without `tokens` tokens that were taken over and then had to be computed again, because they could not
    /// be read: from places below memory first.
    pub(crate) fn without(&self, tokens: usize) -> TakenOver {
        let mut left = tokens;
        let mut taken = self.clone();
        let is_near = |place: &str| [CONTEXT, MEMORY, MOVED, KEPT].contains(&place);
        for near in [false, true] {
            let places = taken.0.iter_mut();
            for (_, of_place) in places.filter(|(place, _)| is_near(place) == near) {
                let gone = left.min(*of_place);
                *of_place -= gone;
                left -= gone;
            }
        }
        taken.0.retain(|_, tokens| *tokens > 0);
        taken
    }

    /// A sentence for people, where tokens came from elsewhere than the open context.
    pub(crate) fn sentence(&self, prompt: usize) -> Option<String> {
        let found: Vec<String> = self
            .0
            .iter()
            .filter(|(place, _)| *place != CONTEXT)
            .map(|(place, &tokens)| match place.as_str() {
                MOVED => format!("{} moved (approximate)", human_count(tokens)),
                KEPT => format!("{} kept in part (approximate)", human_count(tokens)),
                place => format!("{} from {place}", human_count(tokens)),
            })
            .collect();
        (!found.is_empty()).then(|| {
            format!(
                "not read again, of the prompt's {} tokens: {}",
                human_count(prompt),
                found.join(", ")
            )
        })
    }

    fn add(&mut self, place: &str, tokens: usize) {
        if tokens > 0 {
            *self.0.entry(place.to_owned()).or_default() += tokens;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_add_up_and_only_what_came_from_elsewhere_is_told() {
        let mut found = TakenOver::of_context(100);
        assert_eq!(found.sentence(120), None);
        found.add("disk", 6400);
        found.add("disk", 0);
        found.add("cloud", 0);
        let all = found.and(&TakenOver::of_context(7));
        assert_eq!(all.tokens(), 6507);
        let json = serde_json::to_value(&all).unwrap();
        assert_eq!(json, serde_json::json!({"context": 107, "disk": 6400}));
        let less = serde_json::to_value(all.without(400)).unwrap();
        assert_eq!(less, serde_json::json!({"context": 107, "disk": 6000}));
        let less = serde_json::to_value(all.without(6450)).unwrap();
        assert_eq!(less, serde_json::json!({"context": 57}));
        assert_eq!(all.without(10_000).tokens(), 0);
        let sentence = all.sentence(7000).unwrap();
        assert!(
            sentence.ends_with("7,000 tokens: 6,400 from disk"),
            "{sentence}"
        );
    }
}
