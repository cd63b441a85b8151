//! Stored responses of a tenant: what `previous_response_id` goes on from.
//!
//! They are kept in memory, as text, up to a limit of bytes; beyond it those that were not used for the
//! longest time go. A response refers to the one it went on from, so a conversation costs what was said in
//! it once; it stays whole when an earlier response is deleted or had to go.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Map, Value};

use crate::app::new_id;
use crate::error::ApiError;

/// The most bytes of a tenant's stored responses.
const MOST_BYTES: usize = 64 << 20;

/// Bytes that a response takes beside its text.
const OVERHEAD: usize = 512;

/// The stored responses of one tenant.
pub(crate) struct Responses {
    most_bytes: usize,
    /// Bytes of all turns, those included that only later ones refer to.
    bytes: Arc<AtomicUsize>,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    entries: HashMap<String, Entry>,
    /// Counts uses, to tell which was long ago.
    uses: u64,
}

struct Entry {
    turn: Arc<Turn>,
    /// How many of the turn's items were given.
    inputs: usize,
    /// The response as JSON.
    response: Box<str>,
    used: u64,
}

/// A request's items and the answer's, behind those of the turn before.
struct Turn {
    previous: Option<Arc<Turn>>,
    /// A JSON list.
    items: Box<str>,
    _counted: Counted,
}

/// Bytes that count until they are dropped.
struct Counted {
    bytes: usize,
    of: Arc<AtomicUsize>,
}

/// A conversation up to a stored response.
pub(crate) struct Chain(Arc<Turn>);

/// What is to be stored when the answer is there.
pub(crate) struct Draft {
    previous: Option<Chain>,
    items: Vec<Value>,
}

impl Default for Responses {
    fn default() -> Responses {
        Responses::of_bytes(MOST_BYTES)
    }
}

impl Responses {
    /// At most `most_bytes` bytes of them.
    fn of_bytes(most_bytes: usize) -> Responses {
        Responses {
            most_bytes,
            bytes: Arc::default(),
            held: Mutex::default(),
        }
    }

    /// Stores the response called `id`, and lets go of others for it.
    pub(super) fn keep(
        &self,
        id: &str,
        draft: Draft,
        output: &[Value],
        response: &Map<String, Value>,
    ) {
        let inputs = draft.items.len();
        let items: Vec<Value> = draft
            .items
            .into_iter()
            .chain(output.iter().cloned())
            .collect();
        let items = Value::Array(items).to_string().into_boxed_str();
        // A map of values is always JSON.
        let response = serde_json::to_string(response)
            .unwrap_or_default()
            .into_boxed_str();
        let bytes = items.len() + response.len() + OVERHEAD;
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let turn = Turn {
            previous: draft.previous.map(|chain| chain.0),
            items,
            _counted: Counted {
                bytes,
                of: Arc::clone(&self.bytes),
            },
        };
        let mut held = self.lock();
        let used = held.next_use();
        let entry = Entry {
            turn: Arc::new(turn),
            inputs,
            response,
            used,
        };
        held.entries.insert(id.to_owned(), entry);
        while self.bytes() > self.most_bytes {
            let oldest = held.entries.iter().min_by_key(|(_, entry)| entry.used);
            let Some(oldest) = oldest.map(|(id, _)| id.clone()) else {
                break;
            };
            held.entries.remove(&oldest);
        }
    }

    /// A stored response.
    pub(super) fn show(&self, id: &str) -> Result<Value, ApiError> {
        self.with(id, |entry| parsed(&entry.response))
    }

    /// The items that a stored response answers.
    pub(super) fn input_items(&self, id: &str) -> Result<Vec<Value>, ApiError> {
        self.with(id, |entry| {
            let mut items = entry.turn.items();
            items.truncate(entry.inputs);
            items
        })
    }

    /// The conversation up to a stored response.
    pub(super) fn chain(&self, id: &str) -> Result<Chain, ApiError> {
        let found = self.with(id, |entry| Chain(Arc::clone(&entry.turn)));
        found.map_err(|error| ApiError {
            param: Some("previous_response_id".to_owned()),
            ..error.code("previous_response_not_found")
        })
    }

    /// Forgets a response.
    pub(super) fn delete(&self, id: &str) -> Result<(), ApiError> {
        match self.lock().entries.remove(id) {
            Some(_) => Ok(()),
            None => Err(unknown(id)),
        }
    }

