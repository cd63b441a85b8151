//! The prefill stage: which blocks of keys the queries of a prompt attend to.
//!
//! A [`Pattern`] says it for one block of 64 queries of a layer at a time, counted from the first
//! slot, so a row attends to the same keys however a prompt is cut into passes. What it leaves out is
//! not read. Layers with a sliding window stay as they are.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::BLOCK_TOKENS;
use crate::context::Context;
use crate::error::KvError;

/// prefill: key blocks visible to a block of queries.
pub trait Pattern: Send + Sync {
    /// Adds to `seen` the blocks that the queries of `query` attend to: ascending ranges that do not
    /// touch, none beyond the queries' own block, which must be among them. Inside its own block a
    /// query sees what is not after it.
    fn blocks(&self, query: &QueryBlock, seen: &mut Vec<Range<usize>>);
}

/// A block of queries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueryBlock {
    /// The layer.
    pub layer: usize,
    /// Its number: it holds the queries of slots from 64 times that on.
    pub block: usize,
}

/// A pattern with its name.
pub struct Prefill {
    /// Its canonical text, such as `a-shape(sinks=128, local=4096)`.
    pub text: String,
    /// The pattern.
    pub pattern: Box<dyn Pattern>,
}

/// A pattern in charge of the tokens of a prompt.
#[derive(Clone, Debug)]
pub(crate) struct Sparse {
    prefill: Arc<Prefill>,
    /// The first token that attends to everything again.
    until: usize,
    pages_read: u64,
    pages_present: u64,
}

/// What a pattern has done, in numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefillReport {
    /// Its canonical text.
    pub method: String,
    /// Pages that the tokens it speaks of have read, of all layers with full attention and all KV heads.
    pub pages_read: u64,
    /// Those that reading everything would have read.
    pub pages_present: u64,
}

impl Context {
    /// Lets `prefill` say what the tokens before token `until` attend to that are read from here on.
    /// Later ones attend to everything. What is computed so is not what the model defines, so the
    /// context leaves its store, and nothing of it is found by others.
    ///
    /// # Errors
    /// [`KvError::PatternRefused`] when tokens were read already, or a keep method drops pairs while
    /// the prompt is read.
    pub fn attend_by(&mut self, prefill: &Arc<Prefill>, until: usize) -> Result<(), KvError> {
        let refused = |why: &str| KvError::PatternRefused {
            method: prefill.text.clone(),
            why: why.to_owned(),
        };
        if !self.is_empty() {
            return Err(refused(
                "the context has read tokens already; begin an empty one",
            ));
        }
        if self
            .keep_method()
            .is_some_and(|keep| keep.when.block.is_some())
        {
            return Err(refused(
                "the keep method drops pairs while the prompt is read; let it decide at the end \
                 (block=never)",
            ));
        }
        self.home = None;
        self.sparse = Some(Sparse {
            prefill: Arc::clone(prefill),
            until,
            pages_read: 0,
            pages_present: 0,
        });
        Ok(())
    }

    /// Says that the prompt goes on to token `until`, where a pattern is in charge: the tokens read
    /// from here on attend by it up to there, and later ones to everything. [`Context::prefill_report`] is of
    /// them.
    pub fn attend_until(&mut self, until: usize) {
        if let Some(sparse) = &mut self.sparse {
            sparse.until = until;
            (sparse.pages_read, sparse.pages_present) = (0, 0);
        }
    }

    /// The pattern in charge of the prompt, if there is one.
    pub fn prefill_pattern(&self) -> Option<&Arc<Prefill>> {
        self.sparse.as_ref().map(|sparse| &sparse.prefill)
    }

    /// What the pattern in charge of the prompt has left out of what was read of it so far.
    pub fn prefill_report(&self) -> Option<PrefillReport> {
        self.sparse.as_ref().map(|sparse| PrefillReport {
            method: sparse.prefill.text.clone(),
            pages_read: sparse.pages_read,
            pages_present: sparse.pages_present,
        })
    }

    /// Counts what the tokens from token `start` on have read.
    pub(crate) fn commit_pattern(&mut self, start: usize) {
        let Some(mut sparse) = self.sparse.take() else {
            return;
        };
        let mut seen = Vec::new();
        let mut tokens = sparse.rows(start..self.len());
        while !tokens.is_empty() {
            let block_of = |token: usize| self.places.slot(token) / BLOCK_TOKENS;
            let block = block_of(tokens.start);
            let same = |&token: &usize| block_of(token) == block;
            let rows = tokens.clone().take_while(same).count();
            for (layer, place) in self.layout.full_layers() {
                sparse.blocks(&QueryBlock { layer, block }, &mut seen);
                let heads = self.layout.groups[place].kind.kv_heads;
                let read: usize = seen.iter().map(Range::len).sum();
                sparse.pages_read += (rows * heads * read) as u64;
                sparse.pages_present += (rows * heads * (block + 1)) as u64;
            }
            tokens.start += rows;
        }
        self.sparse = Some(sparse);
    }
}

impl Sparse {
    /// The same for a context that has read nothing by it yet.
    pub(crate) fn anew(&self) -> Sparse {
        Sparse {
            pages_read: 0,
            pages_present: 0,
            ..self.clone()
        }
    }

    /// Rows of `tokens` (counted in the context) that a pattern speaks of.
    pub(crate) fn rows(&self, tokens: Range<usize>) -> Range<usize> {
        tokens.start..tokens.end.min(self.until).max(tokens.start)
    }

    /// The blocks that the queries of `query` attend to, in `seen`.
    ///
    /// # Panics
    /// When the pattern breaks its contract.
    pub(crate) fn blocks(&self, query: &QueryBlock, seen: &mut Vec<Range<usize>>) {
        seen.clear();
        self.prefill.pattern.blocks(query, seen);
        let apart = seen.windows(2).all(|pair| pair[0].end < pair[1].start);
        let whole = seen.iter().all(|range| !range.is_empty());
        let last = seen.last().map(|range| range.end);
        assert!(
            apart && whole && last == Some(query.block + 1),
            "{}: blocks {seen:?} for {query:?}",
            self.prefill.text
        );
    }
}

impl fmt::Debug for Prefill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
