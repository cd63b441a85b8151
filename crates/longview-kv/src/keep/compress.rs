//! Compaction: scores, budgets, what stays, and the move from blocks to streams.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use longview_kernels::Exec;

use super::allocate::Allocation;
use super::pace::Kept;
use super::scored::score_all;
use super::stays::Stays;
use super::stream::Stream;
use super::view::{LayerView, ROWS_AT_ONCE};
use super::{AttentionOf, Moment, Positions, Scores};
use crate::BLOCK_TOKENS;
use crate::context::Context;
use crate::error::KvError;
use crate::layout::{KvLayout, LayerState};
use crate::ledger::Purpose;
use crate::run::BlockRun;
use crate::shared::SharedList;

/// What one compaction did.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Compression {
    /// Pairs of all heads before.
    pub before: usize,
    /// Pairs of all heads after.
    pub after: usize,
    /// Time it took.
    pub time: Duration,
}

/// What stays of one layer: pairs of each head, ascending.
pub(super) type Chosen = Vec<Vec<u32>>;

/// What a compaction is to do.
struct Decided<'a> {
    layers: &'a [usize],
    /// What stays of each of them.
    chosen: &'a [Chosen],
    /// The first token whose pairs stay in blocks.
    edge: usize,
    /// The tokens between the first and the last ones, which always stay.
    open: Range<u32>,
}

impl Context {
    /// Lets the keep method decide now: of its layers stays what the budget has room for, and the
    /// bytes of the rest are free when this returns. Where everything fits the budget, nothing
    /// changes.
    ///
    /// # Errors
    /// [`KvError::OverLimit`] when memory lacks room for both forms at once,
    /// [`KvError::NotObserved`] when the method needs what was not gathered, [`KvError::KeepRefused`]
    /// for scores that are no numbers and for more pairs that must stay than the budget has room for.
    /// The context is as it was then.
    pub fn compress(
        &mut self,
        exec: &Exec,
        model: &dyn AttentionOf,
    ) -> Result<Compression, KvError> {
        let reads_on = |kept: &Kept| self.len() < kept.planned.prompt;
        let moment = match self.kept.as_deref().is_some_and(reads_on) {
            true => Moment::Reading,
            false => Moment::Read,
        };
        self.compress_at(moment, exec, model)
    }

    /// The same where what the context holds is a whole document, although its prompt goes on with a
    /// question: the method decides as at the end.
    ///
    /// # Errors
    /// As [`Context::compress`].
    pub fn compress_document(
        &mut self,
        exec: &Exec,
        model: &dyn AttentionOf,
    ) -> Result<Compression, KvError> {
        self.compress_at(Moment::Read, exec, model)
    }

    fn compress_at(
        &mut self,
        moment: Moment,
        exec: &Exec,
        model: &dyn AttentionOf,
    ) -> Result<Compression, KvError> {
        let begun = Instant::now();
        let Some(mut kept) = self.kept.take() else {
            return Ok(Compression::default());
        };
        let result = self.compress_with(&mut kept, moment, exec, model);
        // What was brought in stays where it was sealed, and may leave memory again.
        self.groups.iter_mut().for_each(BlockRun::unpin);
        let time = begun.elapsed();
        kept.done.time += time;
        self.kept = Some(kept);
        if moment == Moment::Read {
            self.index_left(exec);
        }
        Ok(Compression { time, ..result? })
    }

