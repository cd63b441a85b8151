//! Bounds of keys: what a query can score at most against a part of a cache, without reading it.
//!
//! A *lane* stands for some keys and holds, for every channel, the smallest and the largest number
//! among theirs. A product of a query with any of these keys is at most the sum over channels of what
//! the channel's smallest or largest number gives, whichever is more. Lanes lie side by side as the
//! tokens of a page do, so a vector of scores has lanes as its lanes.
//!
//! Numbers are rounded outward to 16 bits, so bounds hold. Sums of all lanes are made in one order, and
//! every operation in it is monotone: where a lane encloses another its score is not less, to the last
//! bit. So whoever goes by bounds of bounds finds exactly what going by all bounds finds.

use half::{bf16, f16};

use super::element::{Brain, Element, Half};
use crate::Isa;
use crate::lanes::{self, Kernel, Lanes};
use crate::page::{KvType, PAGE_TOKENS, PageGeometry};

/// Query rows that share each load of a bound.
const ROWS_AT_ONCE: usize = 8;

/// The shape and form of bounds: `[head_dim][smallest, largest][lanes]`, 2 bytes a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BoundsGeometry {
    /// Numbers in a key.
    pub head_dim: usize,
    /// Lanes; a multiple of 16.
    pub lanes: usize,
    form: Form,
}

/// What a bound is stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Half precision: keys are not beyond its range.
    Half,
    /// The upper half of single precision: keys may be as large as that allows.
    Brain,
}

impl BoundsGeometry {
    /// Bounds of keys in pages of `geom`, in `lanes` lanes.
    ///
    /// # Panics
    /// When `lanes` is no multiple of 16.
    pub fn new(geom: &PageGeometry, lanes: usize) -> BoundsGeometry {
        assert!(lanes.is_multiple_of(16), "lanes in whole vectors");
        BoundsGeometry {
            head_dim: geom.head_dim,
            lanes,
            form: match geom.k_type {
                KvType::F32 | KvType::BF16 => Form::Brain,
                _ => Form::Half,
            },
        }
    }

    /// Bytes of all bounds.
    pub fn bytes(&self) -> usize {
        self.head_dim * self.row_bytes() * 2
    }

    /// Bytes of the smallest, or of the largest, numbers of a channel.
    fn row_bytes(&self) -> usize {
        self.lanes * 2
    }
}

/// Makes the lanes from `first_lane` on stand for the keys of one page, `per_lane` tokens each.
/// `keys` is `[head_dim][64]`. A channel with a NaN has NaN for both bounds.
///
/// # Panics
/// When a length does not follow from the geometry, or there are not as many lanes.
pub fn set_bounds(
    geom: &BoundsGeometry,
    bounds: &mut [u8],
    first_lane: usize,
    per_lane: usize,
    keys: &[f32],
) {
    assert_eq!(bounds.len(), geom.bytes(), "bounds of the geometry");
    assert_eq!(keys.len(), geom.head_dim * PAGE_TOKENS, "[head_dim][64]");
    let row_bytes = geom.row_bytes();
    let channels = bounds.chunks_exact_mut(2 * row_bytes);
    for (channel, keys) in channels.zip(keys.chunks_exact(PAGE_TOKENS)) {
        let (low, high) = channel.split_at_mut(row_bytes);
        for (part, keys) in keys.chunks_exact(per_lane).enumerate() {
            let (least, most) = extremes(keys);
            let at = (first_lane + part) * 2;
            low[at..at + 2].copy_from_slice(&geom.form.below(least));
            high[at..at + 2].copy_from_slice(&geom.form.above(most));
        }
    }
}

