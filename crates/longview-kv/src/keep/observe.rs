//! What is gathered of the passes that fill a context, for a keep method that asks for it.
//!
//! A pass that fails or is given up must change nothing, so sums over rows are first gathered beside
//! what holds and joined to it by [`Observed::commit`]. Queries are kept by position: a row that is
//! computed again replaces itself.

use std::sync::Arc;

use longview_kernels::{Exec, activation};

use super::view::LayerView;
use super::{AttentionOf, Gather, Needs, PlainRows, Score};
use crate::batch::Batch;
use crate::context::Context;
use crate::error::KvError;
use crate::layout::{KvLayout, LayerState};
use crate::ledger::{Ledger, Purpose, Reservation};

/// Stands for no token.
const NOBODY: u32 = u32::MAX;

/// What was gathered of all layers; shared by forks until one goes on.
#[derive(Clone)]
pub(crate) struct Observed {
    gathered: Arc<Gathered>,
    /// Whether every row of the context was watched.
    complete: bool,
}

struct Gathered {
    layers: Vec<LayerSeen>,
    held: Reservation,
}

/// What was gathered of one layer.
#[derive(Clone, Default)]
pub(crate) struct LayerSeen {
    pub(super) needs: Needs,
    /// Numbers of a row of queries; 0 for layers that are not compressed.
    row: usize,
    head_dim: usize,
    /// `[last_queries][heads][head_dim]`: the row of position `p` at `p % last_queries`.
    queries: Vec<f32>,
    /// The position whose queries stand in each place.
    held: Vec<u32>,
    /// `[kv heads][pairs]`
    pub(super) sums: Vec<Vec<f32>>,
    /// The same of the pass that runs.
    new_sums: Vec<Vec<f32>>,
    /// `[kv heads][pairs]`
    pub(super) entropies: Vec<Vec<f32>>,
    /// Of the tokens of the pass that runs.
    new_entropies: Vec<Vec<f32>>,
    /// `[kv heads][pairs]`
    pub(super) own: Vec<Vec<f32>>,
    /// Of the tokens of the pass that runs.
    new_own: Vec<Vec<f32>>,
    /// `[heads]`
    moments: Vec<Moments>,
    new_moments: Vec<Moments>,
}

/// Sums over queries of one head.
#[derive(Clone, Default)]
struct Moments {
    count: usize,
    /// `[head_dim]`
    first: Vec<f32>,
    /// `[head_dim][head_dim]`
    second: Vec<f32>,
}

/// The rows of one layer in a pass.
#[derive(Clone, Copy)]
pub struct LayerRows<'a> {
    /// The layer.
    pub layer: usize,
    /// `[rows][heads][head_dim]`, after rotary embedding.
    pub q: &'a [f32],
    /// `[rows][kv heads][head_dim]`, after rotary embedding.
    pub k: &'a [f32],
    /// `[rows][kv heads][v_dim]`
    pub v: &'a [f32],
}

impl Observed {
    /// Nothing gathered yet of a model with this layout.
    pub(super) fn new(
        layout: &KvLayout,
        needs: Needs,
        model: &dyn AttentionOf,
        ledger: &Ledger,
    ) -> Result<Observed, KvError> {
        let layer = |(index, &(place, _)): (usize, &(usize, usize))| {
            let kind = &layout.groups[place].kind;
            if kind.state != LayerState::Full {
                return LayerSeen::default();
            }
            let heads = model.shape(index).heads;
            LayerSeen::new(needs, heads, kind.kv_heads, kind.head_dim)
        };
        let layers: Vec<LayerSeen> = layout.layers.iter().enumerate().map(layer).collect();
        let held = ledger.reserve(Purpose::Scratch, bytes(&layers, 0))?;
        Ok(Observed {
            gathered: Arc::new(Gathered { layers, held }),
            complete: true,
        })
    }

    /// Bytes that it takes for a context of `tokens` tokens.
    pub(super) fn bytes_for(
        layout: &KvLayout,
        needs: Needs,
        model: &dyn AttentionOf,
        tokens: usize,
    ) -> u64 {
        let full = layout.full_layers().map(|(layer, place)| {
            let kind = &layout.groups[place].kind;
            LayerSeen::new(
                needs,
                model.shape(layer).heads,
                kind.kv_heads,
                kind.head_dim,
            )
        });
        bytes(&full.collect::<Vec<_>>(), tokens)
    }

