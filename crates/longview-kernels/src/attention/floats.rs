//! Pages as numbers: scores, keys and values for those who decide what stays in a cache.

use super::coded::{coded_keys, coded_values};
use super::element::{Brain, Byte, Convert, Half, Nibble, Single};
use super::expand::Expand;
use super::keys::Keys;
use super::{AttentionScratch, TILE_ROWS};
use crate::Isa;
use crate::lanes::{self, Kernel, Lanes, exp_scalar};
use crate::page::{
    KvType, PAGE_TOKENS, PageGeometry, QUANT_BLOCK, VALUE_PADDING, key_number, scale_number,
};

/// The scores of the queries `q [rows][head_dim]`, the softmax scale already multiplied in, against
/// all 64 slots of a page's keys: `scores [rows][64]`, with the bits that they have inside of
/// [`super::attend_span`], but for f16 keys beside f16 values where [`Isa::Amx`] reads them. What stands in slots that no token was written to counts like any other.
///
/// # Panics
/// When a length does not follow from the geometry.
pub fn score_page(
    isa: Isa,
    geom: &PageGeometry,
    page_k: &[u8],
    q: &[f32],
    scratch: &mut AttentionScratch,
    scores: &mut [f32],
) {
    assert_eq!(page_k.len(), geom.k_bytes(), "a page's keys");
    let rows = q.len() / geom.head_dim;
    assert_eq!(q.len(), rows * geom.head_dim, "queries of [rows][head_dim]");
    assert_eq!(scores.len(), rows * PAGE_TOKENS, "scores of [rows][64]");
    if geom.k_type.is_whole() {
        // As floats they lie like the keys of a page of floats.
        let mut keys = vec![0.0; geom.head_dim * PAGE_TOKENS];
        key_floats(isa, geom, page_k, &mut keys);
        let mut bytes = vec![0; 4 * keys.len()];
        for (to, x) in bytes.as_chunks_mut().0.iter_mut().zip(&keys) {
            *to = x.to_le_bytes();
        }
        let geom = PageGeometry {
            k_type: KvType::F32,
            ..*geom
        };
        return score_page(isa, &geom, &bytes, q, scratch, scores);
    }
    let page = ScorePage {
        geom,
        page_k,
        q,
        scratch,
        scores,
    };
    lanes::run(isa, page);
}

/// A page's keys as floats: `out [head_dim][64]`, transposed as they are stored.
///
/// # Panics
/// When a length does not follow from the geometry.
pub fn key_floats(isa: Isa, geom: &PageGeometry, page_k: &[u8], out: &mut [f32]) {
    assert_eq!(page_k.len(), geom.k_bytes(), "a page's keys");
    assert_eq!(out.len(), geom.head_dim * PAGE_TOKENS, "[head_dim][64]");
    match geom.k_type {
        KvType::Kivi(_) | KvType::Dotted(_) => {
            return coded_keys(isa, geom, page_k, out);
        }
        KvType::Sparse(_) => {
            let mut halves = vec![0; out.len() * 2];
            lanes::run(isa, Expand::keys(page_k, &mut halves, &[]));
            return convert(isa, KvType::F16, PAGE_TOKENS, &halves, out);
        }
        _ => {}
    }
    let (codes, scales) = page_k.split_at(geom.k_codes_bytes());
    convert(isa, geom.k_type, PAGE_TOKENS, codes, out);
    if !scales.is_empty() {
        for (d, row) in out.chunks_exact_mut(PAGE_TOKENS).enumerate() {
            for (slot, x) in row.iter_mut().enumerate() {
                *x *= scale_number(scales, slot, d / QUANT_BLOCK);
            }
        }
    }
}

