//! What a keep method sees of one layer: its pairs, and what was gathered.

mod pages;

use std::ops::Range;

use longview_kernels::attention::{AttentionScratch, score_page, softmax};
use longview_kernels::page::PAGE_TOKENS;
use longview_kernels::{Isa, activation};

use super::repeat::Marked;
use super::seen::LayerSeen;
use super::stream::Stream;
use super::{AttentionOf, AttentionShape, Kept, Positions};
use crate::context::{Context, RopeSet};
use crate::error::KvError;
use crate::layout::{Group, Recent};
use crate::shared::SharedList;
use crate::tokens::PIECE;
pub use pages::{KeyPage, ValuePage};

/// Query rows whose logits are in memory at once: four register tiles.
pub(super) const ROWS_AT_ONCE: usize = 24;

/// The products of some vectors with the keys of a page.
pub(super) struct PageProducts<'a> {
    /// The first of the pairs that were asked for.
    pub(super) first: usize,
    /// Where they lie.
    pub(super) slots: Range<usize>,
    /// `[rows][64]`, not capped.
    pub(super) products: &'a mut [f32],
    /// What attention adds to each, `[64]`; empty where nothing is.
    pub(super) log_weights: &'a [f32],
}

/// One layer of a context. A head's pairs are numbered from 0, ascending by position: first what an
/// earlier compaction left, which begins with the first tokens where the layer's form holds them apart, then
/// every token read since.
pub struct LayerView<'a> {
    isa: Isa,
    layer: usize,
    layers: usize,
    group: &'a Group,
    stream: Option<&'a Stream>,
    /// The layer's slices of the blocks since the last compaction.
    tail: Tail<'a>,
    /// The same with the latest tokens as they were written, where these are held apart.
    latest: Option<Latest<'a>>,
    /// The first tokens as they were written, where these are.
    sinks: Option<Sinks<'a>>,
    /// The first token in `tail`, and its slot there.
    edge: usize,
    edge_slot: usize,
    /// Tokens read.
    end: usize,
    rope: RopeSet,
    model: &'a dyn AttentionOf,
    seen: &'a LayerSeen,
    /// Whether sums over rows are of all rows.
    complete: bool,
    marks: &'a Marked,
    /// Of how many of the first tokens they hold.
    marked: usize,
    positions: Positions,
    tokens: &'a SharedList<u32, PIECE>,
}

/// One layer's slices of some blocks that follow one another; nothing where a window has passed.
type Tail<'a> = Vec<Option<&'a [u8]>>;

/// Latest tokens that are held apart from the older ones.
struct Latest<'a> {
    group: &'a Group,
    recent: Recent,
    tail: Tail<'a>,
    /// The first block of `tail`, and the first that is there.
    first: usize,
    from: usize,
}

/// First tokens that are held apart from the later ones.
struct Sinks<'a> {
    group: &'a Group,
    /// All of their blocks, from the first on, as far as they are there.
    blocks: Tail<'a>,
}

/// Queries of the query heads of one KV head.
pub struct Queries {
    /// `[query heads][rows][head_dim]`, rotated to their positions, not scaled.
    pub queries: Vec<f32>,
    /// The tokens they are of, for every row of `queries`.
    pub positions: Vec<u32>,
    /// Query heads.
    pub heads: usize,
}

