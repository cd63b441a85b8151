//! One account of every byte, with the limit the user chose.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::error::KvError;

/// What memory is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// The program itself and the model's vocabulary.
    Program,
    /// What is known of the blocks in a store.
    Index,
    /// Model weights in the form the kernels read.
    Weights,
    /// Keys and values.
    Kv,
    /// Buffers of a forward pass.
    Scratch,
}

/// The account of all bytes in use, shared by everything that allocates in bulk.
///
/// Cloning gives another handle on the same account.
#[derive(Clone)]
pub struct Ledger {
    account: Arc<Account>,
}

/// Bytes held for one purpose; given back when dropped.
pub struct Reservation {
    account: Arc<Account>,
    purpose: Purpose,
    bytes: u64,
}

/// Bytes in use by purpose, and the most there ever were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of the program itself.
    pub program: u64,
    /// Bytes of what is known of the blocks in a store.
    pub index: u64,
    /// Bytes of weights.
    pub weights: u64,
    /// Bytes of keys and values.
    pub kv: u64,
    /// Bytes of scratch.
    pub scratch: u64,
    /// The highest total so far.
    pub peak: u64,
    /// The most bytes of keys and values since [`Ledger::watch_kv`].
    pub kv_peak: u64,
}

struct Account {
    limit: AtomicU64,
    usage: Mutex<Usage>,
}

impl Ledger {
    /// An account with a limit in bytes; `u64::MAX` for none.
    pub fn with_limit(limit: u64) -> Ledger {
        let account = Account {
            limit: AtomicU64::new(limit),
            usage: Mutex::default(),
        };
        Ledger {
            account: Arc::new(account),
        }
    }

    /// An account that only counts.
    pub fn unlimited() -> Ledger {
        Ledger::with_limit(u64::MAX)
    }

    /// The limit in bytes; `u64::MAX` for none.
    pub fn limit(&self) -> u64 {
        self.account.limit.load(Ordering::Relaxed)
    }

    /// Bytes in use now.
    pub fn usage(&self) -> Usage {
        *self.account.lock()
    }

    /// Begins to watch anew for the most bytes of keys and values, [`Usage::kv_peak`], and returns those
    /// in use now.
    pub fn watch_kv(&self) -> u64 {
        let mut usage = self.account.lock();
        usage.kv_peak = usage.kv;
        usage.kv
    }

    /// Bytes that may still be reserved.
    pub fn available(&self) -> u64 {
        self.limit().saturating_sub(self.usage().total())
    }

    /// Whether `bytes` more would be above the limit; more than it may be in use already, see
    /// [`Reservation::resize`].
    pub fn lacks(&self, bytes: u64) -> bool {
        self.usage().total().saturating_add(bytes) > self.limit()
    }

    /// Takes `bytes` for `purpose` until the reservation is dropped.
    ///
    /// # Errors
    /// [`KvError::OverLimit`] when the limit does not allow it.
    pub fn reserve(&self, purpose: Purpose, bytes: u64) -> Result<Reservation, KvError> {
        let limit = self.limit();
        let mut usage = self.account.lock();
        let used = usage.total();
        if used.checked_add(bytes).is_none_or(|total| total > limit) {
            return Err(KvError::OverLimit {
                purpose,
                wanted: bytes,
                used,
                limit,
            });
        }
        *usage.of(purpose) += bytes;
        usage.note_peaks();
        Ok(Reservation {
            account: Arc::clone(&self.account),
            purpose,
            bytes,
        })
    }
}

impl Usage {
    /// All bytes in use.
    pub fn total(&self) -> u64 {
        self.program + self.index + self.weights + self.kv + self.scratch
    }

    fn note_peaks(&mut self) {
        self.peak = self.peak.max(self.total());
        self.kv_peak = self.kv_peak.max(self.kv);
    }