/// A page's values as floats: `out [64][v_dim padded to 16]`; what pads them is 0 or the form's
/// nearest number to it.
///
/// # Panics
/// When a length does not follow from the geometry.
pub fn value_floats(isa: Isa, geom: &PageGeometry, page_v: &[u8], out: &mut [f32]) {
    assert_eq!(page_v.len(), geom.v_bytes(), "a page's values");
    let stride = value_stride(geom);
    assert_eq!(out.len(), stride * PAGE_TOKENS, "[64][v_dim padded]");
    match geom.v_type {
        KvType::Kivi(_) | KvType::Dotted(_) => {
            out.fill(0.0);
            return coded_values(isa, geom, page_v, stride, out);
        }
        KvType::Sparse(_) => {
            let mut halves = vec![0; out.len() * 2];
            lanes::run(isa, Expand::values(page_v, geom.v_dim, &mut halves, &[]));
            return convert(isa, KvType::F16, stride, &halves, out);
        }
        _ => {}
    }
    let (codes, scales) = page_v.split_at(geom.v_codes_bytes());
    convert(isa, geom.v_type, stride, codes, out);
    if !scales.is_empty() {
        for (slot, row) in out.chunks_exact_mut(stride).enumerate() {
            for (d, x) in row[..geom.v_dim].iter_mut().enumerate() {
                *x *= scale_number(scales, slot, d / QUANT_BLOCK);
            }
        }
    }
}

/// Numbers from one value to the next in [`value_floats`].
pub fn value_stride(geom: &PageGeometry) -> usize {
    geom.v_dim.next_multiple_of(VALUE_PADDING)
}

/// Turns logits into weights that add up to 1. Logits of `-inf` give 0; where all are, all are 0.
pub fn softmax(isa: Isa, x: &mut [f32]) {
    lanes::run(isa, Softmax { x });
}

/// `x` becomes what it is or `y - shift`, element by element, whichever is larger; no number where one of the two is
/// none.
///
/// # Panics
/// When the lengths differ.
pub fn raise(isa: Isa, x: &mut [f32], y: &[f32], shift: f32) {
    assert_eq!(x.len(), y.len(), "as many numbers on both sides");
    lanes::run(isa, Raise { x, y, shift });
}

/// Every number becomes `exp(number - base)`; none may be above `base`.
pub fn exp_below(isa: Isa, x: &mut [f32], base: f32) {
    lanes::run(isa, ExpBelow { x, base });
}

fn convert(isa: Isa, kv_type: KvType, width: usize, from: &[u8], to: &mut [f32]) {
    macro_rules! convert {
        ($element:expr) => {
            lanes::run(
                isa,
                Convert {
                    element: $element,
                    width,
                    from,
                    to,
                },
            )
        };
    }
    match kv_type {
        KvType::F32 => convert!(Single),
        KvType::F16 => convert!(Half),
        KvType::BF16 => convert!(Brain),
        KvType::Q8 => convert!(Byte),
        KvType::Q4 => convert!(Nibble),
        KvType::Dotted(_) | KvType::Kivi(_) | KvType::Sparse(_) => {
            unreachable!("pages without rows of numbers are read by their own code")
        }
    }
}

struct ScorePage<'a> {
    geom: &'a PageGeometry,
    page_k: &'a [u8],
    q: &'a [f32],
    scratch: &'a mut AttentionScratch,
    scores: &'a mut [f32],
}

impl Kernel for ScorePage<'_> {
    type Output = ();

    fn scalar(self) {
        let rows = self.q.chunks_exact(self.geom.head_dim);
        for (q, scores) in rows.zip(self.scores.chunks_exact_mut(PAGE_TOKENS)) {
            for (slot, score) in scores.iter_mut().enumerate() {
                let product =
                    |(d, &q): (usize, &f32)| q * key_number(self.geom, self.page_k, slot, d);
                *score = q.iter().enumerate().map(product).sum();
            }
        }
    }

    #[inline(always)]
    fn lanes<L: Lanes>(self, l: L) {
        let mut keys = Keys::new(l, self.geom, self.page_k, self.scratch, self.rows());
        let per_tile = TILE_ROWS * self.geom.head_dim;
        for (q, scores) in self
            .q
            .chunks(per_tile)
            .zip(self.scores.chunks_mut(TILE_ROWS * PAGE_TOKENS))
        {
            keys.score(l, q, scores);
        }
    }
}

impl ScorePage<'_> {
    fn rows(&self) -> usize {
        self.scores.len() / PAGE_TOKENS
    }
}

struct Softmax<'a> {
    x: &'a mut [f32],
}

