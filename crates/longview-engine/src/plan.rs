//! What a context of some length will need, before anything is computed.

use std::fmt;

/// How the table calls what is known of the blocks in the store, and the least bytes of it that are shown.
const INDEX: &str = "index of the store";
const SHOWN_INDEX: u64 = 1 << 20;

/// Bytes by purpose for one context of `tokens` tokens, against the memory allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Tokens planned.
    pub tokens: usize,
    /// The model's limit in tokens.
    pub model_tokens: usize,
    /// Bytes of the program itself with the vocabulary, measured.
    pub program: u64,
    /// Bytes of what is known of the blocks in the store, measured; 0 before it is open.
    pub index: u64,
    /// Bytes of weights in the form the kernels read.
    pub weights: u64,
    /// Bytes of keys and values.
    pub kv: u64,
    /// Bytes of them that must be in memory at once: all, unless a store can hold the rest.
    pub kv_least: u64,
    /// Bytes that a store could hold of the rest; `u64::MAX` where that is not known.
    pub disk_room: u64,
    /// Bytes of the buffers of a forward pass.
    pub scratch: u64,
    /// Bytes allowed; `None` when no limit was given.
    pub limit: Option<u64>,
    /// The longest context that fits, in tokens; without a limit the model's.
    pub longest_context: usize,
}

impl MemoryPlan {
    /// All bytes together.
    pub fn total(&self) -> u64 {
        self.program + self.index + self.weights + self.kv + self.scratch
    }

    /// Whether the plan fits the memory allowed, on disk what memory has no room for.
    pub fn fits(&self) -> bool {
        self.fits_memory() && self.kv_on_disk() <= self.disk_room
    }

    /// Whether what must be in memory at once fits there.
    fn fits_memory(&self) -> bool {
        let least = self.total() - self.kv + self.kv_least;
        self.limit.is_none_or(|limit| least <= limit)
    }

    /// Bytes of keys and values that will be kept on disk because memory has no room for them.
    pub fn kv_on_disk(&self) -> u64 {
        let over = |limit| self.total().saturating_sub(limit);
        self.limit.map_or(0, over)
    }
}

/// The table shown when a plan is refused, and by `longview doctor`.
impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(limit) = self.limit.filter(|_| !self.fits()) {
            writeln!(
                f,
                "a context of {} tokens needs {}, but --memory allows {}:",
                self.tokens,
                mebibytes(self.total()),
                mebibytes(limit)
            )?;
        }
        let kv_name = format!("KV cache of {} tokens", self.tokens);
        let kv_on_disk = self.kv - self.kv_least;
        for (name, bytes) in [
            ("program and vocabulary", self.program),
            (INDEX, self.index),
            ("weights", self.weights),
            (kv_name.as_str(), self.kv),
            ("scratch", self.scratch),
            ("total", self.total()),
        ] {
            // Most stores are small, and not everyone has one.
            if name != INDEX || bytes >= SHOWN_INDEX {
                writeln!(f, "  {name:32} {:>12}", mebibytes(bytes))?;
            }
        }
        if kv_on_disk > 0 {
            let name = "of which may be on disk";
            writeln!(f, "  {name:32} {:>12}", mebibytes(kv_on_disk))?;
            if self.kv_on_disk() > self.disk_room {
                let name = "room for it on disk";
                writeln!(f, "  {name:32} {:>12}", mebibytes(self.disk_room))?;
            }
        }
        if let Some(limit) = self.limit {
            writeln!(f, "  {:32} {:>12}", "allowed", mebibytes(limit))?;
        }
        if self.longest_context > 0 {
            write!(
                f,
                "the longest context that fits is {} tokens",
                self.longest_context
            )?;
            if self.longest_context == self.model_tokens {
                write!(f, " (the model's own limit)")?;
            }
        } else {
            if self.index >= SHOWN_INDEX {
                writeln!(
                    f,
                    "the store is large: name another folder with --cache-dir, or make it smaller with \
                     `longview contexts gc --max SIZE`"
                )?;
            }
            write!(
                f,
                "the model does not fit even with an empty context: use a smaller model or \
                       a smaller quantisation, or give more with --memory"
            )?;
        }
        Ok(())
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_shows_both_numbers_and_what_would_fit() {
        let plan = MemoryPlan {
            tokens: 5000,
            model_tokens: 8192,
            program: 1 << 20,
            index: 0,
            weights: 10 << 20,
            kv: 100 << 20,
            kv_least: 100 << 20,
            disk_room: 0,
            scratch: 1 << 20,
            limit: Some(64 << 20),
            longest_context: 2600,
        };
        assert!(!plan.fits());
        let table = plan.to_string();
        for part in [
            "5000 tokens needs 112.0 MiB",
            "allows 64.0 MiB",
            "2600 tokens",
        ] {
            assert!(table.contains(part), "{table}");
        }
        let spills = MemoryPlan {
            kv_least: 4 << 20,
            disk_room: 48 << 20,
            ..plan
        };
        assert!(spills.fits());
        assert_eq!(spills.kv_on_disk(), 48 << 20);
        assert!(spills.to_string().contains("on disk"), "{spills}");
        let crowded = MemoryPlan {
            index: 50 << 20,
            longest_context: 0,
            ..spills
        };
        assert!(!crowded.fits());
        let table = crowded.to_string();
        assert!(table.contains("index of the store") && table.contains("contexts gc"));
        let no_disk = MemoryPlan {
            disk_room: 40 << 20,
            ..spills
        };
        assert!(!no_disk.fits());
        assert!(
            no_disk.to_string().contains("room for it on disk"),
            "{no_disk}"
        );
        assert!(
            MemoryPlan {
                limit: None,
                ..plan
            }
            .fits()
        );
    }
}
