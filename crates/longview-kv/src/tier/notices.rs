//! What people should be told, collected until someone shows it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// A list of messages for people. Cloning gives another handle on the same list.
#[derive(Clone, Default)]
pub struct Notices {
    waiting: Arc<Mutex<VecDeque<String>>>,
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

    /// The messages since the last call, oldest first.
    pub fn take(&self) -> Vec<String> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.drain(..).collect()
    }
}