    /// Makes room for a pass of `count` tokens that begins with `pairs` pairs a head at most, apart
    /// from forks.
    pub(crate) fn begin(
        &mut self,
        pairs: usize,
        count: usize,
        ledger: &Ledger,
    ) -> Result<(), KvError> {
        if self.needs().is_nothing() {
            return Ok(());
        }
        let wanted = bytes(&self.gathered.layers, pairs + count);
        match Arc::get_mut(&mut self.gathered) {
            Some(own) => {
                if let Some(more) = wanted.checked_sub(own.held.bytes()) {
                    own.held.join(ledger.reserve(Purpose::Scratch, more)?);
                }
            }
            None => {
                let held = ledger.reserve(Purpose::Scratch, wanted)?;
                let layers = self.gathered.layers.clone();
                self.gathered = Arc::new(Gathered { layers, held });
            }
        }
        for layer in self.layers_mut() {
            layer.new_sums.iter_mut().for_each(Vec::clear);
            layer.new_entropies.iter_mut().for_each(Vec::clear);
            layer.new_own.iter_mut().for_each(Vec::clear);
            layer.new_moments.iter_mut().for_each(Moments::clear);
        }
        Ok(())
    }

    /// Joins what the pass gathered to what holds.
    pub(crate) fn commit(&mut self) {
        if self.needs().is_nothing() {
            return;
        }
        for layer in self.layers_mut() {
            for (sums, new) in layer.sums.iter_mut().zip(&mut layer.new_sums) {
                sums.resize(new.len().max(sums.len()), 0.0);
                sums.iter_mut()
                    .zip(new.drain(..))
                    .for_each(|(s, n)| *s += n);
            }
            let entropies = layer.entropies.iter_mut();
            for (entropies, new) in entropies.zip(&mut layer.new_entropies) {
                entropies.append(new);
            }
            for (own, new) in layer.own.iter_mut().zip(&mut layer.new_own) {
                own.append(new);
            }
            for (moments, new) in layer.moments.iter_mut().zip(&mut layer.new_moments) {
                moments.join(new);
                new.clear();
            }
        }
    }

    /// The same as far as `needs`, part of what was gathered of `len` tokens, asks for: nothing else is
    /// gathered from here on.
    pub(super) fn narrowed(
        self,
        needs: Needs,
        len: usize,
        ledger: &Ledger,
    ) -> Result<Observed, KvError> {
        if self.needs() == needs {
            return Ok(self);
        }
        let layers = self.gathered.layers.iter();
        let layers: Vec<LayerSeen> = layers.map(|layer| layer.narrowed(needs, len)).collect();
        let longest = |lists: &[Vec<f32>]| lists.iter().map(Vec::len).max().unwrap_or(0);
        let pairs = layers.iter().flat_map(|layer| {
            [&layer.sums, &layer.entropies, &layer.own].map(|lists| longest(lists))
        });
        let bytes = bytes(&layers, pairs.max().unwrap_or(0));
        let held = ledger.reserve(Purpose::Scratch, bytes)?;
        Ok(Observed {
            gathered: Arc::new(Gathered { layers, held }),
            complete: self.complete,
        })
    }

    /// Nothing more is gathered, and what was is let go.
    pub(super) fn end(&mut self, ledger: &Ledger) {
        // Without room for nothing it is gathered to no purpose, and does no harm.
        if let Ok(held) = ledger.reserve(Purpose::Scratch, 0) {
            let layers = vec![LayerSeen::default(); self.gathered.layers.len()];
            self.gathered = Arc::new(Gathered { layers, held });
        }
    }

    /// Some rows were not watched or are no longer part of the context: sums over rows are not known.
    pub(crate) fn forget_sums(&mut self) {
        self.complete = false;
    }

    /// Whether sums over rows are of all rows of the context.
    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    /// Keeps of the sums of a layer those of the pairs `which` of each head.
    pub(super) fn gather(&mut self, layer: usize, which: &[Vec<u32>]) {
        let needs = self.needs();
        if [needs.column_sums, needs.row_entropies, needs.own] == [Gather::No; 3] {
            return;
        }
        let layer = &mut self.layers_mut()[layer];
        for lists in [&mut layer.sums, &mut layer.entropies, &mut layer.own] {
            for (list, which) in lists.iter_mut().zip(which) {
                if !list.is_empty() {
                    *list = which.iter().map(|&pair| list[pair as usize]).collect();
                }
            }
        }
    }

