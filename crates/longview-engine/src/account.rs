//! What the engine itself holds in the ledger: the program as it is measured, and the buffers of a pass.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use longview_kernels::memory::give_back_freed;
use longview_kv::{BLOCK_TOKENS, Ledger, Reservation};
use longview_models::Workspace;
use longview_weights::WeightFile;

use crate::engine::Engine;
use crate::error::EngineError;
use crate::memory::ProcessMemory;

/// What a pass may take beside what is known before it begins: code that is touched first, stacks, what the
/// allocator keeps, and of the memory that blocks leave what cannot be given back at once. Without it a context that
/// just fits is admitted and fails in the middle, or goes beyond what is allowed.
const PASS_GROWTH: u64 = 3 << 20;

/// What is left of it when a pass has run: what that has touched is measured.
const LATER_GROWTH: u64 = 2 << 20;

/// The program's growth from which on the allocator is asked to give back what is free in it.
const WORTH_GIVING_BACK: u64 = 1 << 20;

/// Passes of a few rows between two looks at what the process holds: asking the system takes as long as a
/// layer of a small model.
const PASSES_TO_A_LOOK: u32 = 16;

/// The engine's reservations.
pub(crate) struct Account {
    /// The program, as large as it was measured last.
    pub(crate) program: Reservation,
    /// Buffers of a forward pass.
    pub(crate) scratch: Reservation,
    /// What is known of the blocks in the store, when it was opened; what is added counts as the program's.
    pub(crate) index: Reservation,
}

/// Bytes of the program with the vocabulary of a model read, before it has its weights.
#[derive(Clone, Copy)]
pub(crate) struct FirstProgram {
    /// What the process holds.
    before: u64,
    /// What will stay in memory of a model inside the program.
    staying: u64,
}

/// What the program's growth is measured against.
pub(crate) struct Growth {
    first: FirstProgram,
    /// What the process held when the model was ready.
    ready: ProcessMemory,
    /// Bytes of weights that were not in memory then, and come there from their file as tokens need them.
    unread: u64,
    /// Growth that was left when the allocator had given back what was free.
    in_use: AtomicU64,
    /// Passes since the engine was opened, as far as memory is kept to a limit.
    settled_passes: AtomicU32,
}

/// What becomes of buffers that are larger than the next pass needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Buffers {
    /// They stay, for a larger pass to come.
    Stay,
    /// Much larger ones are given back: blocks that every pass has to read can stay there instead.
    AsNeeded,
}

impl FirstProgram {
    /// Measured now, with the vocabulary of `file` read.
    pub(crate) fn now(file: &WeightFile) -> FirstProgram {
        FirstProgram {
            before: ProcessMemory::now().resident_bytes,
            staying: file.staying_bytes() as u64,
        }
    }

    /// Bytes that a plan counts with: with what the first pass may add.
    pub(crate) fn planned_bytes(&self) -> u64 {
        self.before + self.staying + PASS_GROWTH
    }
}

impl Growth {
    /// Measured from now on, when a model is ready that `ledger` has the account of.
    pub(crate) fn from_now(first: FirstProgram, ledger: &Ledger) -> Growth {
        let (ready, usage) = (ProcessMemory::now(), ledger.usage());
        let known = first.before + usage.index + usage.weights;
        Growth {
            first: FirstProgram {
                // With what loading has left behind.
                before: first.before + ready.resident_bytes.saturating_sub(known),
                ..first
            },
            ready,
            unread: known.saturating_sub(ready.resident_bytes),
            in_use: AtomicU64::new(0),
            settled_passes: AtomicU32::new(0),
        }
    }
}

impl Engine {
    /// Refuses a text that cannot be turned into ids within the memory allowed. While it is, it
    /// takes many times its own size, by what it consists of; what it takes afterwards is in
    /// [`Engine::plan`].
    ///
    /// # Errors
    /// [`EngineError::TextTooLarge`] with both numbers.
    pub fn check_text(&self, text: &str) -> Result<(), EngineError> {
        self.check_texts([text])
    }

