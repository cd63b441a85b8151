//! A key-value cache of random numbers, and attention over it: by the kernels, and by its definition.

use std::ops::Range;

use longview_kernels::Isa;
use longview_kernels::attention::{
    AttentionScratch, PageRef, Partials, QueryRows, SPAN_TOKENS, attend_span,
};
use longview_kernels::page::{
    KvType, PAGE_TOKENS, PageGeometry, StridedRows, pack_page, read_key, read_value, write_tokens,
};

/// Numbers that look random and are the same everywhere.
pub(crate) struct Noise(pub(crate) u64);

impl Noise {
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }

    /// Roughly normal, of unit variance.
    pub(crate) fn normal(&mut self) -> f32 {
        let uniform = |bits: u64| (bits >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
        (0..4).map(|_| uniform(self.bits())).sum::<f32>() * 3f32.sqrt()
    }

    pub(crate) fn normals(&mut self, count: usize, scale: f32) -> Vec<f32> {
        (0..count).map(|_| self.normal() * scale).collect()
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.bits() % end as u64) as usize
    }
}

/// The pages of some tokens, all other bits set by `garbage`.
pub(crate) struct Cache {
    pub(crate) geom: PageGeometry,
    pub(crate) pages: Vec<(Vec<u8>, Vec<u8>)>,
    /// What is added to the scores, `[pages][64]`; nothing where every pair counts as one.
    pub(crate) log_weights: Vec<f32>,
}

impl Cache {
    pub(crate) fn new(
        geom: PageGeometry,
        tokens: usize,
        key_scale: f32,
        seed: u64,
        garbage: u64,
    ) -> Cache {
        let mut noise = Noise(garbage);
        let mut bytes = |n: usize| {
            (0..n)
                .map(|_| noise.bits() as u8 | 0x7c)
                .collect::<Vec<_>>()
        };
        // Pages that are made whole are never read before they are full.
        let tokens = match geom.is_whole() {
            true => tokens.next_multiple_of(PAGE_TOKENS),
            false => tokens,
        };
        let mut data = Noise(seed);
        let k = data.normals(tokens * geom.head_dim, key_scale);
        let v = data.normals(tokens * geom.v_dim, 1.0);
        let pages = (0..tokens.div_ceil(PAGE_TOKENS))
            .map(|page| {
                let mut bits = (bytes(geom.k_bytes()), bytes(geom.v_bytes()));
                let first = page * PAGE_TOKENS;
                let count = (tokens - first).min(PAGE_TOKENS);
                let k = StridedRows {
                    data: &k[first * geom.head_dim..],
                    stride: geom.head_dim,
                };
                let v = StridedRows {
                    data: &v[first * geom.v_dim..],
                    stride: geom.v_dim,
                };
                if !geom.is_whole() {
                    write_tokens(Isa::Scalar, &geom, &mut bits.0, &mut bits.1, 0, count, k, v);
                    return bits;
                }
                let from = PageGeometry {
                    k_type: KvType::F32,
                    v_type: KvType::F32,
                    ..geom
                };
                let (mut from_k, mut from_v) = (bytes(from.k_bytes()), bytes(from.v_bytes()));
                write_tokens(Isa::Scalar, &from, &mut from_k, &mut from_v, 0, count, k, v);
                pack_page(&from, (&from_k, &from_v), &geom, (&mut bits.0, &mut bits.1));
                bits
            })
            .collect();
        let log_weights = Vec::new();
        Cache {
            geom,
            pages,
            log_weights,
        }
    }

    /// The same where each of the first `tokens` pairs counts as 1 to 9; the other weights are no numbers.
    pub(crate) fn weighted(mut self, tokens: usize, seed: u64) -> Cache {
        let mut noise = Noise(seed);
        let weight = |slot| match slot < tokens {
            true => (1.0 + noise.below(9) as f32).ln(),
            false => f32::NAN,
        };
        self.log_weights = (0..self.pages.len() * PAGE_TOKENS).map(weight).collect();
        self
    }

    pub(crate) fn span(&self, span: usize) -> Vec<PageRef<'_>> {
        let per_span = SPAN_TOKENS / PAGE_TOKENS;
        let first = span * per_span;
        self.pages(first..self.pages.len().min(first + per_span))
    }

    pub(crate) fn pages(&self, pages: Range<usize>) -> Vec<PageRef<'_>> {
        let page = |page: usize| {
            let (k, v) = &self.pages[page];
            let slots = page * PAGE_TOKENS..(page + 1) * PAGE_TOKENS;
            PageRef {
                log_weights: self.log_weights.get(slots).unwrap_or_default(),
                ..PageRef::new(k, v)
            }
        };
        pages.map(page).collect()
    }

    pub(crate) fn spans(&self) -> usize {
        self.pages.len().div_ceil(SPAN_TOKENS / PAGE_TOKENS)
    }

    /// Attention over all spans, merged from left to right; `visible` counts from position 0.
    pub(crate) fn attend(
        &self,
        isa: Isa,
        q: &[f32],
        visible: &[Range<u32>],
        softcap: f32,
    ) -> Partials {
        let mut scratch = AttentionScratch::new();
        let mut all = Partials::new(visible.len(), self.geom.v_dim);
        let mut part = Partials::new(visible.len(), self.geom.v_dim);
        for span in 0..self.spans() {
            let start = (span * SPAN_TOKENS) as u32;
            let inside = |x: u32| x.saturating_sub(start).min(SPAN_TOKENS as u32);
            let visible: Vec<_> = visible
                .iter()
                .map(|r| inside(r.start)..inside(r.end))
                .collect();
            let rows = QueryRows {
                heads: 1,
                q,
                visible: &visible,
                softcap,
            };
            attend_span(
                isa,
                &self.geom,
                &self.span(span),
                &rows,
                &mut scratch,
                &mut part,
            );
            all.merge(isa, &part);
        }
        all
    }

    /// The output and log-sum-exp of one row in double precision, straight from the definition.
    pub(crate) fn oracle(
        &self,
        q: &[f32],
        visible: &Range<u32>,
        softcap: f32,
        sink: Option<f32>,
    ) -> (Vec<f64>, f64) {
        let mut key = vec![0.0; self.geom.head_dim];
        let mut value = vec![0.0; self.geom.v_dim];
        let slots: Vec<usize> = (visible.start as usize..visible.end as usize).collect();
        let scores: Vec<f64> = slots
            .iter()
            .map(|slot| {
                read_key(&self.geom, &self.pages[slot / 64].0, slot % 64, &mut key);
                let s: f64 = q
                    .iter()
                    .zip(&key)
                    .map(|(&q, &k)| f64::from(q) * f64::from(k))
                    .sum();
                let cap = f64::from(softcap);
                let capped = match softcap {
                    0.0 => s,
                    _ => cap * (s / cap).tanh(),
                };
                let added = self.log_weights.get(*slot).copied();
                capped + f64::from(added.unwrap_or_default())
            })
            .collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let top = sink.map_or(largest, |sink| largest.max(f64::from(sink)));
        let sum: f64 = scores.iter().map(|s| (s - top).exp()).sum();
        let denominator = sum + sink.map_or(0.0, |sink| (f64::from(sink) - top).exp());
        let mut out = vec![0.0; self.geom.v_dim];
        for (slot, score) in slots.iter().zip(&scores) {
            read_value(&self.geom, &self.pages[slot / 64].1, slot % 64, &mut value);
            for (out, &v) in out.iter_mut().zip(&value) {
                *out += (score - top).exp() / denominator * f64::from(v);
            }
        }
        (out, top + sum.ln())
    }
}