impl<'a> LayerView<'a> {
    /// Layer `layer` of `context` with its first `end` tokens, whose blocks must be in memory.
    pub(super) fn new(
        isa: Isa,
        context: &'a Context,
        kept: &'a Kept,
        layer: usize,
        end: usize,
        model: &'a dyn AttentionOf,
    ) -> LayerView<'a> {
        let (place, at) = context.layout().layers[layer];
        let group = &context.layout().groups[place];
        let edge = kept.edge();
        let first = context.places.slot(edge) / PAGE_TOKENS;
        let last = (context.places.slot(edge) + end - edge).div_ceil(PAGE_TOKENS);
        let tail = |place: usize, group: &'a Group| -> Tail<'a> {
            let slice = |index| Some(context.block(place, index)?.layer(group, at));
            (first..last).map(slice).collect()
        };
        let latest = group.recent.map(|recent| {
            let group = &context.layout().groups[recent.group];
            let tail = tail(recent.group, group);
            let missing = tail.iter().rposition(Option::is_none);
            Latest {
                group,
                recent,
                first,
                from: first + missing.map_or(0, |last| last + 1),
                tail,
            }
        });
        let sinks = group.recent.and_then(|recent| recent.sinks);
        let sinks = sinks.map(|place| {
            let group = &context.layout().groups[place];
            let slice = |index| Some(context.block(place, index)?.layer(group, at));
            Sinks {
                group,
                blocks: (0..group.most_blocks).map(slice).collect(),
            }
        });
        LayerView {
            isa,
            layer,
            layers: context.layout().layers.len(),
            group,
            stream: kept.stream(layer),
            tail: tail(place, group),
            latest,
            sinks,
            edge,
            edge_slot: context.places.slot(edge) % PAGE_TOKENS,
            end,
            rope: context.identity().rope,
            model,
            seen: kept.observed.layer(layer),
            complete: kept.observed.is_complete(),
            marks: &kept.marks,
            marked: kept.marked,
            positions: kept.plan.positions,
            tokens: &context.tokens,
        }
    }

    /// Its number, from 0.
    pub fn layer(&self) -> usize {
        self.layer
    }

    /// Layers of the model.
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// KV heads.
    pub fn heads(&self) -> usize {
        self.group.kind.kv_heads
    }

    /// Channels of a key.
    pub fn head_dim(&self) -> usize {
        self.group.kind.head_dim
    }

    /// Channels of a value.
    pub fn v_dim(&self) -> usize {
        self.group.kind.v_dim
    }

    /// Tokens read so far, those that are gone included.
    pub fn tokens(&self) -> usize {
        self.end
    }

    /// How the layer attends.
    pub fn shape(&self) -> AttentionShape {
        self.model.shape(self.layer)
    }

    /// Pairs of a head.
    pub fn pairs(&self, head: usize) -> usize {
        self.before(head) + self.end - self.edge
    }

    /// The first tokens that the layer's form holds apart, which always stay.
    pub(super) fn apart(&self) -> usize {
        let sinks = self.sinks.as_ref();
        sinks.map_or(0, |sinks| sinks.blocks.len() * PAGE_TOKENS)
    }

    /// Pairs of those of them that an earlier compaction has passed.
    fn apart_before(&self) -> usize {
        self.stream.map_or(0, Stream::apart)
    }

    /// Pairs of a head that an earlier compaction left.
    fn before(&self, head: usize) -> usize {
        self.apart_before() + self.kept(head).len()
    }

    /// The token that a pair is of.
    pub fn position(&self, head: usize, pair: usize) -> usize {
        let apart = self.apart_before();
        if pair < apart {
            return pair;
        }
        match self.kept(head).get(pair - apart) {
            Some(&position) => position as usize,
            None => self.edge + pair - self.before(head),
        }
    }

    /// The position that the key of a pair is rotated to: its token's, or where it has moved to since
    /// gaps before it were closed.
    pub(super) fn place(&self, head: usize, pair: usize) -> usize {
        let kept = self.kept(head).len();
        match self.positions {
            Positions::Slots if pair < kept => self.edge - kept + pair,
            _ => self.position(head, pair),
        }
    }

    /// The id of the token that a pair is of.
    pub fn token(&self, position: usize) -> u32 {
        self.tokens.get(position).copied().unwrap_or_default()
    }

    /// The bytes that a token writes; `None` where the model has no text.
    pub fn spelling(&self, token: u32) -> Option<Vec<u8>> {
        self.model.spelling(token)
    }

    /// The first pair of a head that is of token `position` or a later one.
    pub fn first_from(&self, head: usize, position: usize) -> usize {
        let apart = self.apart_before();
        if position < self.edge {
            let before = |&at: &u32| (at as usize) < position;
            position.min(apart) + self.kept(head).partition_point(before)
        } else {
            self.before(head) + position.min(self.end) - self.edge
        }
    }

    /// The attention that each pair of a head was given since it was read, summed over all rows and
    /// query heads of its group.
    ///
    /// # Errors
    /// [`KvError::NotObserved`] when the score did not ask for it, or not from the first token on.
    pub fn column_sums(&self, head: usize) -> Result<&[f32], KvError> {
        match self.seen.sums.get(head) {
            Some(sums) if self.complete && sums.len() == self.pairs(head) => Ok(sums),
            _ => Err(KvError::NotObserved {
                what: "the attention that every token has received".to_owned(),
            }),
        }
    }

    /// How widely the token of each pair of a head spread its own attention: the entropy of its row.
    ///
    /// # Errors
    /// As [`LayerView::column_sums`].
    pub fn row_entropies(&self, head: usize) -> Result<&[f32], KvError> {
        match self.seen.entropies.get(head) {
            Some(entropies) if self.complete && entropies.len() == self.pairs(head) => {
                Ok(entropies)
            }
            _ => Err(KvError::NotObserved {
                what: "how every token has spread its attention".to_owned(),
            }),
        }
    }

    /// The number that [`Score::own`](super::Score::own) made for the token of each pair of a head.
    ///
    /// # Errors
    /// As [`LayerView::column_sums`].
    pub fn own(&self, head: usize) -> Result<&[f32], KvError> {
        match self.seen.own.get(head) {
            Some(own) if self.complete && own.len() == self.pairs(head) => Ok(own),
            _ => Err(KvError::NotObserved {
                what: "what its heads make of every token".to_owned(),
            }),
        }
    }

    /// The queries of the last `count` tokens, or of all where they are fewer, of the query heads of
    /// KV head `head`.
    ///
    /// # Errors
    /// [`KvError::NotObserved`] when they are not known.
    pub fn last_queries(&self, head: usize, count: usize) -> Result<Queries, KvError> {
        let count = count.min(self.end);
        let dim = self.head_dim();
        let group = self.shape().heads / self.heads();
        let missing = || KvError::NotObserved {
            what: format!("the queries of the last {count} tokens"),
        };
        let mut queries = Queries {
            queries: Vec::with_capacity(group * count * dim),
            positions: Vec::with_capacity(group * count),
            heads: group,
        };
        for member in 0..group {
            for position in self.end - count..self.end {
                let row = self.seen.query(position).ok_or_else(missing)?;
                let at = (head * group + member) * dim;
                queries.queries.extend_from_slice(&row[at..at + dim]);
                queries.positions.push(position as u32);
            }
        }
        Ok(queries)
    }

    /// The sum of all queries of query head `head`, turned back to position 0, the sum of their outer
    /// products `[head_dim][head_dim]`, and how many they are.
    ///
    /// # Errors
    /// [`KvError::NotObserved`] when they were not gathered from the first token on.
    pub fn query_moments(&self, head: usize) -> Result<(&[f32], &[f32], usize), KvError> {
        let moments = self.seen.moments(head).filter(|_| self.complete);
        moments.ok_or_else(|| KvError::NotObserved {
            what: "the sums of all queries".to_owned(),
        })
    }

    /// The logits of `queries [rows][head_dim]` against every pair of a head: `out [rows][pairs]`,
    /// scaled and capped as the layer does, hidden from nobody.
    pub fn logits(&self, head: usize, queries: &[f32], out: &mut Vec<f32>) {
        self.logits_before(self.boundary(self.end), head, queries, out);
    }

    /// The same where the latest tokens, as they were written, begin with block `boundary`.
    fn logits_before(&self, boundary: usize, head: usize, queries: &[f32], out: &mut Vec<f32>) {
        let shape = self.shape();
        let scaled: Vec<f32> = queries.iter().map(|x| x * shape.scale).collect();
        self.products_before(boundary, head, &scaled, out);
        if shape.softcap != 0.0 {
            activation::softcap(self.isa, out, shape.softcap);
        }
        let added = self.log_weights(head);
        if !added.is_empty() {
            let apart = self.apart_before();
            for logits in out.chunks_exact_mut(self.pairs(head)) {
                activation::add(self.isa, &mut logits[apart..apart + added.len()], added);
            }
        }
    }

    /// What attention adds to the logits of the pairs of a head in its stream: the logarithm of how many tokens each
    /// stands for; nothing where it counts each as one.
    fn log_weights(&self, head: usize) -> &[f32] {
        self.stream.map_or(&[], |stream| stream.log_weights(head))
    }

    /// The products of `vectors [rows][head_dim]` with the key of every pair of a head: `out
    /// [rows][pairs]`.
    pub fn products(&self, head: usize, vectors: &[f32], out: &mut Vec<f32>) {
        self.products_before(self.boundary(self.end), head, vectors, out);
    }

    fn products_before(&self, boundary: usize, head: usize, vectors: &[f32], out: &mut Vec<f32>) {
        let (dim, pairs) = (self.head_dim(), self.pairs(head));
        let rows = vectors.len() / dim;
        out.clear();
        out.resize(rows * pairs, 0.0);
        let mut scratch = AttentionScratch::new();
        let mut scores = vec![0.0; rows * PAGE_TOKENS];
        self.each_page_before(
            boundary,
            head,
            0..usize::MAX,
            |first, slots, page, geometry| {
                score_page(
                    self.isa,
                    geometry,
                    page.k,
                    vectors,
                    &mut scratch,
                    &mut scores,
                );
                let of_rows = scores.chunks_exact(PAGE_TOKENS);
                for (from, to) in of_rows.zip(out.chunks_exact_mut(pairs)) {
                    to[first..first + slots.len()].copy_from_slice(&from[slots.clone()]);
                }
            },
        );
    }

    /// Calls `visit` for every page that holds some of the pairs `pairs` of a head, with the products of
    /// `vectors [rows][head_dim]` and its keys.
    pub(super) fn products_of_pages(
        &self,
        head: usize,
        pairs: Range<usize>,
        vectors: &[f32],
        scratch: &mut AttentionScratch,
        mut visit: impl FnMut(PageProducts<'_>),
    ) {
        let rows = vectors.len() / self.head_dim();
        let mut products = vec![0.0; rows * PAGE_TOKENS];
        let (added, apart) = (self.log_weights(head), self.apart_before());
        let mut of_slots = [0.0; PAGE_TOKENS];
        self.each_page_of(head, pairs, |first, slots, page, geometry| {
            score_page(self.isa, geometry, page.k, vectors, scratch, &mut products);
            for (pair, to) in (first..).zip(&mut of_slots[slots.clone()]) {
                let in_stream = pair.checked_sub(apart);
                *to = *in_stream.and_then(|at| added.get(at)).unwrap_or(&0.0);
            }
            visit(PageProducts {
                first,
                slots,
                products: &mut products,
                log_weights: if added.is_empty() { &[] } else { &of_slots },
            });
        });
    }

    /// Calls `visit(row, weights)` with the attention that each row of `queries [rows][head_dim]`, of
    /// the tokens `positions`, gives to every pair of a head; what is later than a row has weight 0.
    pub fn attention(
        &self,
        head: usize,
        queries: &[f32],
        positions: &[u32],
        visit: &mut dyn FnMut(usize, &[f32]),
    ) {
        let (pairs, dim) = (self.pairs(head), self.head_dim());
        let mut logits = Vec::new();
        let mut first = 0;
        while first < positions.len() {
            // Rows that read the same tokens as they were written, a few at once.
            let boundary = |row: usize| self.boundary(positions[row] as usize);
            let here = boundary(first);
            let some = first + 1..positions.len().min(first + ROWS_AT_ONCE);
            let next = first + 1 + some.take_while(|&row| boundary(row) == here).count();
            self.logits_before(here, head, &queries[first * dim..next * dim], &mut logits);
            for (row, weights) in (first..).zip(logits.chunks_exact_mut(pairs.max(1))) {
                let visible = self.first_from(head, positions[row] as usize + 1);
                softmax(self.isa, &mut weights[..visible]);
                weights[visible..].fill(0.0);
                visit(row, weights);
            }
            first = next;
        }
    }

    /// Adds `y` to `x`, number by number.
    pub fn add(&self, x: &mut [f32], y: &[f32]) {
        activation::add(self.isa, x, y);
    }

    /// Adds `factor` times `y` to `x`, number by number.
    pub fn add_scaled(&self, x: &mut [f32], y: &[f32], factor: f32) {
        activation::add_scaled(self.isa, x, y, factor);
    }

    /// Turns logits into weights that add up to 1.
    pub fn softmax(&self, x: &mut [f32]) {
        softmax(self.isa, x);
    }

    /// Rotates vectors `[count][head_dim]` by so many positions, as the layer's rotary embedding does.
    pub fn rotate(&self, positions: isize, vectors: &mut [f32]) {
        self.model.rotate(self.layer, self.rope, positions, vectors);
    }

    /// What was noted of a repetition, and of how many of the first tokens it holds.
    pub(super) fn marks(&self) -> (&'a Marked, usize) {
        (self.marks, self.marked)
    }

    pub(super) fn isa(&self) -> Isa {
        self.isa
    }

    pub(super) fn group(&self) -> &'a Group {
        self.group
    }

    fn kept(&self, head: usize) -> &'a [u32] {
        self.stream.map_or(&[], |stream| stream.positions(head))
    }
}
