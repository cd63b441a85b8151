//! Stored responses of a tenant: what `previous_response_id` goes on from.
//!
//! They are kept in memory, as text, up to a limit of bytes; beyond it those that were not used for the
//! longest time go. A response refers to the one it went on from, so a conversation costs what was said in
//! it once; it stays whole when an earlier response is deleted or had to go. Where the server has a folder
//! they are also in a [log](super::log), and there after a restart.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Map, Value};

use super::log::{KeptTurn, Line, Log};
use crate::app::new_id;
use crate::error::ApiError;
use crate::folder::Folder;

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
    log: Option<Log>,
}

#[derive(Default)]
struct Held {
    entries: HashMap<String, Entry>,
    /// Counts uses, to tell which was long ago.
    uses: u64,
}

struct Entry {
    turn: Arc<Turn>,
    /// The response as JSON.
    response: Box<str>,
    used: u64,
}

/// A request's items and the answer's, behind those of the turn before.
struct Turn {
    id: String,
    previous: Option<Arc<Turn>>,
    /// How many of the items were given.
    inputs: usize,
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
            log: None,
        }
    }

    /// Those in a tenant's folder, and what stands in the way of keeping more there.
    pub(crate) fn open(folder: &Folder) -> (Responses, Option<ApiError>) {
        Responses::default().with_log(folder.responses().as_deref())
    }

    fn with_log(mut self, path: Option<&Path>) -> (Responses, Option<ApiError>) {
        let (log, lines) = match path.map(Log::open) {
            None => return (self, None),
            Some(Err(error)) => return (self, Some(error)),
            Some(Ok(opened)) => opened,
        };
        let before = lines.len();
        self.take_in(lines);
        let after = self.lock().turns().len();
        let trouble = match after < before {
            true => log.rewrite(|| self.lock().turns()).err(),
            false => None,
        };
        self.log = Some(log);
        (self, trouble)
    }

    /// Takes in what a log says.
    fn take_in(&self, lines: Vec<Line>) {
        let (mut kept, mut order, mut gone) = (HashMap::new(), Vec::new(), HashSet::new());
        for line in lines {
            match line {
                Line::Gone(id) => drop(gone.insert(id)),
                Line::Kept(turn) => {
                    order.push(turn.id.clone());
                    kept.insert(turn.id.clone(), turn);
                }
            }
        }
        let mut turns: HashMap<String, Arc<Turn>> = HashMap::new();
        let mut held = self.lock();
        for id in order {
            // From the first that is not there yet on; each is taken out once, so a circle ends.
            let mut chain = Vec::new();
            let mut next = Some(id);
            while let Some(turn) = next.take().and_then(|id| kept.remove(&id)) {
                next.clone_from(&turn.previous);
                chain.push(turn);
            }
            for turn in chain.into_iter().rev() {
                let KeptTurn {
                    id,
                    previous,
                    inputs,
                    items,
                    response,
                } = turn;
                let response = response.filter(|_| !gone.contains(&id));
                let bytes = items.len() + response.as_ref().map_or(0, |text| text.len()) + OVERHEAD;
                let turn = Arc::new(Turn {
                    id: id.clone(),
                    previous: previous.and_then(|id| turns.get(&id).cloned()),
                    inputs,
                    items,
                    _counted: self.count(bytes),
                });
                turns.insert(id.clone(), Arc::clone(&turn));
                if let Some(response) = response {
                    let used = held.next_use();
                    held.entries.insert(
                        id,
                        Entry {
                            turn,
                            response,
                            used,
                        },
                    );
                }
            }
        }
        drop(turns);
        self.make_room(&mut held);
    }

    /// Writes to the log what [`Responses::keep`] or [`Responses::delete`] say; may take a while.
    pub(super) fn write(&self, line: &Line) -> Result<(), ApiError> {
        let Some(log) = &self.log else { return Ok(()) };
        let bytes = log.append(line)?;
        // What takes more room than all that may be kept is mostly of no use any more.
        if bytes > 3 * self.most_bytes as u64 {
            log.rewrite(|| self.lock().turns())?;
        }
        Ok(())
    }

    /// Stores the response called `id`, and lets go of others for it. Returns what the log is to say.
    pub(super) fn keep(
        &self,
        id: &str,
        draft: Draft,
        output: &[Value],
        response: &Map<String, Value>,
    ) -> Option<Line> {
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
        let turn = Turn {
            id: id.to_owned(),
            previous: draft.previous.map(|chain| chain.0),
            inputs,
            _counted: self.count(items.len() + response.len() + OVERHEAD),
            items,
        };
        let mut held = self.lock();
        let used = held.next_use();
        let entry = Entry {
            turn: Arc::new(turn),
            response,
            used,
        };
        let line = self.log.is_some().then(|| Line::Kept(entry.as_kept()));
        held.entries.insert(id.to_owned(), entry);
        self.make_room(&mut held);
        line
    }

    /// Lets go of those that were not used for the longest time until the others have room.
    fn make_room(&self, held: &mut Held) {
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
            items.truncate(entry.turn.inputs);
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

    /// Forgets a response. Returns what the log is to say.
    pub(super) fn delete(&self, id: &str) -> Result<Line, ApiError> {
        match self.lock().entries.remove(id) {
            Some(_) => Ok(Line::Gone(id.to_owned())),
            None => Err(unknown(id)),
        }
    }

    /// Counts bytes until what is returned is dropped.
    fn count(&self, bytes: usize) -> Counted {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        Counted {
            bytes,
            of: Arc::clone(&self.bytes),
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

    /// Everything that is there, the longest unused first, and each turn after those it follows.
    fn turns(&self) -> Vec<KeptTurn> {
        let mut entries: Vec<&Entry> = self.entries.values().collect();
        entries.sort_by_key(|entry| entry.used);
        let (mut seen, mut turns) = (HashSet::new(), Vec::new());
        for entry in entries {
            let mut chain = Vec::new();
            let mut next = Some(&entry.turn);
            while let Some(turn) = next.filter(|turn| seen.insert(turn.id.as_str())) {
                chain.push(turn);
                next = turn.previous.as_ref();
            }
            turns.extend(
                chain
                    .into_iter()
                    .rev()
                    .map(|turn| match self.entries.get(&turn.id) {
                        Some(entry) => entry.as_kept(),
                        None => turn.as_kept(),
                    }),
            );
        }
        turns
    }
}

impl Entry {
    fn as_kept(&self) -> KeptTurn {
        KeptTurn {
            response: Some(self.response.clone()),
            ..self.turn.as_kept()
        }
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
    /// Without the response, which others may follow all the same.
    fn as_kept(&self) -> KeptTurn {
        KeptTurn {
            id: self.id.clone(),
            previous: self.previous.as_ref().map(|turn| turn.id.clone()),
            inputs: self.inputs,
            items: self.items.clone(),
            response: None,
        }
    }

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
    let mut error = ApiError::missing("stored response", id).code("response_not_found");
    error.message.push_str(
        ": it was not stored, was deleted, had to make room, or is another server's; send the whole \
         conversation as input (what was read of it is taken over)",
    );
    error
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn keep(responses: &Responses, id: &str, previous: Option<&str>, text: &str) {
        let previous = previous.map(|id| responses.chain(id).unwrap());
        let draft = Draft::new(previous, vec![json!({ "text": text })]);
        let response = Map::from_iter([("id".to_owned(), id.into())]);
        let line = responses.keep(id, draft, &[json!({ "id": "out", "text": id })], &response);
        if let Some(line) = line {
            responses.write(&line).unwrap();
        }
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

    #[test]
    fn what_was_stored_is_there_again_and_what_was_forgotten_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("responses.jsonl");
        let open = || {
            let (responses, trouble) = Responses::of_bytes(20_000).with_log(Some(&path));
            assert!(trouble.is_none(), "{trouble:?}");
            responses
        };
        let responses = open();
        keep(&responses, "a", None, "one");
        keep(&responses, "b", Some("a"), "two");
        keep(&responses, "c", Some("b"), "three");
        keep(&responses, "d", None, "alone");
        for id in ["a", "d"] {
            let line = responses.delete(id).unwrap();
            responses.write(&line).unwrap();
        }
        drop(responses);
        // The end of a process may leave half a line, and a disk may leave nonsense.
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("nonsense\n{text}{{\"kept\": {{\"id")).unwrap();
        for _ in 0..2 {
            let responses = open();
            assert!(responses.show("a").is_err() && responses.show("d").is_err());
            let said = texts(&responses.chain("c").unwrap());
            assert_eq!(said, ["one", "a", "two", "b", "three", "c"]);
            assert_eq!(responses.show("b").unwrap(), json!({ "id": "b" }));
            assert_eq!(responses.input_items("b").unwrap().len(), 1);
        }
        // What is gone is no longer in the file either.
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(
            !text.contains("alone") && text.lines().count() == 3,
            "{text}"
        );
        // Lines may have come in any order.
        let mut lines: Vec<&str> = text.lines().collect();
        lines.reverse();
        std::fs::write(&path, lines.join("\n") + "\n").unwrap();
        let responses = open();
        assert_eq!(texts(&responses.chain("c").unwrap()).len(), 6);
        // However much comes and goes, the file stays as small as what may be kept.
        for at in 0..400 {
            keep(&responses, &format!("n{at}"), None, &"y".repeat(300));
        }
        assert!(std::fs::metadata(&path).unwrap().len() < 80_000);
        drop(responses);
        assert!(open().show("n399").is_ok());
    }
}
