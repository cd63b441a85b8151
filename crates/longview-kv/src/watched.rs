//! Which parts of a context an answer's attention rests on, where somebody asks.
//!
//! Off, it costs nothing. On, every row of an answer and the last of its prompt, from which the
//! answer's first token follows, multiplies its queries with the keys a second time in each layer with full attention.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::context::Context;
use crate::error::KvError;

/// How an answer's attention is spread over what stands before it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AttentionMap {
    /// Rows, layers with full attention and KV heads that it is averaged over, all together.
    pub samples: u64,
    /// For every block of 64 tokens the share of the attention that rests on it; they add up to 1.
    pub mass: Vec<f64>,
    /// For every block the share of the samples that have read it; all of them unless a read method
    /// has chosen.
    pub read: Vec<f64>,
}

/// What is gathered of a context.
pub(crate) struct Watched {
    /// The first token that is watched.
    from: usize,
    sums: Sums,
    /// Of the pass that runs.
    pass: Mutex<Sums>,
}

#[derive(Clone, Default)]
struct Sums {
    samples: u64,
    mass: Vec<f64>,
    read: Vec<u64>,
}

impl Context {
    /// Observes from here on what the attention of answers ([`Context::answer_from`]) rests on.
    ///
    /// # Errors
    /// [`KvError::WatchRefused`] where a keep method drops pairs, of which nobody knows what they would
    /// have received.
    pub fn watch_attention(&mut self) -> Result<(), KvError> {
        if let Some(keep) = self.keep_method() {
            return Err(KvError::WatchRefused {
                method: keep.text.clone(),
            });
        }
        self.watched = Some(Box::new(Watched {
            from: usize::MAX,
            sums: Sums::default(),
            pass: Mutex::default(),
        }));
        Ok(())
    }

    /// What the attention of the answer that began last has rested on so far, where it is observed.
    pub fn attention_map(&self) -> Option<AttentionMap> {
        let Sums {
            samples,
            mass,
            read,
        } = &self.watched.as_ref()?.sums;
        let all = (*samples).max(1) as f64;
        Some(AttentionMap {
            samples: *samples,
            mass: mass.iter().map(|mass| mass / all).collect(),
            read: read.iter().map(|&read| read as f64 / all).collect(),
        })
    }

    /// What the pass observed holds from now on.
    pub(crate) fn commit_watched(&mut self) {
        if let Some(watched) = &mut self.watched {
            let pass = watched.pass.get_mut();
            let pass = pass.unwrap_or_else(PoisonError::into_inner);
            watched.sums.join(std::mem::take(pass));
        }
    }

    /// Forgets what a pass observed that was given up.
    pub(crate) fn give_up_watched(&mut self) {
        if let Some(watched) = &mut self.watched {
            watched.pass = Mutex::default();
        }
    }

    /// An answer begins with token `from`.
    pub(crate) fn watch_from(&mut self, from: usize) {
        if let Some(watched) = &mut self.watched {
            watched.from = from.saturating_sub(1);
            watched.sums = Sums::default();
        }
    }
}

impl Watched {
    /// The first token that is watched.
    pub(crate) fn from(&self) -> usize {
        self.from
    }

    /// Notes how the attention of one row with one KV head of a layer is spread, and which blocks of
    /// tokens it has read.
    pub(crate) fn note(&self, mass: &[f32], read: &[bool]) {
        let mut sums = self.lock();
        sums.samples += 1;
        let blocks = sums.mass.len().max(mass.len());
        sums.mass.resize(blocks, 0.0);
        sums.read.resize(blocks, 0);
        for (sum, &mass) in sums.mass.iter_mut().zip(mass) {
            *sum += f64::from(mass);
        }
        for (sum, &read) in sums.read.iter_mut().zip(read) {
            *sum += u64::from(read);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Sums> {
        // Sums of a pass that panics are never joined.
        self.pass.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sums {
    fn join(&mut self, other: Sums) {
        self.samples += other.samples;
        self.mass.resize(self.mass.len().max(other.mass.len()), 0.0);
        self.read.resize(self.mass.len(), 0);
        for (sum, mass) in self.mass.iter_mut().zip(other.mass) {
            *sum += mass;
        }
        for (sum, read) in self.read.iter_mut().zip(other.read) {
            *sum += read;
        }
    }
}

/// What a pass has observed is its own context's.
impl Clone for Watched {
    fn clone(&self) -> Watched {
        Watched {
            from: self.from,
            sums: self.sums.clone(),
            pass: Mutex::default(),
        }
    }
}