    /// Bytes of all that is kept.
    fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    fn with<T>(&self, id: &str, work: impl FnOnce(&Entry) -> T) -> Result<T, ApiError> {
        let mut held = self.lock();
        let used = held.next_use();
        let entry = held.entries.get_mut(id).ok_or_else(|| unknown(id))?;
        entry.used = used;
        Ok(work(entry))
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        // Entries are whole at every unlock, so a panic elsewhere does not spoil them.
        self.held
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Held {
    fn next_use(&mut self) -> u64 {
        self.uses += 1;
        self.uses
    }
}

impl Chain {
    /// All items, in the order in which they were said.
    pub(super) fn items(&self) -> Vec<Value> {
        let mut turns = vec![&*self.0];
        while let Some(previous) = &turns[turns.len() - 1].previous {
            turns.push(&**previous);
        }
        turns.into_iter().rev().flat_map(Turn::items).collect()
    }
}

impl Draft {
    /// Of a request with these items; each gets a name of its own, unless it has one.
    pub(super) fn new(previous: Option<Chain>, mut items: Vec<Value>) -> Draft {
        for fields in items.iter_mut().filter_map(Value::as_object_mut) {
            if !fields.get("id").is_some_and(Value::is_string) {
                fields.insert("id".to_owned(), new_id("item_").into());
            }
        }
        Draft { previous, items }
    }
}

impl Turn {
    fn items(&self) -> Vec<Value> {
        match parsed(&self.items) {
            Value::Array(items) => items,
            _ => Vec::new(),
        }
    }
}

/// A conversation may be longer than the stack is deep.
impl Drop for Turn {
    fn drop(&mut self) {
        let mut next = self.previous.take();
        while let Some(mut turn) = next.and_then(Arc::into_inner) {
            next = turn.previous.take();
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.of.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).expect("it was written as JSON")
}

fn unknown(id: &str) -> ApiError {
    ApiError::not_found(format!(
        "there is no stored response {id:?}: it was not stored, was deleted, had to make room, or is \
         another server's; send the whole conversation as input (what was read of it is taken over)"
    ))
    .code("response_not_found")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn keep(responses: &Responses, id: &str, previous: Option<&str>, text: &str) {
        let previous = previous.map(|id| responses.chain(id).unwrap());
        let draft = Draft::new(previous, vec![json!({ "text": text })]);
        let response = Map::from_iter([("id".to_owned(), id.into())]);
        responses.keep(id, draft, &[json!({ "id": "out", "text": id })], &response);
    }

    fn texts(chain: &Chain) -> Vec<String> {
        let text = |item: &Value| item["text"].as_str().unwrap().to_owned();
        chain.items().iter().map(text).collect()
    }

    #[test]
    fn conversations_stay_whole_when_their_beginnings_go() {
        let responses = Responses::default();
        keep(&responses, "a", None, "one");
        keep(&responses, "b", Some("a"), "two");
        keep(&responses, "c", Some("a"), "other");
        responses.delete("a").unwrap();
        assert!(responses.show("a").is_err() && responses.delete("a").is_err());
        assert_eq!(
            texts(&responses.chain("b").unwrap()),
            ["one", "a", "two", "b"]
        );
        assert_eq!(
            texts(&responses.chain("c").unwrap()),
            ["one", "a", "other", "c"]
        );
        let given = responses.input_items("b").unwrap();
        assert_eq!((given.len(), given[0]["text"].as_str()), (1, Some("two")));
        assert!(given[0]["id"].as_str().unwrap().starts_with("item_"));
        assert_eq!(responses.show("b").unwrap(), json!({ "id": "b" }));
        // What nobody refers to any more counts no more.
        responses.delete("b").unwrap();
        responses.delete("c").unwrap();
        assert_eq!(responses.bytes(), 0);
    }

    #[test]
    fn bytes_are_bounded_and_the_longest_unused_go_first() {
        let responses = Responses::of_bytes(4000);
        keep(&responses, "a", None, "x");
        keep(&responses, "b", None, "x");
        for at in 0..100 {
            responses.show("a").unwrap();
            keep(&responses, &format!("n{at}"), None, "y");
            assert!(responses.bytes() <= 4000);
        }
        assert!(responses.show("a").is_ok() && responses.show("b").is_err());
        // One that is larger than all that may be is not kept, and nothing else either.
        keep(&responses, "large", None, &"z".repeat(5000));
        assert!(responses.show("large").is_err());
        assert_eq!(responses.bytes(), 0);
    }

    #[test]
    fn a_long_conversation_is_let_go_without_a_deep_stack() {
        let responses = Responses::default();
        keep(&responses, "0", None, "x");
        for at in 1..50_000 {
            let (before, id) = ((at - 1).to_string(), at.to_string());
            keep(&responses, &id, Some(&before), "x");
            responses.delete(&before).unwrap();
        }
        responses.delete("49999").unwrap();
        assert_eq!(responses.bytes(), 0);
    }
}
