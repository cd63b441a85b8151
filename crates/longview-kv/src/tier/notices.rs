//! What people should be told, collected until someone shows it.

use std::collections::{HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// How this process shows what cannot wait until someone asks.
static SHOW: OnceLock<fn(&str)> = OnceLock::new();

/// Has messages that say why nothing goes on shown by `show` as soon as they are known, as well as listed
/// with the others: whoever waits with the program must see what for. For the whole process, like its
/// standard error; the first call counts.
pub fn show_at_once(show: fn(&str)) {
    // Whoever came first has settled it.
    let _ = SHOW.set(show);
}

/// A list of messages for people. Cloning gives another handle on the same list.
#[derive(Clone, Default)]
pub struct Notices {
    waiting: Arc<Mutex<VecDeque<String>>>,
    /// Files that something was said about.
    known: Arc<Mutex<HashSet<PathBuf>>>,
}

/// Messages kept for a reader who never comes; the oldest go first.
const MOST: usize = 200;

impl Notices {
    /// Adds a message, unless it waits already.
    pub fn push(&self, message: String) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.contains(&message) {
            return;
        }
        if waiting.len() == MOST {
            waiting.pop_front();
        }
        waiting.push_back(message);
    }

    /// Adds what is wrong with a file, the first time only: it may be met again and again.
    pub fn push_about(&self, file: &Path, message: String) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.insert(file.to_owned()) {
            drop(known);
            self.push(message);
        }
    }

    /// Adds a message that says why nothing goes on, and shows it where the process has said how.
    pub(super) fn push_urgent(&self, message: String) {
        if let Some(show) = SHOW.get() {
            show(&message);
        }
        self.push(message);
    }

    /// The messages since the last call, oldest first.
    pub fn take(&self) -> Vec<String> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.drain(..).collect()
    }
}