impl Kernel for Softmax<'_> {
    type Output = ();

    fn scalar(self) {
        let max = self.x.iter().fold(f32::NEG_INFINITY, |m, &x| m.max(x));
        if max == f32::NEG_INFINITY {
            return self.x.fill(0.0);
        }
        let mut sum = 0.0;
        for x in self.x.iter_mut() {
            *x = exp_scalar(*x - max);
            sum += *x;
        }
        self.x.iter_mut().for_each(|x| *x /= sum);
    }

    #[inline(always)]
    fn lanes<L: Lanes>(self, l: L) {
        let mut max = l.splat(f32::NEG_INFINITY);
        let (whole, rest) = self.x.split_at_mut(self.x.len() / L::WIDTH * L::WIDTH);
        for x in whole.chunks_exact(L::WIDTH) {
            max = l.max(max, l.load(x));
        }
        let max = rest.iter().fold(l.reduce_max(max), |m, &x| m.max(x));
        if max == f32::NEG_INFINITY {
            return self.x.fill(0.0);
        }
        let base = l.splat(max);
        let mut sum = l.splat(0.0);
        for x in whole.chunks_exact_mut(L::WIDTH) {
            let e = l.exp_near(l.sub(l.load(x), base));
            sum = l.add(sum, e);
            l.store(x, e);
        }
        let mut sum = l.reduce_add(sum);
        for x in rest.iter_mut() {
            *x = exp_scalar(*x - max);
            sum += *x;
        }
        let inverse = l.splat(1.0 / sum);
        for x in whole.chunks_exact_mut(L::WIDTH) {
            let scaled = l.mul(l.load(x), inverse);
            l.store(x, scaled);
        }
        rest.iter_mut().for_each(|x| *x /= sum);
    }
}

struct Raise<'a> {
    x: &'a mut [f32],
    y: &'a [f32],
    shift: f32,
}

impl Kernel for Raise<'_> {
    type Output = ();

    fn scalar(self) {
        for (x, y) in self.x.iter_mut().zip(self.y) {
            let y = y - self.shift;
            *x = if y > *x || y.is_nan() { y } else { *x };
        }
    }

    #[inline(always)]
    fn lanes<L: Lanes>(self, l: L) {
        let (shift, none) = (l.splat(self.shift), l.splat(f32::INFINITY));
        let larger = |x: L::V, y: L::V| {
            let y = l.sub(y, shift);
            // What is no number stays, whichever of the two it is.
            l.select_less(x, none, l.max(x, y), x)
        };
        let mut x = self.x.chunks_exact_mut(L::WIDTH);
        let mut y = self.y.chunks_exact(L::WIDTH);
        for (x, y) in x.by_ref().zip(y.by_ref()) {
            let larger = larger(l.load(x), l.load(y));
            l.store(x, larger);
        }
        let x = x.into_remainder();
        let larger = larger(l.load_part(x), l.load_part(y.remainder()));
        l.store_part(x, larger);
    }
}

struct ExpBelow<'a> {
    x: &'a mut [f32],
    base: f32,
}

