//! How many contexts one tenant may have, and how many of them are open.
//!
//! A context that nobody names is in its record and in the store alone: its list of tokens and the block
//! that is not full do not stay in memory for it. Those named last are open.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use super::Contexts;
use super::entry::Entry;
use crate::error::ApiError;

/// The most contexts of one tenant.
pub(crate) const MOST_CONTEXTS: usize = 4096;

/// The most of them that are open while they could be closed.
const MOST_OPEN: usize = 256;

/// The most tokens of those.
const MOST_OPEN_TOKENS: usize = 32 << 20;

/// So many were named last and may be in use by those who named them.
const IN_USE: u64 = 32;

impl Contexts {
    /// Refuses one more context than there may be.
    pub(super) fn check_count(&self) -> Result<(), ApiError> {
        // Those that are in a record are counted there.
        let in_memory = |entry: &&Entry| !entry.saved;
        let unsaved = self.lock().values().filter(in_memory).count();
        let count = unsaved + self.saved_summaries()?.len();
        if count < MOST_CONTEXTS {
            return Ok(());
        }
        Err(ApiError::conflict(format!(
            "there are {count} contexts, and no more than {MOST_CONTEXTS} may be; delete some, or give them a \
             ttl_seconds"
        ))
        .code("too_many_contexts"))
    }

    /// Notes that a context was named.
    pub(super) fn see(&self, entry: &mut Entry) {
        entry.seen = 1 + self.named.fetch_add(1, Ordering::Relaxed);
    }

    /// Lets go of contexts that can be opened again, those named longest ago first, until no more are open
    /// than may be.
    pub(super) fn let_idle_go(&self, entries: &mut BTreeMap<String, Entry>) {
        let last = self.named.load(Ordering::Relaxed);
        let mut idle: Vec<(u64, usize, String)> = entries
            .iter()
            .filter(|(_, entry)| entry.is_idle())
            .map(|(id, entry)| (entry.seen, entry.tokens.len(), id.clone()))
            .collect();
        idle.sort_unstable();
        let mut count = idle.len();
        let mut tokens: usize = idle.iter().map(|(_, tokens, _)| tokens).sum();
        for (seen, own, id) in idle {
            // Those just named are about to be used.
            if (count <= MOST_OPEN && tokens <= MOST_OPEN_TOKENS) || seen + IN_USE > last {
                return;
            }
            entries.remove(&id);
            count -= 1;
            tokens -= own;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use longview::{Engine, EngineOptions};

    use super::super::{Draft, Form};
    use super::*;
    use crate::clock::{SystemClock, Times};

    fn entry(tokens: usize, saved: bool) -> Entry {
        let draft = Draft {
            title: String::new(),
            label: None,
            form: Form::Plain,
            tokens: vec![7; tokens],
            ttl_seconds: None,
            pinned: false,
            methods: None,
        };
        let mut entry = Entry::new(&Times::new(Arc::new(SystemClock::new())), draft);
        entry.saved = saved;
        entry
    }

    #[test]
    fn those_named_longest_ago_are_closed_and_no_more_are_made_than_may_be() {
        let engine = Engine::open(&EngineOptions::default()).unwrap();
        let contexts = Contexts::new(Arc::new(engine.tenant("")), None, "");
        let mut entries = contexts.lock();
        let mut put = |id: usize, mut entry: Entry| {
            contexts.see(&mut entry);
            entries.insert(format!("{id:012}"), entry);
        };
        put(0, entry(1, false));
        (1..=MOST_OPEN + 5).for_each(|id| put(id, entry(1, true)));
        contexts.let_idle_go(&mut entries);
        // What is in no record stays, whoever named it last.
        let first = entries.keys().take(2).map(|id| id.parse().unwrap());
        assert_eq!(first.collect::<Vec<usize>>(), [0, 6]);
        assert_eq!(entries.len(), 1 + MOST_OPEN);

        let half = MOST_OPEN_TOKENS / 2;
        for id in 1000..1003 {
            let mut large = entry(half, true);
            contexts.see(&mut large);
            entries.insert(format!("{id:012}"), large);
        }
        (2000..2000 + IN_USE as usize).for_each(|id| {
            let mut one = entry(1, true);
            contexts.see(&mut one);
            entries.insert(format!("{id:012}"), one);
        });
        contexts.let_idle_go(&mut entries);
        let large = entries.values().filter(|one| one.tokens.len() == half);
        assert_eq!(large.count(), 1);

        for id in 0..MOST_CONTEXTS {
            entries.insert(format!("{id:012}"), entry(1, false));
        }
        drop(entries);
        let refused = contexts.check_count().unwrap_err();
        assert_eq!(refused.code, Some("too_many_contexts"));
    }
}