    /// Gives back what a pass needed and what was held of pairs that have left, when `pairs` a head are
    /// there on average.
    pub(super) fn shrink(&mut self, pairs: usize) {
        let wanted = bytes(&self.gathered.layers, pairs);
        // What forks hold as well stays theirs.
        let Some(own) = Arc::get_mut(&mut self.gathered) else {
            return;
        };
        for layer in &mut own.layers {
            for lists in [
                &mut layer.new_sums,
                &mut layer.new_entropies,
                &mut layer.new_own,
            ] {
                lists.fill(Vec::new());
            }
        }
        let over = own.held.bytes().saturating_sub(wanted);
        drop(own.held.split(over));
    }

    pub(super) fn layer(&self, layer: usize) -> &LayerSeen {
        &self.gathered.layers[layer]
    }

    pub(super) fn needs(&self) -> Needs {
        let needs = self.gathered.layers.iter().map(|layer| layer.needs);
        needs.fold(Needs::default(), Needs::and)
    }

    /// Makes it this context's own, to be changed outside of a pass.
    pub(super) fn own(&mut self, ledger: &Ledger) -> Result<(), KvError> {
        if Arc::get_mut(&mut self.gathered).is_none() {
            let held = ledger.reserve(Purpose::Scratch, self.gathered.held.bytes())?;
            let layers = self.gathered.layers.clone();
            self.gathered = Arc::new(Gathered { layers, held });
        }
        Ok(())
    }

    fn layers_mut(&mut self) -> &mut [LayerSeen] {
        let own = Arc::get_mut(&mut self.gathered);
        &mut own.expect("begin and own part it from forks").layers
    }
}

impl Batch<'_> {
    /// Lets the keep methods of the batch's contexts gather what they need of a layer, whose keys
    /// and values were appended. Costs nothing where none needs anything.
    pub fn observe(&mut self, exec: &Exec, rows: LayerRows<'_>, model: &dyn AttentionOf) {
        for index in 0..self.segments().len() {
            let range = self.rows_of(index);
            let context = &mut *self.segments_mut()[index].context;
            let wants = |kept: &super::Kept| kept.observes(rows.layer);
            if context.kept.as_deref().is_some_and(wants) {
                let row = rows.q.len() / self.rows();
                let k_row = rows.k.len() / self.rows();
                let v_row = rows.v.len() / self.rows();
                let rows = LayerRows {
                    layer: rows.layer,
                    q: &rows.q[range.start * row..range.end * row],
                    k: &rows.k[range.start * k_row..range.end * k_row],
                    v: &rows.v[range.start * v_row..range.end * v_row],
                };
                let context = &mut *self.segments_mut()[index].context;
                context.observe(exec, rows, model);
            }
        }
    }
}

impl Context {
    fn observe(&mut self, exec: &Exec, rows: LayerRows<'_>, model: &dyn AttentionOf) {
        let start = self.len();
        let Some(mut kept) = self.kept.take() else {
            return;
        };
        let end = start + rows.q.len() / kept.observed.layer(rows.layer).row;
        if let Some(watch) = kept.watch.as_deref_mut() {
            // Taken out, so that the context can be looked at beside it.
            let mut watch = std::mem::take(watch);
            let view = LayerView::new(exec.isa, self, &kept, rows.layer, end, model);
            watch.note(exec, &view, start, rows.q);
            kept.watch = Some(Box::new(watch));
        }
        if !kept.observed.layer(rows.layer).gathers() {
            // Still shared with forks: there was nothing to make room for.
            self.kept = Some(kept);
            return;
        }
        // Taken out for the same reason.
        let mut seen = std::mem::take(&mut kept.observed.layers_mut()[rows.layer]);
        seen.note_queries(start, rows.q);
        if seen.needs.column_sums == Gather::Yes {
            let view = LayerView::new(exec.isa, self, &kept, rows.layer, end, model);
            seen.note_sums(exec, &view, start, rows.q);
        }
        if seen.needs.query_moments == Gather::Yes {
            let set = self.identity().rope;
            let turn = |positions: isize, vectors: &mut [f32]| {
                model.rotate(rows.layer, set, positions, vectors);
            };
            seen.note_moments(exec, start, rows.q, &turn);
        }
        if seen.needs.own == Gather::Yes {
            let set = self.identity().rope;
            let turn = |positions: isize, vectors: &mut [f32]| {
                model.rotate(rows.layer, set, positions, vectors);
            };
            seen.note_own(exec, &*kept.plan.score, start, rows, &turn);
        }
        kept.observed.layers_mut()[rows.layer] = seen;
        self.kept = Some(kept);
    }
}

