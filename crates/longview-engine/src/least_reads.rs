//! The fewest bytes that had to be read back from below memory, beside which those that were can be judged.
//!
//! A pass reads every block of full layers that is not in memory, each once. With chunks of *c* tokens, at
//! depth *t*, these are the blocks of *t* tokens less what memory has room for beside the pass: the limit
//! less program (as large as it is by now), index and weights, the scratch of *c* rows, the blocks that *c* tokens are written to,
//! windows, states, and the buffers that blocks are read into. Large chunks make fewer passes and leave
//! less room. The least possible is the smallest sum over all ways to cut the prompt into chunks of whole
//! blocks that memory has room for, none but the last smaller than [`Engine::chunk_tokens`], since smaller
//! ones compute slower; and what every token of the answer reads, the second one what the last chunk has left
//! no room for.

use longview_kv::{BLOCK_TOKENS, Context};

use crate::engine::Engine;

/// What was done with a context from when it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContextWork {
    /// Tokens that it held at first.
    pub held: usize,
    /// Those of them that no pass had brought into memory yet: they were taken over from below.
    pub below: usize,
    /// Tokens that it held when its answer began.
    pub prompt: usize,
    /// Tokens of the answer.
    pub answer: usize,
}

impl Engine {
    /// The fewest bytes that `work` on `context` must read back from below memory, whatever the chunks.
    /// `None` where a method has dropped, moved or left out pairs, so that less may have to be read.
    pub fn least_bytes_read(&self, context: &Context, work: &ContextWork) -> Option<u64> {
        let least = || self.with_passes(context, |passes| passes.least(work));
        context.is_exact().then(least)
    }

    /// Tells `ask` what passes over `context` need and have.
    pub(crate) fn with_passes<T>(
        &self,
        context: &Context,
        ask: impl FnOnce(&Passes<'_>) -> T,
    ) -> T {
        let layout = context.layout();
        let (limit, free) = (self.ledger.limit(), self.free_bytes());
        ask(&Passes {
            smallest: self.chunk_tokens,
            full: &|blocks| layout.filled_bytes(blocks * BLOCK_TOKENS),
            room: &|rows| match limit {
                u64::MAX => u64::MAX,
                _ => free.saturating_sub(self.scratch_bytes(rows, 1) + layout.pass_bytes(rows)),
            },
            fits: &|rows| self.reserved_scratch(rows, 1) + layout.least_bytes(rows) <= free,
        })
    }
}

/// What the passes of one context need.
pub(crate) struct Passes<'a> {
    /// Tokens of the smallest chunk.
    smallest: usize,
    /// Bytes that the first so many blocks of full layers take.
    full: &'a dyn Fn(usize) -> u64,
    /// Bytes that memory has for them beside a pass of so many rows.
    room: &'a dyn Fn(usize) -> u64,
    /// Whether there is memory for such a pass at all.
    fits: &'a dyn Fn(usize) -> bool,
}