    /// Shows a layer as a keep method sees it; nothing where none is in charge.
    pub fn look(
        &self,
        exec: &Exec,
        model: &dyn AttentionOf,
        layer: usize,
        visit: &mut dyn FnMut(&LayerView<'_>),
    ) {
        if let Some(kept) = &self.kept {
            visit(&LayerView::new(
                exec.isa,
                self,
                kept,
                layer,
                self.len(),
                model,
            ));
        }
    }

    fn compress_with(
        &mut self,
        kept: &mut Kept,
        moment: Moment,
        exec: &Exec,
        model: &dyn AttentionOf,
    ) -> Result<Compression, KvError> {
        let end = self.len();
        let edge = self.layout().keep_edge(end).max(kept.edge);
        let layers: Vec<usize> = self
            .layout()
            .full_layers()
            .map(|(layer, _)| layer)
            .collect();
        let heads = kept.heads(self.layout());
        let before: usize = kept.pairs_in_all(end, heads);
        let fits = before <= kept.room(end) * heads;
        let moves = edge > kept.edge && kept.is_eager() && kept.plan.when.block.is_some();
        if end == kept.decided_at || fits && !moves {
            if kept.plan.is_in_bytes() {
                self.pass_windows();
            }
            return Ok(Compression {
                before,
                after: before,
                time: Duration::ZERO,
            });
        }
        self.bring_in()?;
        let per_head = kept.pairs(end);
        let scratch = 4 * (before + exec.pool.threads() * ROWS_AT_ONCE * per_head) as u64;
        let _scratch = self.ledger.reserve(Purpose::Scratch, scratch)?;
        let scored = kept.scored.take();
        let known = scored.and_then(|scored| scored.of(self, kept));
        let (known, scoring) = known.unzip();
        let chosen = {
            let views = self.views(exec, kept, model);
            match fits {
                true => views.iter().map(everything).collect(),
                false => {
                    let scores = known.map_or_else(|| score_all(kept, &views, exec), Ok)?;
                    choose(kept, &views, scores, edge, moment, exec)?
                }
            }
        };
        let after = chosen.iter().flatten().map(Vec::len).sum();
        let last = kept.plan.recent(kept.room(end), moment);
        let decided = Decided {
            layers: &layers,
            chosen: &chosen,
            edge,
            open: kept.plan.protected.sinks.max(self.layout().apart()) as u32
                ..end.saturating_sub(last) as u32,
        };
        self.move_to_streams(kept, &decided, exec, model)?;
        kept.decided_at = end;
        kept.done.compactions += usize::from(!fits);
        kept.done.time += scoring.unwrap_or_default();
        Ok(Compression {
            before,
            after,
            time: Duration::ZERO,
        })
    }

    /// Puts what was chosen into streams, as far as it is of tokens before the edge, and frees the blocks.
    fn move_to_streams(
        &mut self,
        kept: &mut Kept,
        decided: &Decided<'_>,
        exec: &Exec,
        model: &dyn AttentionOf,
    ) -> Result<(), KvError> {
        let &Decided {
            layers,
            chosen,
            edge,
            ref open,
        } = decided;
        let end = self.len();
        let layout = Arc::clone(self.layout());
        let place_bytes = kept.plan.place_bytes();
        // A stream that keeps as many pairs of every head is written over where it lies.
        let (within, anew): (Vec<_>, Vec<_>) = layers
            .iter()
            .zip(chosen)
            .partition(|of_layer| kept.moves_within(*of_layer.0, of_layer.1, end - edge, &layout));
        // Tokens from the edge on were chosen all, and so were the first ones where they stay in blocks of their own.
        let apart = |layer: usize| layout.apart_of(layout.layers[layer].0).min(edge);
        let new_bytes = |&(&layer, chosen): &(&usize, &Chosen)| {
            let stay = apart(layer) + end - edge;
            let counts = chosen.iter().map(|pairs| pairs.len() - stay);
            let counts: Vec<usize> = counts.collect();
            Stream::bytes_of(&layout.groups[layout.layers[layer].0], &counts, place_bytes)
        };
        let new: Vec<u64> = anew.iter().map(new_bytes).collect();
        // Old streams leave one by one as new ones are written: all the room that takes is reserved
        // before anything changes, so that nothing can fail on the way.
        let old_bytes = |&layer: &usize| match kept.streams.get(layer) {
            // What a fork holds as well does not become free.
            Some(Some(stream)) if Arc::strong_count(stream) == 1 => stream.bytes(),
            _ => 0,
        };
        let mut over = 0i128;
        let mut most = 0i128;
        for (&new, old) in new
            .iter()
            .zip(anew.iter().map(|(layer, _)| old_bytes(layer)))
        {
            over += i128::from(new);
            most = most.max(over);
            over -= i128::from(old);
        }
        let most = u64::try_from(most).unwrap_or(u64::MAX);
        // Heads are moved one after another.
        let moving = |&(&layer, chosen): &(&usize, &Chosen)| {
            let group = &layout.groups[layout.layers[layer].0];
            let of_head = |(head, pairs): (usize, &Vec<u32>)| {
                let stream = kept.stream(layer);
                let there =
                    stream.map_or(0, |stream| stream.apart() + stream.positions(head).len());
                let gone = there + end - kept.edge - pairs.len();
                kept.plan.moving_bytes(group, pairs.len(), gone)
            };
            chosen.iter().enumerate().map(of_head).max()
        };
        let moving = anew.iter().filter_map(moving).max();
        let moving = moving.unwrap_or(0) as u64;
        let _moving = self.ledger.reserve(Purpose::Scratch, moving)?;
        if let Some(home) = &self.home {
            home.store.make_space(most);
        }
        let mut room = self.ledger.reserve(Purpose::Kv, most)?;
        kept.observed.own(&self.ledger)?;

        kept.streams.resize_with(layout.layers.len(), || None);
        self.close_gaps(kept, &within, end - edge, exec, model);
        // The next layer's stream takes the memory of the last one's: asking for it anew would have all of
        // it cleared.
        let mut spare = None;
        for ((&layer, chosen), &bytes) in anew.into_iter().zip(&new) {
            // Taken out, so that the layer can be looked at beside it.
            let mut memory = kept.take_memory(layer, chosen.len());
            let view = LayerView::new(exec.isa, self, kept, layer, end, model);
            let stays = Stays {
                plan: &kept.plan,
                view: &view,
                chosen,
                apart: apart(layer),
                in_blocks: end - edge,
                open: open.clone(),
            };
            let stream = stays.write(exec, &mut memory, room.split(bytes), spare.take());
            kept.merge_memory.insert(layer, memory);
            kept.observed.gather(layer, chosen);
            let old = kept.streams[layer].replace(Arc::new(stream));
            // A fork may hold the old one: then its bytes are not free.
            if let Some(old) = old.and_then(Arc::into_inner) {
                let (old, memory) = old.into_room();
                room.join(old);
                spare = Some(memory);
            }
        }
        drop((room, spare));
        kept.edge = edge;
        kept.observed.shrink(kept.pairs(end));
        self.free_blocks(edge);
        self.pass_windows();
        self.forget_bounds(edge);
        Ok(())
    }

    /// Moves up what stays of layers whose streams keep as many pairs as they have ([`Kept::moves_within`]), and
    /// behind it what was read since; the last `in_blocks` pairs of every head stay in blocks.
    fn close_gaps(
        &self,
        kept: &mut Kept,
        layers: &[(&usize, &Chosen)],
        in_blocks: usize,
        exec: &Exec,
        model: &dyn AttentionOf,
    ) {
        let taken = layers.iter().filter_map(|&(&layer, chosen)| {
            let stream = Arc::into_inner(kept.streams[layer].take()?)?;
            let moving = chosen.iter().map(|pairs| &pairs[..pairs.len() - in_blocks]);
            Some((layer, stream, moving.collect()))
        });
        let mut taken: Vec<(usize, Stream, Vec<&[u32]>)> = taken.collect();
        exec.pool
            .for_each(&mut taken, |_, (layer, stream, moving), _| {
                // Without its stream the layer is what was read since.
                let view = LayerView::new(exec.isa, self, kept, *layer, self.len(), model);
                let position = |head: usize, &pair: &u32| {
                    let old = stream.positions(head);
                    let since = || (view.position(head, pair as usize - old.len())) as u32;
                    old.get(pair as usize).copied().unwrap_or_else(since)
                };
                let of_head = |(head, pairs): (usize, &&[u32])| {
                    pairs.iter().map(|pair| position(head, pair)).collect()
                };
                let positions = moving.iter().enumerate().map(of_head).collect();
                let append = |head, pairs: &[u32], to: (&mut [u8], &mut [u8]), slot| {
                    view.copy(head, pairs, to, slot);
                };
                stream.close_gaps(view.group(), moving, positions, append);
            });
        for (layer, stream, _) in taken {
            kept.streams[layer] = Some(Arc::new(stream));
        }
        for &(&layer, chosen) in layers {
            kept.observed.gather(layer, chosen);
        }
    }

    /// Drops the blocks of full layers with tokens before `edge`, whose pairs are in streams now. What is
    /// read next goes to the slots that follow; where the edge is the end, in new blocks, where what lies
    /// before it is seen by nobody.
    fn free_blocks(&mut self, edge: usize) {
        let block = self.places.slot(edge) / BLOCK_TOKENS;
        let store = self.home.as_ref().map(|home| &*home.store);
        for (run, group) in self.groups.iter_mut().zip(&self.layout.groups) {
            if group.kind.state != LayerState::Full || group.is_of_sinks() {
                continue;
            }
            match edge < self.tokens.len() {
                true => run.drop_before(block, store),
                false => run.begin_at(block, store),
            }
        }
        if let Some(home) = &mut self.home {
            // Nothing that is computed from here on is what its tokens alone say.
            home.chain = SharedList::default();
        }
    }

    /// Keeps the blocks of full layers in memory, and those of their latest tokens where these are held
    /// apart, and reads those that are not there.
    pub(super) fn bring_in(&mut self) -> Result<(), KvError> {
        let Some(home) = &self.home else {
            return Ok(());
        };
        let store = Arc::clone(&home.store);
        for (run, group) in self.groups.iter_mut().zip(&self.layout.groups) {
            if group.kind.state != LayerState::Full && !group.is_beside {
                continue;
            }
            run.pin_all(group.block_bytes(), &store)?;
        }
        Ok(())
    }
}

impl Kept {
    /// Whether the stream of `layer`, which nobody else holds, keeps as many pairs of every head as it has, as they
    /// are, where the last `in_blocks` of those `chosen` stay in blocks.
    fn moves_within(
        &self,
        layer: usize,
        chosen: &Chosen,
        in_blocks: usize,
        layout: &KvLayout,
    ) -> bool {
        let group = &layout.groups[layout.layers[layer].0];
        let as_they_are = self.plan.merge.is_none() && self.plan.positions == Positions::Text;
        let apart = layout.apart_of(layout.layers[layer].0);
        let Some(Some(stream)) = self.streams.get(layer) else {
            return false;
        };
        let counts = chosen.iter().map(|pairs| pairs.len() - in_blocks);
        let old = (0..stream.heads()).map(|head| stream.positions(head).len());
        as_they_are
            && apart == 0
            && !group.geometry.is_whole()
            && Arc::strong_count(stream) == 1
            && counts.eq(old)
    }