    /// The same for texts that are turned into ids as one.
    ///
    /// # Errors
    /// [`EngineError::TextTooLarge`] with both numbers.
    pub fn check_texts<'t>(
        &self,
        texts: impl IntoIterator<Item = &'t str>,
    ) -> Result<(), EngineError> {
        if self.ledger.limit() == u64::MAX {
            return Ok(());
        }
        let (mut text_bytes, mut needed): (u64, u64) = (0, 0);
        for text in texts {
            text_bytes = text_bytes.saturating_add(text.len() as u64);
            needed = needed.saturating_add(self.tokenizer().encoding_bytes(text));
        }
        let usage = self.ledger.usage();
        let held = usage.total() - usage.program + self.program_now();
        let left = self.ledger.limit().saturating_sub(held);
        if needed <= left {
            return Ok(());
        }
        Err(EngineError::TextTooLarge {
            text_bytes,
            needed,
            left,
        })
    }

    /// Bytes of the memory allowed for keys, values and scratch.
    pub(crate) fn free_bytes(&self) -> u64 {
        let usage = self.ledger.usage();
        let others = usage.program + usage.index + usage.weights;
        self.ledger.limit().saturating_sub(others)
    }

    /// Bytes of the buffers of a pass of `rows` rows that gives `wanted` rows of logits.
    pub(crate) fn scratch_bytes(&self, rows: usize, wanted: usize) -> u64 {
        let (threads, isa) = (self.exec.pool.threads(), self.exec.isa);
        let file = self.model.file();
        file.scratch_bytes(rows, wanted, threads, isa)
    }

    /// What the account of buffers has for such a pass: for one much larger than those that every plan counts
    /// with, an eighth of the difference more, since what the allocator keeps beside it is not known.
    pub(crate) fn reserved_scratch(&self, rows: usize, wanted: usize) -> u64 {
        let planned = self.scratch_bytes(self.chunk_tokens + self.chunk_tokens / 4, wanted);
        let bytes = self.scratch_bytes(rows, wanted);
        bytes + bytes.saturating_sub(planned) / 8
    }

    /// Bytes that `texts` texts to one prompt take in every pass beyond what [`Engine::plan`] counts for one.
    pub fn logits_bytes(&self, texts: usize) -> u64 {
        let rows = self.chunk_tokens;
        self.scratch_bytes(rows + texts, texts.max(1)) - self.scratch_bytes(rows, 1)
    }

    /// Bytes of the program as large as it is by now, and what the next pass may add to it. Where memory is
    /// kept to a limit, the allocator first gives back what it only keeps.
    pub(crate) fn program_now(&self) -> u64 {
        let mut grown = self.program_growth();
        let in_use = self.growth.in_use.load(Ordering::Relaxed);
        if self.ledger.limit() != u64::MAX && grown >= in_use + WORTH_GIVING_BACK {
            give_back_freed();
            grown = self.program_growth();
            self.growth.in_use.store(grown, Ordering::Relaxed);
        }
        let FirstProgram { before, staying } = self.growth.first;
        match self.has_run.load(Ordering::Relaxed) {
            false => before + staying + grown + PASS_GROWTH,
            // What stays has been touched, and is among what has grown.
            true => before + staying.max(grown) + LATER_GROWTH,
        }
    }

    /// Bytes the process has taken since the model was ready, beside what the ledger knows of.
    fn program_growth(&self) -> u64 {
        let usage = self.ledger.usage();
        let scratch = match self.has_run.load(Ordering::Relaxed) {
            true => usage.scratch,
            false => 0,
        };
        let (now, ready) = (ProcessMemory::now(), &self.growth.ready);
        // Rows of an embedding that have come since are among the weights.
        let files = now.file_bytes.saturating_sub(ready.file_bytes);
        let weights = files.min(self.growth.unread);
        let known = ready.resident_bytes + usage.kv + scratch + weights;
        now.resident_bytes.saturating_sub(known)
    }

    /// Brings the account up to what is measured and to what the next pass needs, and lets blocks leave memory
    /// that no longer fit.
    pub(crate) fn settle_memory(
        &self,
        workspace: &mut Workspace,
        rows: usize,
        wanted: usize,
        larger: Buffers,
    ) {
        if self.ledger.limit() == u64::MAX {
            return;
        }
        let mut account = self
            .account
            .lock()
            .unwrap_or_else(|error| error.into_inner());
        // The program first, while the account of the buffers is what they take: what is reserved for larger
        // ones and not touched yet would be taken off it.
        if self.store.is_some() {
            let passes = self.growth.settled_passes.fetch_add(1, Ordering::Relaxed);
            if rows >= BLOCK_TOKENS || passes.is_multiple_of(PASSES_TO_A_LOOK) {
                account.program.resize(self.program_now());
            }
        }
        let (held, needed) = (account.scratch.bytes(), self.reserved_scratch(rows, wanted));
        if larger == Buffers::AsNeeded && needed <= held / 2 {
            // What was reserved for them and never touched has hidden as much of the program: it is looked at
            // while there are none.
            workspace.give_back();
            account.scratch.resize(0);
            account.program.resize(self.program_now());
            account.scratch.resize(needed);
        } else {
            account.scratch.resize(held.max(needed));
        }
        drop(account);
        // Without a store nothing can give way.
        if let Some(kept) = &self.store {
            kept.store.make_space(0);
        }
    }
}