/// Makes lane `lane` of `to` enclose all lanes of `from`.
///
/// # Panics
/// When a length does not follow from its geometry, or there is no such lane.
pub fn enclose_bounds(
    from_geom: &BoundsGeometry,
    from: &[u8],
    to_geom: &BoundsGeometry,
    to: &mut [u8],
    lane: usize,
) {
    assert_eq!(from.len(), from_geom.bytes(), "bounds of the geometry");
    assert_eq!(to.len(), to_geom.bytes(), "bounds of the geometry");
    assert_eq!(from_geom.form, to_geom.form, "bounds of one form");
    let form = from_geom.form;
    let numbers = |row: &[u8]| -> Vec<f32> {
        let pairs = row.chunks_exact(2);
        pairs.map(|pair| form.number([pair[0], pair[1]])).collect()
    };
    let channels = from.chunks_exact(2 * from_geom.row_bytes());
    let row_bytes = to_geom.row_bytes();
    for (channel, to) in channels.zip(to.chunks_exact_mut(2 * row_bytes)) {
        let (low, high) = channel.split_at(from_geom.row_bytes());
        let (least, most) = (extremes(&numbers(low)).0, extremes(&numbers(high)).1);
        // They are numbers of the form already, so nothing is rounded.
        to[lane * 2..lane * 2 + 2].copy_from_slice(&form.below(least));
        to[row_bytes + lane * 2..row_bytes + lane * 2 + 2].copy_from_slice(&form.above(most));
    }
}

/// What each of the queries `q [rows][head_dim]` can score at most in every lane: `scores
/// [rows][lanes]`. NaN where a bound is none.
///
/// # Panics
/// When a length does not follow from the geometry.
pub fn score_bounds(isa: Isa, geom: &BoundsGeometry, bounds: &[u8], q: &[f32], scores: &mut [f32]) {
    assert_eq!(bounds.len(), geom.bytes(), "bounds of the geometry");
    let rows = q.len() / geom.head_dim;
    assert_eq!(q.len(), rows * geom.head_dim, "queries of [rows][head_dim]");
    assert_eq!(scores.len(), rows * geom.lanes, "scores of [rows][lanes]");
    macro_rules! score {
        ($element:expr) => {
            lanes::run(
                isa,
                Score {
                    element: $element,
                    geom,
                    bounds,
                    q,
                    scores,
                },
            )
        };
    }
    match geom.form {
        Form::Half => score!(Half),
        Form::Brain => score!(Brain),
    }
}

/// The smallest and the largest number; NaN where one is.
fn extremes(numbers: &[f32]) -> (f32, f32) {
    let start = (f32::INFINITY, f32::NEG_INFINITY);
    let (least, most) = numbers
        .iter()
        .fold(start, |(least, most), &x| (least.min(x), most.max(x)));
    match numbers.iter().any(|x| x.is_nan()) {
        true => (f32::NAN, f32::NAN),
        false => (least, most),
    }
}

impl Form {
    fn number(self, bytes: [u8; 2]) -> f32 {
        match self {
            Form::Half => f16::from_le_bytes(bytes).to_f32(),
            Form::Brain => bf16::from_le_bytes(bytes).to_f32(),
        }
    }

    fn nearest(self, x: f32) -> u16 {
        match self {
            Form::Half => f16::from_f32(x).to_bits(),
            Form::Brain => bf16::from_f32(x).to_bits(),
        }
    }

    /// The smallest number of the form that is not below `x`.
    fn above(self, x: f32) -> [u8; 2] {
        let bits = self.nearest(x);
        let short = self.number(bits.to_le_bytes()) < x;
        if short { next_up(bits) } else { bits }.to_le_bytes()
    }

    /// The largest number of the form that is not above `x`.
    fn below(self, x: f32) -> [u8; 2] {
        let [low, high] = self.above(-x);
        [low, high ^ 0x80]
    }
}

/// The bits of the next number towards +∞ of a float of 16 bits that is not NaN or +∞.
fn next_up(bits: u16) -> u16 {
    match bits {
        0x8000 => 1,
        bits if bits & 0x8000 == 0 => bits + 1,
        bits => bits - 1,
    }
}

struct Score<'a, E> {
    element: E,
    geom: &'a BoundsGeometry,
    bounds: &'a [u8],
    /// `[rows][head_dim]`
    q: &'a [f32],
    /// `[rows][lanes]`
    scores: &'a mut [f32],
}