impl Kernel for ExpBelow<'_> {
    type Output = ();

    fn scalar(self) {
        self.x
            .iter_mut()
            .for_each(|x| *x = exp_scalar(*x - self.base));
    }

    #[inline(always)]
    fn lanes<L: Lanes>(self, l: L) {
        let base = l.splat(self.base);
        for x in self.x.chunks_mut(L::WIDTH) {
            let e = l.exp_near(l.sub(l.load_part(x), base));
            l.store_part(x, e);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::{pack_page, read_key, read_value, write_key, write_value};

    fn noise(i: usize) -> f32 {
        ((i * 2_654_435_761) % 1_000_003) as f32 / 5e5 - 1.0
    }

    #[test]
    fn pages_read_as_floats_equal_reading_slot_by_slot() {
        for isa in Isa::available() {
            for kv_type in KvType::ALL.into_iter().chain(KvType::WHOLE) {
                for (head_dim, v_dim) in [(24, 40), (64, 64), (5, 1)] {
                    let of_type = |kv_type| PageGeometry {
                        head_dim,
                        v_dim,
                        k_type: kv_type,
                        v_type: kv_type,
                    };
                    let geom = of_type(kv_type);
                    let written = match kv_type.is_whole() {
                        true => of_type(KvType::F32),
                        false => geom,
                    };
                    let (mut k, mut v) = (vec![0; written.k_bytes()], vec![0; written.v_bytes()]);
                    for slot in 0..PAGE_TOKENS {
                        let key: Vec<f32> = (0..head_dim).map(|d| noise(slot * 97 + d)).collect();
                        let value: Vec<f32> = (0..v_dim).map(|d| noise(slot * 89 + d)).collect();
                        write_key(&written, &mut k, slot, &key);
                        write_value(&written, &mut v, slot, &value);
                    }
                    if kv_type.is_whole() {
                        let (mut to_k, mut to_v) =
                            (vec![0; geom.k_bytes()], vec![0; geom.v_bytes()]);
                        pack_page(&written, (&k, &v), &geom, (&mut to_k, &mut to_v));
                        (k, v) = (to_k, to_v);
                    }
                    let mut keys = vec![0.0; head_dim * PAGE_TOKENS];
                    key_floats(isa, &geom, &k, &mut keys);
                    let stride = value_stride(&geom);
                    let mut values = vec![0.0; stride * PAGE_TOKENS];
                    value_floats(isa, &geom, &v, &mut values);
                    let q: Vec<f32> = (0..15 * head_dim).map(noise).collect();
                    let mut scores = vec![0.0; 15 * PAGE_TOKENS];
                    let mut scratch = AttentionScratch::new();
                    score_page(isa, &geom, &k, &q, &mut scratch, &mut scores);
                    for slot in [0, 1, 17, 63] {
                        let (mut key, mut value) = (vec![0.0; head_dim], vec![0.0; v_dim]);
                        read_key(&geom, &k, slot, &mut key);
                        read_value(&geom, &v, slot, &mut value);
                        for (d, &x) in key.iter().enumerate() {
                            assert_eq!(keys[d * PAGE_TOKENS + slot], x, "{isa} {kv_type}");
                        }
                        assert_eq!(&values[slot * stride..][..v_dim], value, "{isa} {kv_type}");
                        for row in [0, 5, 6, 14] {
                            let q = &q[row * head_dim..][..head_dim];
                            let exact: f32 = q.iter().zip(&key).map(|(a, b)| a * b).sum();
                            let got = scores[row * PAGE_TOKENS + slot];
                            // Queries of dotted forms are rounded to so many bits.
                            let allowed = match kv_type {
                                KvType::Dotted(dotted) => {
                                    head_dim as f32 / dotted.queries.limit() + 1e-4
                                }
                                _ => 1e-4,
                            };
                            let off = (got - exact).abs();
                            assert!(off < allowed, "{isa} {kv_type}: {got} {exact}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn weights_add_up_to_one_and_nothing_visible_gives_nothing() {
        for isa in Isa::available() {
            let logits: Vec<f32> = (0..37).map(|i| noise(i) * 8.0).collect();
            let mut weights = logits.clone();
            softmax(isa, &mut weights);
            assert!((weights.iter().sum::<f32>() - 1.0).abs() < 1e-5);
            let top = logits.iter().fold(f32::MIN, |m, &x| m.max(x));
            let mut below = logits.clone();
            exp_below(isa, &mut below, top);
            let sum: f32 = below.iter().sum();
            for (weight, below) in weights.iter().zip(&below) {
                assert!((weight - below / sum).abs() < 1e-6, "{isa}");
            }
            let mut hidden = [f32::NEG_INFINITY; 20];
            softmax(isa, &mut hidden);
            assert_eq!(hidden, [0.0; 20]);
        }
    }

    #[test]
    fn numbers_are_raised_and_what_is_none_stays() {
        for isa in Isa::available() {
            let (mut x, mut y): (Vec<f32>, Vec<f32>) =
                (0..37).map(|i| (noise(i), noise(i + 99))).unzip();
            x[3] = f32::NAN;
            x[4] = f32::NEG_INFINITY;
            (y[5], y[36]) = (f32::NAN, f32::NAN);
            y[4] = f32::NEG_INFINITY;
            let before = x.clone();
            raise(isa, &mut x, &y, 0.25);
            for (at, &got) in x.iter().enumerate() {
                let wanted = match before[at].is_nan() || y[at].is_nan() {
                    true => f32::NAN,
                    false => before[at].max(y[at] - 0.25),
                };
                assert_eq!(got.to_bits(), wanted.to_bits(), "{isa} {at}");
            }
        }
    }
}