impl LayerSeen {
    fn new(needs: Needs, heads: usize, kv_heads: usize, head_dim: usize) -> LayerSeen {
        let of = |gather: Gather, count: usize| match gather {
            Gather::Yes => count,
            Gather::No => 0,
        };
        LayerSeen {
            needs,
            row: heads * head_dim,
            head_dim,
            queries: vec![0.0; needs.last_queries * heads * head_dim],
            held: vec![NOBODY; needs.last_queries],
            sums: vec![Vec::new(); of(needs.column_sums, kv_heads)],
            new_sums: vec![Vec::new(); of(needs.column_sums, kv_heads)],
            entropies: vec![Vec::new(); of(needs.row_entropies, kv_heads)],
            new_entropies: vec![Vec::new(); of(needs.row_entropies, kv_heads)],
            own: vec![Vec::new(); of(needs.own, kv_heads)],
            new_own: vec![Vec::new(); of(needs.own, kv_heads)],
            moments: vec![Moments::default(); of(needs.query_moments, heads)],
            new_moments: vec![Moments::default(); of(needs.query_moments, heads)],
        }
    }

    /// What of it `needs` asks for, when the context has `len` tokens.
    fn narrowed(&self, needs: Needs, len: usize) -> LayerSeen {
        if !self.is_watched() {
            return LayerSeen::default();
        }
        let kept = |gather: Gather, lists: &[Vec<f32>]| match gather {
            Gather::Yes => lists.to_vec(),
            Gather::No => Vec::new(),
        };
        let cleared =
            |gather: Gather, lists: &[Vec<f32>]| kept(gather, &vec![Vec::new(); lists.len()]);
        let moments = match needs.query_moments {
            Gather::Yes => self.moments.clone(),
            Gather::No => Vec::new(),
        };
        let mut narrowed = LayerSeen {
            needs,
            row: self.row,
            head_dim: self.head_dim,
            queries: vec![0.0; needs.last_queries * self.row],
            held: vec![NOBODY; needs.last_queries],
            sums: kept(needs.column_sums, &self.sums),
            new_sums: cleared(needs.column_sums, &self.new_sums),
            entropies: kept(needs.row_entropies, &self.entropies),
            new_entropies: cleared(needs.row_entropies, &self.new_entropies),
            own: kept(needs.own, &self.own),
            new_own: cleared(needs.own, &self.new_own),
            new_moments: vec![Moments::default(); moments.len()],
            moments,
        };
        let is_held = |position: &u32| (*position as usize) < len;
        let mut known: Vec<u32> = self.held.iter().copied().filter(is_held).collect();
        known.sort_unstable();
        for &position in &known[known.len().saturating_sub(needs.last_queries)..] {
            if let Some(row) = self.query(position as usize) {
                narrowed.note_queries(position as usize, row);
            }
        }
        narrowed
    }

    /// Whether the layer is one that is compressed.
    pub(super) fn is_watched(&self) -> bool {
        self.row > 0
    }

    /// Whether anything is gathered of it in every pass.
    pub(super) fn gathers(&self) -> bool {
        let Needs { last_queries, .. } = self.needs;
        last_queries > 0 || self.needs.every_token()
    }

    /// The queries of position `position`, if they are known.
    pub(super) fn query(&self, position: usize) -> Option<&[f32]> {
        let place = position.checked_rem(self.held.len())?;
        let known = self.held[place] as usize == position;
        known.then(|| &self.queries[place * self.row..][..self.row])
    }

    /// Sum, sum of outer products and number of the queries of a head.
    pub(super) fn moments(&self, head: usize) -> Option<(&[f32], &[f32], usize)> {
        let moments = self.moments.get(head).filter(|moments| moments.count > 0)?;
        Some((&moments.first, &moments.second, moments.count))
    }

    fn note_queries(&mut self, start: usize, q: &[f32]) {
        let places = self.held.len();
        let rows = q.len() / self.row;
        if places == 0 {
            return;
        }
        for row in rows.saturating_sub(places)..rows {
            let place = (start + row) % places;
            self.held[place] = (start + row) as u32;
            self.queries[place * self.row..][..self.row]
                .copy_from_slice(&q[row * self.row..][..self.row]);
        }
    }