impl<E: Element> Kernel for Score<'_, E> {
    type Output = ();

    fn scalar(self) {
        let BoundsGeometry {
            head_dim, lanes, ..
        } = *self.geom;
        let rows = self.q.chunks_exact(head_dim);
        for (q, scores) in rows.zip(self.scores.chunks_exact_mut(lanes)) {
            scores.fill(0.0);
            let channels = self.bounds.chunks_exact(2 * self.geom.row_bytes());
            for (&q, channel) in q.iter().zip(channels) {
                let (low, high) = channel.split_at(self.geom.row_bytes());
                for (lane, score) in scores.iter_mut().enumerate() {
                    let (low, high) = (E::TYPE.get(low, lane), E::TYPE.get(high, lane));
                    *score = high * q.max(0.0) + (low * q.min(0.0) + *score);
                }
            }
        }
    }

    #[inline(always)]
    fn lanes<L: Lanes>(self, l: L) {
        let BoundsGeometry {
            head_dim, lanes, ..
        } = *self.geom;
        let row_bytes = self.geom.row_bytes();
        let tiles = self.q.chunks(ROWS_AT_ONCE * head_dim);
        for (q, scores) in tiles.zip(self.scores.chunks_mut(ROWS_AT_ONCE * lanes)) {
            let rows = q.len() / head_dim;
            for at in (0..lanes).step_by(L::WIDTH) {
                let mut sums = [l.splat(0.0); ROWS_AT_ONCE];
                for (d, channel) in self.bounds.chunks_exact(2 * row_bytes).enumerate() {
                    let (low, high) = channel.split_at(row_bytes);
                    // SAFETY: both rows hold `lanes` numbers, a multiple of the width.
                    let (low, high) = unsafe {
                        (
                            self.element.load(l, low.as_ptr(), at),
                            self.element.load(l, high.as_ptr(), at),
                        )
                    };
                    for (row, sum) in sums[..rows].iter_mut().enumerate() {
                        let q = q[row * head_dim + d];
                        let negative = l.fma(low, l.splat(q.min(0.0)), *sum);
                        *sum = l.fma(high, l.splat(q.max(0.0)), negative);
                    }
                }
                for (row, &sum) in sums[..rows].iter().enumerate() {
                    l.store(&mut scores[row * lanes + at..][..L::WIDTH], sum);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::attention::key_floats;
    use crate::page::write_key;

    fn noise(seed: u32, i: usize) -> f32 {
        let mut x = (u64::from(seed) << 32 | i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((x >> 40) as f32) / (1u64 << 23) as f32 - 1.0
    }

    /// Two pages of noise as floats, `[2][head_dim][64]`.
    fn pages(geom: &PageGeometry, seed: u32, size: f32) -> Vec<f32> {
        let mut all = Vec::new();
        for page in 0..2 {
            let mut bytes = vec![0; geom.k_bytes()];
            for slot in 0..PAGE_TOKENS {
                let at = |d| size * noise(seed, (page * PAGE_TOKENS + slot) * 1000 + d);
                let key: Vec<f32> = (0..geom.head_dim).map(at).collect();
                write_key(geom, &mut bytes, slot, &key);
            }
            let mut floats = vec![0.0; geom.head_dim * PAGE_TOKENS];
            key_floats(Isa::best(), geom, &bytes, &mut floats);
            all.extend(floats);
        }
        all
    }

    /// The quest card's own example: keys (1, −2) and (3, 0), query (2, −1).
    #[test]
    fn a_bound_by_hand() {
        let page = PageGeometry {
            head_dim: 2,
            v_dim: 2,
            k_type: KvType::F16,
            v_type: KvType::F16,
        };
        let geom = BoundsGeometry::new(&page, 16);
        let mut bounds = vec![0; geom.bytes()];
        let mut keys = [[1.0, 3.0].repeat(32), [-2.0, 0.0].repeat(32)].concat();
        set_bounds(&geom, &mut bounds, 3, 64, &keys);
        for isa in Isa::available() {
            let mut scores = [0.0; 16];
            score_bounds(isa, &geom, &bounds, &[2.0, -1.0], &mut scores);
            assert_eq!(scores[3], 8.0, "{isa}: 2 · 3 + −1 · −2");
            assert_eq!(scores[4], 0.0, "{isa}");
        }
        keys[70] = f32::NAN;
        set_bounds(&geom, &mut bounds, 3, 64, &keys);
        let mut scores = [0.0; 16];
        score_bounds(Isa::best(), &geom, &bounds, &[2.0, -1.0], &mut scores);
        assert!(scores[3].is_nan(), "what is no number is not hidden");
    }

    #[test]
    fn numbers_are_rounded_outward() {
        for form in [Form::Half, Form::Brain] {
            for x in [0.0f32, 1e-9, -1e-9, 0.1, -0.1, 1.0, 1.0001, -65504.0, 3e4] {
                let (low, high) = (form.number(form.below(x)), form.number(form.above(x)));
                assert!(low <= x && x <= high, "{form:?}: {low} {x} {high}");
                let step = (high - low).abs();
                assert!(step <= x.abs() / 100.0 + 1e-7, "{form:?}: {low} {high}");
                if form.number(form.nearest(x).to_le_bytes()) == x {
                    assert_eq!((low, high), (x, x), "{form:?}");
                }
            }
        }
        assert_eq!(Form::Brain.number(Form::Brain.above(3.4e38)), f32::INFINITY);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn no_key_scores_more_than_its_bound_and_no_lane_more_than_what_encloses_it(
            kv_type in proptest::sample::select(&KvType::ALL),
            head_dim in proptest::sample::select(vec![5usize, 24, 64]),
            per_lane in proptest::sample::select(vec![16usize, 32, 64]),
            rows in 1usize..11,
            seed in any::<u32>(),
            size in proptest::sample::select(vec![0.01f32, 1.0, 300.0]),
        ) {
            let page = PageGeometry { head_dim, v_dim: 4, k_type: kv_type, v_type: kv_type };
            let keys = pages(&page, seed, size);
            let parts = PAGE_TOKENS / per_lane;
            let geom = BoundsGeometry::new(&page, 16);
            let mut bounds = vec![0; geom.bytes()];
            for (at, keys) in keys.chunks_exact(head_dim * PAGE_TOKENS).enumerate() {
                set_bounds(&geom, &mut bounds, at * parts, per_lane, keys);
            }
            let mut above = vec![0; geom.bytes()];
            enclose_bounds(&geom, &bounds, &geom, &mut above, 7);
            let q: Vec<f32> = (0..rows * head_dim).map(|i| noise(seed ^ 77, i)).collect();
            let mut definition = vec![0.0; rows * geom.lanes];
            score_bounds(Isa::Scalar, &geom, &bounds, &q, &mut definition);
            for isa in Isa::available() {
                let mut scores = vec![0.0; rows * geom.lanes];
                let mut enclosing = scores.clone();
                score_bounds(isa, &geom, &bounds, &q, &mut scores);
                score_bounds(isa, &geom, &above, &q, &mut enclosing);
                let slack = 1e-5 * size * head_dim as f32;
                for (row, q) in q.chunks_exact(head_dim).enumerate() {
                    let scores = &scores[row * geom.lanes..][..geom.lanes];
                    for (lane, &score) in scores.iter().enumerate() {
                        // Exactly so, whatever was rounded.
                        prop_assert!(score <= enclosing[row * geom.lanes + 7]);
                        let twin = definition[row * geom.lanes + lane];
                        prop_assert!((score - twin).abs() <= slack, "{} {}", score, twin);
                    }
                    for token in 0..2 * PAGE_TOKENS {
                        let keys = &keys[token / PAGE_TOKENS * head_dim * PAGE_TOKENS..];
                        let key = |d: usize| keys[d * PAGE_TOKENS + token % PAGE_TOKENS];
                        let product: f32 = q.iter().enumerate().map(|(d, q)| q * key(d)).sum();
                        prop_assert!(product <= scores[token / per_lane] + slack);
                    }
                    // One row alone has the same bits.
                    let mut alone = vec![0.0; geom.lanes];
                    score_bounds(isa, &geom, &bounds, q, &mut alone);
                    prop_assert_eq!(&alone, scores);
                }
            }
        }
    }
}