    /// Pairs of `heads` heads together, when `len` tokens have been read.
    fn pairs_in_all(&self, len: usize, heads: usize) -> usize {
        let streams = self.streams.iter().flatten();
        streams.map(|stream| stream.held()).sum::<usize>() + (len - self.edge) * heads
    }
}

/// Every pair of a layer.
fn everything(view: &LayerView<'_>) -> Chosen {
    let all = |head| (0..view.pairs(head) as u32).collect();
    (0..view.heads()).map(all).collect()
}

/// The pairs of each layer that stay by their `scores`, all of tokens from `edge` on among them.
fn choose(
    kept: &Kept,
    views: &[LayerView<'_>],
    mut scores: Vec<Scores>,
    edge: usize,
    moment: Moment,
    exec: &Exec,
) -> Result<Vec<Chosen>, KvError> {
    let plan = &*kept.plan;
    let tokens = views.first().map_or(0, LayerView::tokens);
    let slots = kept.room(tokens);
    let mut protected = Vec::new();
    for (view, scores) in views.iter().zip(&mut scores) {
        let mut counts = Vec::new();
        for (head, scores) in scores.heads.iter_mut().enumerate() {
            if let Some(pair) = scores.iter().position(|score| score.is_nan()) {
                return Err(plan.refused(format!(
                    "the score of token {} in layer {}, KV head {head}, is not a number",
                    view.position(head, pair),
                    view.layer()
                )));
            }
            let sinks = view.first_from(head, plan.protected.sinks.max(view.apart()));
            let last = plan.recent(slots, moment);
            let recent = view.first_from(head, view.tokens().saturating_sub(last).min(edge));
            scores[..sinks].fill(f32::INFINITY);
            scores[recent..].fill(f32::INFINITY);
            counts.push(
                scores
                    .iter()
                    .filter(|&&score| score == f32::INFINITY)
                    .count(),
            );
        }
        protected.push(counts);
    }
    let layers: Vec<usize> = views.iter().map(LayerView::layer).collect();
    let ask = Allocation {
        layers: &layers,
        scores: &scores,
        protected: &protected,
        slots,
        tokens,
        planned: kept.planned,
    };
    if let Some(least) = ask.lacks(plan.allocate.scope()) {
        return Err(plan.refused(format!(
            "its budget has room for {slots} pairs a KV head, but {least} are of tokens that must stay; \
             give at least as much"
        )));
    }
    let counts = ask.counts(&*plan.allocate);
    for (view, scores) in views.iter().zip(&mut scores) {
        kept.put_images_last(view, scores);
    }
    let mut chosen: Vec<Chosen> = counts
        .iter()
        .map(|heads| vec![Vec::new(); heads.len()])
        .collect();
    exec.pool.for_each(&mut chosen, |layer, chosen, _| {
        for (head, chosen) in chosen.iter_mut().enumerate() {
            *chosen = best(scores[layer].head(head), counts[layer][head]);
        }
    });
    Ok(chosen)
}

/// The `count` pairs with the highest scores, of equal ones the first, ascending.
fn best(scores: &[f32], count: usize) -> Vec<u32> {
    let pairs = 0..scores.len() as u32;
    if count >= scores.len() {
        return pairs.collect();
    }
    if count == 0 {
        return Vec::new();
    }
    let ranks: Vec<i32> = scores.iter().map(|&score| ordered(score)).collect();
    let mut order = ranks.clone();
    let (_, &mut least, _) = order.select_nth_unstable_by(count - 1, |a, b| b.cmp(a));
    // Of those with the lowest score that stays, the first ones.
    let mut ties = count - ranks.iter().filter(|&&rank| rank > least).count();
    let mut chosen = Vec::with_capacity(count);
    for (pair, rank) in pairs.zip(ranks) {
        if rank > least {
            chosen.push(pair);
        } else if rank == least && ties > 0 {
            ties -= 1;
            chosen.push(pair);
        }
    }
    chosen
}

/// A number whose order is that of the floats, -0 and 0 being equal.
fn ordered(x: f32) -> i32 {
    let bits = (x + 0.0).to_bits() as i32;
    bits ^ (((bits >> 31) as u32) >> 1) as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_pairs_are_chosen_and_the_first_of_equal_ones() {
        let scores = [0.5, 2.0, -1.0, 2.0, f32::INFINITY, 0.5, -0.0, 0.0];
        assert_eq!(best(&scores, 1), [4]);
        assert_eq!(best(&scores, 2), [1, 4]);
        assert_eq!(best(&scores, 4), [0, 1, 3, 4]);
        assert_eq!(best(&scores, 6), [0, 1, 3, 4, 5, 6]);
        assert_eq!(best(&scores, 0), [0u32; 0]);
        assert_eq!(best(&scores, 99).len(), 8);
        let numbers = [
            f32::NEG_INFINITY,
            -2.5,
            -1e-30,
            0.0,
            1e-30,
            7.0,
            f32::INFINITY,
        ];
        assert!(
            numbers
                .windows(2)
                .all(|pair| ordered(pair[0]) < ordered(pair[1]))
        );
        assert_eq!(ordered(-0.0), ordered(0.0));
    }
}
