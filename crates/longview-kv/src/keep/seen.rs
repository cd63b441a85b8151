//! What is gathered of one layer, and how the rows of a pass add to it.

use longview_kernels::{Exec, activation};
use serde::{Deserialize, Serialize};

use super::observe::LayerRows;
use super::view::LayerView;
use super::{Gather, Needs, PlainRows, Score};

/// Stands for no token.
const NOBODY: u32 = u32::MAX;

/// What was gathered of one layer.
#[derive(Clone, Default)]
pub(crate) struct LayerSeen {
    pub(super) needs: Needs,
    /// Numbers of a row of queries; 0 for layers that are not compressed.
    pub(super) row: usize,
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

/// How much was gathered of one layer, and of which tokens.
#[derive(Serialize, Deserialize)]
pub(super) struct SeenSizes {
    /// The position whose queries stand in each place.
    held: Vec<u32>,
    /// Pairs of each KV head.
    sums: Vec<usize>,
    entropies: Vec<usize>,
    own: Vec<usize>,
    /// Queries that were summed of each head.
    moments: Vec<usize>,
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

impl LayerSeen {
    /// Makes way for what a pass gathers.
    pub(super) fn begin(&mut self) {
        self.new_sums.iter_mut().for_each(Vec::clear);
        self.new_entropies.iter_mut().for_each(Vec::clear);
        self.new_own.iter_mut().for_each(Vec::clear);
        self.new_moments.iter_mut().for_each(Moments::clear);
    }

    /// Joins what the pass gathered to what holds.
    pub(super) fn commit(&mut self) {
        for (sums, new) in self.sums.iter_mut().zip(&mut self.new_sums) {
            sums.resize(new.len().max(sums.len()), 0.0);
            sums.iter_mut()
                .zip(new.drain(..))
                .for_each(|(s, n)| *s += n);
        }
        let entropies = self.entropies.iter_mut();
        for (entropies, new) in entropies.zip(&mut self.new_entropies) {
            entropies.append(new);
        }
        for (own, new) in self.own.iter_mut().zip(&mut self.new_own) {
            own.append(new);
        }
        for (moments, new) in self.moments.iter_mut().zip(&mut self.new_moments) {
            moments.join(new);
            new.clear();
        }
    }

    /// Keeps what is known of the pairs `which` of each head.
    pub(super) fn gather(&mut self, which: &[Vec<u32>]) {
        for lists in [&mut self.sums, &mut self.entropies, &mut self.own] {
            for (list, which) in lists.iter_mut().zip(which) {
                if !list.is_empty() {
                    *list = which.iter().map(|&pair| list[pair as usize]).collect();
                }
            }
        }
    }

    /// Gives back what a pass needed.
    pub(super) fn give_back(&mut self) {
        for lists in [
            &mut self.new_sums,
            &mut self.new_entropies,
            &mut self.new_own,
        ] {
            lists.fill(Vec::new());
        }
    }

    /// Lets go of what was gathered of single pairs.
    pub(super) fn forget_pairs(&mut self) {
        for lists in [&mut self.sums, &mut self.entropies, &mut self.own] {
            lists.fill(Vec::new());
        }
    }

    /// The most pairs of a head of which something is known.
    pub(super) fn pairs(&self) -> usize {
        let lists = [&self.sums, &self.entropies, &self.own];
        lists.into_iter().flatten().map(Vec::len).max().unwrap_or(0)
    }

    pub(super) fn new(needs: Needs, heads: usize, kv_heads: usize, head_dim: usize) -> LayerSeen {
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
    pub(super) fn narrowed(&self, needs: Needs, len: usize) -> LayerSeen {
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

    /// All that was gathered, for [`LayerSeen::read`]; its numbers are appended to `body`. Nothing is
    /// gathered while it runs.
    pub(super) fn write(&self, body: &mut Vec<u8>) -> SeenSizes {
        let mut numbers = |list: &[f32]| body.extend(list.iter().flat_map(|x| x.to_le_bytes()));
        numbers(&self.queries);
        for list in [&self.sums, &self.entropies, &self.own]
            .into_iter()
            .flatten()
        {
            numbers(list);
        }
        for moments in self.moments.iter().filter(|moments| moments.count > 0) {
            numbers(&moments.first);
            numbers(&moments.second);
        }
        let lengths = |lists: &[Vec<f32>]| lists.iter().map(Vec::len).collect();
        SeenSizes {
            held: self.held.clone(),
            sums: lengths(&self.sums),
            entropies: lengths(&self.entropies),
            own: lengths(&self.own),
            moments: self.moments.iter().map(|moments| moments.count).collect(),
        }
    }

    /// Takes over what [`LayerSeen::write`] gave of a layer with `pairs [heads]` pairs, in a context of
    /// `tokens` tokens, if it is of one like this; `numbers` are those that follow in the body.
    pub(super) fn read(
        &mut self,
        sizes: &SeenSizes,
        pairs: &[usize],
        tokens: usize,
        numbers: &mut dyn FnMut(usize) -> Option<Vec<f32>>,
    ) -> Option<()> {
        let places = self.held.len() as u32;
        let is_in_place = |(place, &held): (u32, &u32)| {
            held == NOBODY || held % places == place && (held as usize) < tokens
        };
        if sizes.held.len() != self.held.len() || !(0..).zip(&sizes.held).all(is_in_place) {
            return None;
        }
        self.held.clone_from(&sizes.held);
        self.queries = numbers(self.queries.len())?;
        let lists = [
            (&mut self.sums, &sizes.sums),
            (&mut self.entropies, &sizes.entropies),
            (&mut self.own, &sizes.own),
        ];
        for (lists, lengths) in lists {
            if lists.len() != lengths.len() {
                return None;
            }
            for ((list, &length), &pairs) in lists.iter_mut().zip(lengths).zip(pairs) {
                *list = numbers(length).filter(|_| length == pairs)?;
            }
        }
        if self.moments.len() != sizes.moments.len() {
            return None;
        }
        let dim = self.head_dim;
        for (moments, &count) in self.moments.iter_mut().zip(&sizes.moments) {
            if count > 0 {
                (moments.count, moments.first, moments.second) =
                    (count, numbers(dim)?, numbers(dim * dim)?);
            }
        }
        Some(())
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

    pub(super) fn note_queries(&mut self, start: usize, q: &[f32]) {
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

    pub(super) fn note_sums(&mut self, exec: &Exec, view: &LayerView<'_>, start: usize, q: &[f32]) {
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

    pub(super) fn note_own(
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

    pub(super) fn note_moments(
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
pub(super) fn bytes(layers: &[LayerSeen], pairs: usize) -> u64 {
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
