//! How many may wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The line in front of the engine, of limited length.
pub(crate) struct Queue {
    limit: usize,
    waiting: AtomicUsize,
    tokens: AtomicUsize,
}

/// A place in the line, given back when dropped.
pub(crate) struct Permit {
    queue: Arc<Queue>,
    tokens: usize,
}

impl Queue {
    /// A line for `limit` requests.
    pub(crate) fn new(limit: usize) -> Queue {
        Queue {
            limit,
            waiting: AtomicUsize::new(0),
            tokens: AtomicUsize::new(0),
        }
    }

    /// A place for a request with a prompt of `tokens` tokens, unless the line is full.
    pub(crate) fn enter(self: &Arc<Queue>, tokens: usize) -> Option<Permit> {
        let more = |waiting: usize| (waiting < self.limit).then_some(waiting + 1);
        self.waiting
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .ok()?;
        self.tokens.fetch_add(tokens, Ordering::Relaxed);
        Some(Permit {
            queue: Arc::clone(self),
            tokens,
        })
    }

    /// Requests that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Requests that may wait.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// Seconds until there will be a place, when `tokens_per_second` of prompts are read.
    pub(crate) fn seconds_to_wait(&self, tokens_per_second: f64) -> u64 {
        let tokens = self.tokens.load(Ordering::Relaxed) as f64;
        let of_one = tokens / self.waiting().max(1) as f64;
        (of_one / tokens_per_second.max(1.0))
            .ceil()
            .clamp(1.0, 120.0) as u64
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.queue.waiting.fetch_sub(1, Ordering::Relaxed);
        self.queue.tokens.fetch_sub(self.tokens, Ordering::Relaxed);
    }
}
