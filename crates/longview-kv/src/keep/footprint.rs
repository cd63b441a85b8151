//! What a keep method takes, in bytes, before anything is computed.

use longview_kernels::page::PAGE_TOKENS;

use super::observe::Observed;
use super::repeat::{Repetition, WATCHED_ROWS};
use super::stream::Stream;
use super::view::ROWS_AT_ONCE;
use super::{AttentionOf, Keep, Scope};
use crate::BLOCK_TOKENS;
use crate::error::KvError;
use crate::layout::{Group, KvLayout, LayerState};

/// Tokens that ask for a part to be repeated, at most.
const REPEAT_WORDS: usize = 128;

/// Bytes of keys and values under a keep method, before anything is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepBytes {
    /// The most while the prompt is read and compressed and text is generated.
    pub peak: u64,
    /// When the prompt has been read: streams, windows, and nothing else; all of it where all stays.
    pub steady: u64,
    /// Beside keys and values: what is gathered for the method and what deciding takes.
    pub scratch: u64,
}

impl Keep {
    /// What a prompt of `prompt_tokens` tokens, read in chunks of `chunk_tokens`, and
    /// `generated_tokens` more will take.
    ///
    /// # Errors
    /// As [`Keep::slots`].
    pub fn bytes(
        &self,
        layout: &KvLayout,
        model: &dyn AttentionOf,
        prompt_tokens: usize,
        generated_tokens: usize,
        chunk_tokens: usize,
        threads: usize,
    ) -> Result<KeepBytes, KvError> {
        let planned = self.planned(layout, prompt_tokens)?;
        let (slots, heads) = (planned.slots, planned.heads);
        let all = prompt_tokens + generated_tokens;
        let dense = layout.context_bytes(all, chunk_tokens);
        if slots >= all {
            return Ok(KeepBytes {
                peak: dense,
                steady: layout.context_bytes(prompt_tokens, chunk_tokens),
                scratch: Observed::bytes_for(layout, self.score.needs(), model, all),
            });
        }
        // What stays in blocks in any case, beside what a budget has room for.
        let streams = |slots| self.stream_bytes(layout, slots) + layout.keep_tail_bytes();
        let full = |tokens: usize| layout.full_bytes(tokens);
        let rest = dense
            - layout
                .full_groups()
                .map(|group| all.div_ceil(BLOCK_TOKENS) as u64 * group.block_bytes() as u64)
                .sum::<u64>();
        // Deciding frees what windows hold for a pass.
        let windows = rest - layout.window_bytes(all, Some(chunk_tokens))
            + layout.window_bytes(prompt_tokens, None);
        // An old stream beside the new one: of one layer where every layer has as much as before.
        let both = |slots: usize| {
            let of_layer = |(_, place): (usize, usize)| {
                let group = &layout.groups[place];
                let heads = group.kind.kv_heads;
                Stream::most_bytes(group, heads, slots * heads, self.place_bytes())
            };
            let layers = layout.full_layers().map(of_layer);
            streams(slots)
                + match self.allocate.scope() {
                    Scope::Layer => layers.max().unwrap_or(0),
                    Scope::Model => layers.sum(),
                }
        };
        // The model repeats the context in a fork that grows by a part and the words that ask for it.
        let repeat_of = |tokens: usize| match self.score.needs().repeat {
            0 => 0,
            part => layout.context_bytes(part.min(tokens) + REPEAT_WORDS, chunk_tokens),
        };
        let repeat = repeat_of(prompt_tokens);
        let held = streams(slots.min(prompt_tokens));
        let reading = match self.when.block {
            Some(block) if slots < prompt_tokens => both(slots) + full(block),
            // Everything stays, and stays where it is.
            _ if slots >= prompt_tokens => full(prompt_tokens),
            _ => full(prompt_tokens) + held.max(repeat),
        };
        let grown = self.allocate.grown(&planned, all).min(all);
        let writing = match self.when.decode {
            // Nothing left at the prompt's end: the first to leave do so from blocks.
            Some(every) if slots >= prompt_tokens => {
                let written = (grown + every).min(all);
                full(written) + streams(grown).max(repeat_of(written))
            }
            None if slots >= prompt_tokens => full(all),
            Some(every) => {
                let written = every.min(generated_tokens.max(1));
                both(grown).max(streams(grown) + repeat_of(written)) + full(written)
            }
            None => both(slots) + full(generated_tokens),
        };
        let reading_pairs = match self.when.block {
            Some(block) => (slots + block).min(all),
            None => prompt_tokens,
        };
        let writing_pairs = match self.when.decode {
            Some(every) => (grown + every).min(all),
            None => 0,
        };
        let pairs = reading_pairs.max(writing_pairs);
        // All query heads of a KV head together, at least.
        let groups = layout.full_layers().map(|(layer, place)| {
            model.shape(layer).heads / layout.groups[place].kind.kv_heads.max(1)
        });
        let rows = groups.max().unwrap_or(0).max(WATCHED_ROWS);
        let repeating = self.repetition().map_or(0, |Repetition { part, .. }| {
            let marks = 8 * heads * self.when.decode.map_or(prompt_tokens, |_| all);
            // Logits of the part, and of a page of whatever a row looks at.
            let logits = part.min(all) + PAGE_TOKENS;
            marks + 4 * threads * rows * logits
        });
        let moving = |(_, place): (usize, usize)| {
            let group = &layout.groups[place];
            let sharing = match self.allocate.scope() {
                Scope::Layer => group.kind.kv_heads,
                Scope::Model => heads,
            };
            self.moving_bytes(group, pairs.min(grown.max(slots) * sharing), pairs)
        };
        let moving = layout.full_layers().map(moving).max().unwrap_or(0);
        let deciding = repeating + 4 * (heads + threads * ROWS_AT_ONCE) * pairs + moving;
        Ok(KeepBytes {
            peak: reading.max(writing) + rest,
            steady: if slots >= prompt_tokens {
                layout.context_bytes(prompt_tokens, chunk_tokens)
            } else {
                held + windows
            },
            scratch: Observed::bytes_for(layout, self.score.needs(), model, pairs)
                + deciding as u64,
        })
    }
}

impl KvLayout {
    /// The layers with full attention, first layer first, and the place of each one's group.
    pub(crate) fn full_layers(&self) -> impl Iterator<Item = (usize, usize)> {
        let layers = self.layers.iter().enumerate();
        layers.filter_map(|(layer, &(place, _))| {
            (self.groups[place].kind.state == LayerState::Full).then_some((layer, place))
        })
    }

    /// Bytes of blocks of full layers that hold `tokens` tokens, which may begin and end inside a block.
    fn full_bytes(&self, tokens: usize) -> u64 {
        let blocks = tokens.div_ceil(BLOCK_TOKENS) as u64 + 1;
        let groups = self.full_groups();
        groups
            .map(|group| blocks * group.block_bytes() as u64)
            .sum()
    }

    /// Bytes of the blocks of full layers that stay beside streams: with the latest tokens, where those are
    /// held apart.
    pub(super) fn keep_tail_bytes(&self) -> u64 {
        match self.keep_tail() {
            0 => 0,
            tokens => self.full_bytes(tokens),
        }
    }

    fn full_groups(&self) -> impl Iterator<Item = &Group> {
        // The first tokens, where they are held apart, are no more however long a text is.
        let is_full = |group: &&Group| group.kind.state == LayerState::Full && !group.is_of_sinks();
        self.groups.iter().filter(is_full)
    }
}