    fn note_sums(&mut self, exec: &Exec, view: &LayerView<'_>, start: usize, q: &[f32]) {
        let (dim, row) = (self.head_dim, self.row);
        let rows = q.len() / row;
        let group = row / dim / view.heads();
        let wants_entropies = self.needs.row_entropies == Gather::Yes;
        let mut heads: Vec<(&mut Vec<f32>, Vec<f32>)> = self
            .new_sums
            .iter_mut()
            .map(|sums| (sums, Vec::new()))
            .collect();
        exec.pool
            .for_each(&mut heads, |head, (sums, entropies), _| {
                sums.clear();
                sums.resize(view.pairs(head), 0.0);
                let mut queries = Vec::with_capacity(rows * group * dim);
                let mut positions = Vec::with_capacity(rows * group);
                for at in 0..rows {
                    let from = at * row + head * group * dim;
                    queries.extend_from_slice(&q[from..from + group * dim]);
                    positions.extend(std::iter::repeat_n((start + at) as u32, group));
                }
                if wants_entropies {
                    entropies.resize(rows, 0.0);
                }
                view.attention(head, &queries, &positions, &mut |row, weights| {
                    view.add(sums, weights);
                    if wants_entropies {
                        entropies[row / group] += entropy(weights) / group as f32;
                    }
                });
            });
        let entropies: Vec<Vec<f32>> = heads.into_iter().map(|(_, entropies)| entropies).collect();
        if wants_entropies {
            self.new_entropies = entropies;
        }
    }

    fn note_own(
        &mut self,
        exec: &Exec,
        score: &dyn Score,
        start: usize,
        rows: LayerRows<'_>,
        turn: &(dyn Fn(isize, &mut [f32]) + Sync),
    ) {
        let count = rows.q.len() / self.row;
        let [q, k] = [rows.q, rows.k].map(|rotated| {
            let mut plain = rotated.to_vec();
            exec.pool
                .for_each_chunk(&mut plain, rotated.len() / count, |at, row, _| {
                    turn(-((start + at) as isize), row);
                });
            plain
        });
        for own in &mut self.new_own {
            own.clear();
            own.resize(count, 0.0);
        }
        let plain = PlainRows {
            layer: rows.layer,
            q: &q,
            k: &k,
            v: rows.v,
        };
        score.own(exec, &plain, &mut self.new_own);
    }

    fn note_moments(
        &mut self,
        exec: &Exec,
        start: usize,
        q: &[f32],
        turn: &(dyn Fn(isize, &mut [f32]) + Sync),
    ) {
        let (dim, row) = (self.head_dim, self.row);
        let from = self.needs.moments_from;
        let mut turned = q.to_vec();
        exec.pool
            .for_each_chunk(&mut turned, row, |at, queries, _| {
                turn(-((start + at) as isize), queries);
            });
        let turned = &turned;
        exec.pool
            .for_each(&mut self.new_moments, |head, moments, _| {
                moments.first.resize(dim, 0.0);
                moments.second.resize(dim * dim, 0.0);
                let skipped = from.saturating_sub(start);
                for row in turned.chunks_exact(row).skip(skipped) {
                    let q = &row[head * dim..(head + 1) * dim];
                    moments.count += 1;
                    activation::add(exec.isa, &mut moments.first, q);
                    for (&x, second) in q.iter().zip(moments.second.chunks_exact_mut(dim)) {
                        activation::add_scaled(exec.isa, second, q, x);
                    }
                }
            });
    }
}

impl Moments {
    fn clear(&mut self) {
        *self = Moments::default();
    }

    fn join(&mut self, new: &Moments) {
        self.count += new.count;
        for (sums, new) in [
            (&mut self.first, &new.first),
            (&mut self.second, &new.second),
        ] {
            sums.resize(new.len().max(sums.len()), 0.0);
            sums.iter_mut().zip(new).for_each(|(s, n)| *s += n);
        }
    }
}

/// The entropy of weights that add up to 1.
fn entropy(weights: &[f32]) -> f32 {
    let part = |&weight: &f32| {
        if weight > 0.0 {
            weight * weight.ln()
        } else {
            0.0
        }
    };
    -weights.iter().map(part).sum::<f32>()
}

/// Bytes gathered of `layers` with `pairs` pairs a head.
fn bytes(layers: &[LayerSeen], pairs: usize) -> u64 {
    let of_layer = |layer: &LayerSeen| {
        let lists = [
            &layer.sums,
            &layer.new_sums,
            &layer.entropies,
            &layer.new_entropies,
            &layer.own,
            &layer.new_own,
        ];
        let sums = lists.iter().map(|list| list.len()).sum::<usize>() * pairs;
        let moments = 2 * layer.moments.len() * (layer.head_dim + 1) * layer.head_dim;
        4 * (layer.queries.len() + layer.held.len() + sums + moments)
    };
    layers.iter().map(of_layer).sum::<usize>() as u64
}