    fn of(&mut self, purpose: Purpose) -> &mut u64 {
        match purpose {
            Purpose::Program => &mut self.program,
            Purpose::Index => &mut self.index,
            Purpose::Weights => &mut self.weights,
            Purpose::Kv => &mut self.kv,
            Purpose::Scratch => &mut self.scratch,
        }
    }
}

impl Reservation {
    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Parts with `bytes` of what is held, or with all where that is less.
    #[must_use]
    pub fn split(&mut self, bytes: u64) -> Reservation {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Reservation {
            account: Arc::clone(&self.account),
            purpose: self.purpose,
            bytes,
        }
    }

    /// Holds the bytes of `other`, of the same purpose, as well.
    pub(crate) fn join(&mut self, mut other: Reservation) {
        debug_assert_eq!(
            self.purpose, other.purpose,
            "bytes stay where they are counted"
        );
        self.bytes += std::mem::take(&mut other.bytes);
    }

    /// Holds `bytes` from now on, because that is what was measured: more than the limit allows
    /// if it must be, so that nothing else is admitted until others have given way.
    pub fn resize(&mut self, bytes: u64) {
        let mut usage = self.account.lock();
        let of_purpose = usage.of(self.purpose);
        *of_purpose = *of_purpose - self.bytes + bytes;
        usage.note_peaks();
        self.bytes = bytes;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        *self.account.lock().of(self.purpose) -= self.bytes;
    }
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Purpose::Program => "the program",
            Purpose::Index => "the index of the store",
            Purpose::Weights => "weights",
            Purpose::Kv => "KV cache",
            Purpose::Scratch => "scratch",
        })
    }
}

impl Account {
    fn lock(&self) -> std::sync::MutexGuard<'_, Usage> {
        // The numbers are consistent at every unlock, so a panic elsewhere does not spoil them.
        self.usage
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The largest number from 0 to `most` for which `fits` holds; it holds for all smaller ones.
pub fn largest(most: usize, fits: impl Fn(&usize) -> bool) -> usize {
    let (mut fitting, mut beyond) = (0, most + 1);
    while beyond - fitting > 1 {
        let middle = fitting + (beyond - fitting) / 2;
        if fits(&middle) {
            fitting = middle
        } else {
            beyond = middle
        }
    }
    fitting
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_holds_and_dropping_gives_back() {
        let ledger = Ledger::with_limit(100);
        let weights = ledger.reserve(Purpose::Weights, 60).unwrap();
        assert_eq!(weights.bytes(), 60);
        let error = ledger.reserve(Purpose::Kv, 41).err().unwrap();
        assert!(matches!(
            error,
            KvError::OverLimit {
                wanted: 41,
                used: 60,
                limit: 100,
                ..
            }
        ));
        assert!(error.to_string().contains("--memory"));
        let kv = ledger.reserve(Purpose::Kv, 40).unwrap();
        assert_eq!(ledger.available(), 0);
        drop(weights);
        assert_eq!(
            ledger.usage(),
            Usage {
                kv: 40,
                peak: 100,
                kv_peak: 40,
                ..Usage::default()
            }
        );
        let mut kv = kv;
        let part = kv.split(15);
        assert_eq!((kv.bytes(), part.bytes(), ledger.usage().kv), (25, 15, 40));
        drop(part);
        assert_eq!((ledger.watch_kv(), ledger.usage().kv_peak), (25, 25));
        assert_eq!((ledger.usage().kv, kv.split(99).bytes()), (25, 25));
        drop(kv);
        assert_eq!((ledger.usage().total(), ledger.usage().kv_peak), (0, 25));
        assert!(ledger.reserve(Purpose::Scratch, u64::MAX).is_err());
    }

    #[test]
    fn the_largest_fitting_number_is_found() {
        for limit in [0, 1, 17, 99, 100] {
            assert_eq!(largest(100, |&n| n <= limit), limit);
        }
        assert_eq!(largest(100, |_| true), 100);
    }
}