impl Passes<'_> {
    /// Of the chunks from the smallest to `largest` tokens that there is memory for, the one whose pass after
    /// `depth` tokens reads fewest bytes for each of its tokens; of equals the smallest.
    pub(crate) fn best_chunk(&self, depth: usize, largest: usize) -> usize {
        let chunks = (self.smallest..=largest).step_by(BLOCK_TOKENS);
        let read = |chunk: usize| self.read(depth / BLOCK_TOKENS, (self.room)(chunk));
        chunks
            .take_while(|&chunk| (self.fits)(chunk))
            .map(|chunk| (chunk, read(chunk)))
            .min_by_key(|&(chunk, read)| {
                // Bytes a token, in parts of a 65,536th.
                (u128::from(read) << 16) / chunk as u128
            })
            .map_or(self.smallest, |(chunk, _)| chunk)
    }

    fn least(&self, work: &ContextWork) -> u64 {
        // The first step is counted with the last chunk.
        let steps = work.prompt + 1..work.prompt + work.answer.saturating_sub(1).max(1);
        let answer = steps.map(|depth| self.read(depth / BLOCK_TOKENS, (self.room)(1)));
        self.of_prompt(work) + answer.sum::<u64>()
    }

    /// Of the prompt and of the first step behind it, if there is one.
    fn of_prompt(&self, work: &ContextWork) -> u64 {
        let step = |last_chunk: usize| match work.answer {
            0 | 1 => 0,
            // Nothing has come to where the buffers of the last chunk were.
            _ => self.read(work.prompt / BLOCK_TOKENS, (self.room)(last_chunk.max(1))),
        };
        let first = work.held / BLOCK_TOKENS;
        let count = work.prompt.div_ceil(BLOCK_TOKENS).saturating_sub(first);
        let below = (self.full)(work.below / BLOCK_TOKENS);
        // Where the smallest chunks read nothing, and the last reads most, there is nothing to choose: of a
        // long text that has room every way to cut it would be tried otherwise.
        if count > 0 && self.read(first + count - 1, (self.room)(self.smallest)) == 0 {
            return below + step(0);
        }
        let smallest = self.smallest.div_ceil(BLOCK_TOKENS).max(1);
        let fits = |blocks: &usize| (self.fits)(blocks * BLOCK_TOKENS);
        let largest = smallest + (smallest + 1..=count).take_while(fits).count();
        let rooms: Vec<u64> = (0..=largest)
            .map(|blocks| (self.room)(blocks * BLOCK_TOKENS))
            .collect();
        // The fewest bytes from each block to the end, from the last to the first.
        let mut least = vec![0; count + 1];
        for at in (0..count).rev() {
            let (depth, left) = (first + at, count - at);
            let of_chunk = |chunk: usize| {
                let room = match chunk == left {
                    // The last block need not be full.
                    true => (self.room)(work.prompt - depth * BLOCK_TOKENS),
                    false => rooms[chunk],
                };
                let read = self.read(depth, room);
                let read = if at == 0 { read.max(below) } else { read };
                let step = match chunk == left {
                    true => step(work.prompt - depth * BLOCK_TOKENS),
                    false => 0,
                };
                read + step + least[at + chunk]
            };
            let chunks = smallest.min(left)..=largest.min(left);
            least[at] = chunks.map(of_chunk).min().unwrap_or(0);
        }
        least[0]
    }

    /// Bytes that a pass at block `depth` reads with `room` bytes for blocks in memory.
    fn read(&self, depth: usize, room: u64) -> u64 {
        (self.full)(depth).saturating_sub(room)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten bytes a block, 100 bytes of memory, of which a row takes an eighth; chunks of two blocks and more.
    fn passes() -> Passes<'static> {
        Passes {
            smallest: 2 * BLOCK_TOKENS,
            full: &|blocks| 10 * blocks as u64,
            room: &|rows| 100 - rows as u64 / 8,
            fits: &|rows| rows <= 512,
        }
    }

    /// The same for a prompt, by trying every way to cut it.
    fn tried(at: usize, end: usize) -> u64 {
        let chunks = 2.min(end - at)..=8.min(end - at);
        let of_chunk = |chunk: usize| {
            let room = 100 - 8 * chunk as u64;
            (10 * at as u64).saturating_sub(room) + tried(at + chunk, end)
        };
        let tried = chunks.filter(|&chunk| chunk > 0).map(of_chunk);
        tried.min().unwrap_or(0)
    }

    #[test]
    fn the_best_of_all_ways_to_cut_a_prompt_is_found() {
        for (held, end) in [(0, 9), (0, 16), (5, 20), (12, 30), (30, 31)] {
            let work = ContextWork {
                held: held * BLOCK_TOKENS,
                prompt: end * BLOCK_TOKENS,
                ..ContextWork::default()
            };
            assert_eq!(passes().least(&work), tried(held, end), "{held} to {end}");
        }
    }

    #[test]
    fn a_text_of_any_length_that_has_room_is_judged_at_once() {
        let roomy = Passes {
            room: &|_| u64::MAX,
            fits: &|_| true,
            ..passes()
        };
        let mut work = ContextWork {
            prompt: 1 << 30,
            ..ContextWork::default()
        };
        assert_eq!(roomy.least(&work), 0);
        (work.held, work.below) = (6 * BLOCK_TOKENS, 4 * BLOCK_TOKENS);
        assert_eq!(roomy.least(&work), 40);
    }

    #[test]
    fn chunks_grow_with_depth_and_read_little_more_than_the_least() {
        let passes = passes();
        let (mut at, mut read, mut chunks) = (0, 0, Vec::new());
        while at < 40 {
            let chunk = passes.best_chunk(at * BLOCK_TOKENS, 4096) / BLOCK_TOKENS;
            let chunk = chunk.min(40 - at);
            read += (10 * at as u64).saturating_sub(100 - 8 * chunk as u64);
            chunks.push(chunk);
            at += chunk;
        }
        assert!(chunks[..chunks.len() - 1].is_sorted(), "{chunks:?}");
        assert!(chunks[0] == 2 && chunks.contains(&8), "{chunks:?}");
        let work = ContextWork {
            prompt: 40 * BLOCK_TOKENS,
            ..ContextWork::default()
        };
        let least = passes.least(&work);
        assert!(read >= least && 10 * read <= 13 * least, "{read}, {least}");
        // Where there is memory for none, somebody else says so.
        let crowded = Passes {
            fits: &|_| false,
            ..passes
        };
        assert_eq!(crowded.best_chunk(4096, 4096), 128);
    }

    #[test]
    fn what_was_taken_over_is_read_once_and_an_answer_reads_what_is_away() {
        let work = ContextWork {
            held: 8 * BLOCK_TOKENS,
            below: 8 * BLOCK_TOKENS,
            prompt: 8 * BLOCK_TOKENS + 16,
            answer: 1,
        };
        assert_eq!(passes().least(&work), 80);
        // Twelve blocks, of which 98 bytes stay in memory beside the prompt's pass and when the first step
        // begins, and then 100.
        let work = ContextWork {
            held: 12 * BLOCK_TOKENS,
            below: 0,
            prompt: 12 * BLOCK_TOKENS + 16,
            answer: 4,
        };
        assert_eq!(passes().least(&work), 2 * (120 - 98) + 2 * (120 - 100));
    }
}
