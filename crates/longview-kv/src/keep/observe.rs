//! What is gathered of the passes that fill a context, for a keep method that asks for it.
//!
//! A pass that fails or is given up must change nothing, so sums over rows are first gathered beside
//! what holds and joined to it by [`Observed::commit`]. Queries are kept by position: a row that is
//! computed again replaces itself.

use std::sync::Arc;

use longview_kernels::Exec;
use serde::{Deserialize, Serialize};

use super::seen::{LayerSeen, SeenSizes, bytes};
use super::view::LayerView;
use super::{AttentionOf, Gather, Needs};
use crate::batch::Batch;
use crate::context::Context;
use crate::error::KvError;
use crate::layout::{KvLayout, LayerState};
use crate::ledger::{Ledger, Purpose, Reservation};

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

/// How much was gathered.
#[derive(Serialize, Deserialize)]
pub(super) struct Sizes {
    complete: bool,
    layers: Vec<SeenSizes>,
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
            layer.begin();
        }
        Ok(())
    }

    /// Joins what the pass gathered to what holds.
    pub(crate) fn commit(&mut self) {
        if self.needs().is_nothing() {
            return;
        }
        for layer in self.layers_mut() {
            layer.commit();
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
        let pairs = layers.iter().map(LayerSeen::pairs).max();
        let bytes = bytes(&layers, pairs.unwrap_or(0));
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
        let of_pairs = [needs.column_sums, needs.row_entropies, needs.own];
        // What is not of all rows is never looked at.
        if of_pairs == [Gather::No; 3] || !self.complete {
            return;
        }
        self.layers_mut()[layer].gather(which);
    }

    /// Gives back what a pass needed and what was held of pairs that have left, when `pairs` a head are
    /// there on average.
    pub(super) fn shrink(&mut self, pairs: usize) {
        let wanted = bytes(&self.gathered.layers, pairs);
        // What forks hold as well stays theirs.
        let Some(own) = Arc::get_mut(&mut self.gathered) else {
            return;
        };
        own.layers.iter_mut().for_each(LayerSeen::give_back);
        let over = own.held.bytes().saturating_sub(wanted);
        drop(own.held.split(over));
    }

    /// What was gathered for `needs` of a context of `len` tokens, for [`Observed::read`]; its numbers are
    /// appended to `body`. `None` where nothing is gathered any more.
    pub(super) fn write(&self, needs: Needs, len: usize, body: &mut Vec<u8>) -> Option<Sizes> {
        if self.needs().is_nothing() {
            return None;
        }
        let of_layer = |layer: &LayerSeen| {
            let mut layer = layer.narrowed(needs, len);
            if !self.complete {
                layer.forget_pairs();
            }
            layer.write(body)
        };
        Some(Sizes {
            complete: self.complete,
            layers: self.gathered.layers.iter().map(of_layer).collect(),
        })
    }

    /// Takes over what [`Observed::write`] gave of a context of `tokens` tokens in which layer after layer has
    /// `pairs [heads]` pairs, none where nothing is gathered; `numbers` are those that follow in the body.
    /// `Ok(None)` where it is of another method.
    pub(super) fn read(
        &mut self,
        sizes: &Sizes,
        pairs: &[Vec<usize>],
        tokens: usize,
        ledger: &Ledger,
        numbers: &mut dyn FnMut(usize) -> Option<Vec<f32>>,
    ) -> Result<Option<()>, KvError> {
        let most = pairs.iter().flatten().copied().max().unwrap_or(0);
        let mut layers = self.gathered.layers.clone();
        let held = ledger.reserve(Purpose::Scratch, bytes(&layers, most))?;
        if layers.len() != sizes.layers.len() || layers.len() != pairs.len() {
            return Ok(None);
        }
        for ((layer, of_layer), pairs) in layers.iter_mut().zip(&sizes.layers).zip(pairs) {
            let nothing = vec![0; pairs.len()];
            let pairs = if sizes.complete { pairs } else { &nothing };
            if layer.read(of_layer, pairs, tokens, numbers).is_none() {
                return Ok(None);
            }
        }
        self.gathered = Arc::new(Gathered { layers, held });
        self.complete = sizes.complete;
        Ok(Some(()))
    }

    /// Bytes that it takes.
    pub(super) fn bytes(&self) -> u64 {
        self.gathered.held.bytes()
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
