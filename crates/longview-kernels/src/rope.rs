//! Rotary position embedding: frequency recipes and the rotation of query and key rows.
//!
//! Element `i` of a head is paired with element `i + rotary_dim / 2`, as Hugging Face stores
//! weights. (GGUF files of the llama family pair neighbours instead; their query and key rows are
//! reordered when loaded.) Angles are computed in double precision, so positions in the millions
//! lose nothing; Hugging Face rounds them to single precision, which differs below 1e-4 for
//! positions up to a thousand.

use std::f64::consts::PI;

use crate::Isa;
use crate::lanes::{self, Kernel, Lanes};

/// How fast each pair of a head's channels turns with the position.
#[derive(Clone, Debug, PartialEq)]
pub struct RotaryTable {
    theta: f64,
    inverse_frequencies: Vec<f64>,
    attention_factor: f32,
}

/// Parameters of Llama 3.1's scaling.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Llama3Scaling {
    /// Slow pairs turn this many times slower.
    pub factor: f64,
    /// Pairs that turn fewer times than this within the original length are slowed down fully.
    pub low_freq_factor: f64,
    /// Pairs that turn more often than this are left alone.
    pub high_freq_factor: f64,
    /// Positions the model was first trained with.
    pub original_max_positions: f64,
}

/// Parameters of YaRN scaling.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct YarnScaling {
    /// Slow pairs turn this many times slower.
    pub factor: f64,
    /// Pairs that turn more often than this within the original length are left alone; usually 32.
    pub beta_fast: f64,
    /// Pairs that turn fewer times are slowed down fully; usually 1.
    pub beta_slow: f64,
    /// Positions the model was first trained with.
    pub original_max_positions: f64,
    /// Where the ramp between the two begins and ends.
    pub ramp: YarnRamp,
    /// Multiplies sine and cosine; see [`yarn_attention_factor`] for the usual choice.
    pub attention_factor: f64,
}

/// The ends of YaRN's ramp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum YarnRamp {
    /// At whole pairs, outward; the usual form.
    Truncated,
    /// Where the formula puts them.
    Exact,
}

impl RotaryTable {
    /// The original recipe: pair `i` of `rotary_dim / 2` turns by `theta^(-2i / rotary_dim)` a
    /// position. `rotary_dim` may be smaller than the head; the other channels stay as they are.
    ///
    /// # Panics
    /// When `rotary_dim` is odd.
    pub fn new(theta: f64, rotary_dim: usize) -> RotaryTable {
        assert!(rotary_dim.is_multiple_of(2), "channels turn in pairs");
        let inverse_frequencies = (0..rotary_dim / 2)
            .map(|i| theta.powf(-2.0 * i as f64 / rotary_dim as f64))
            .collect();
        RotaryTable {
            theta,
            inverse_frequencies,
            attention_factor: 1.0,
        }
    }

    /// All pairs turn `factor` times slower.
    pub fn linear(mut self, factor: f64) -> RotaryTable {
        self.inverse_frequencies
            .iter_mut()
            .for_each(|f| *f /= factor);
        self
    }

    /// Llama 3.1's recipe: slow pairs slower, fast ones as they are, smooth in between.
    pub fn llama3(mut self, scaling: &Llama3Scaling) -> RotaryTable {
        let Llama3Scaling {
            factor,
            low_freq_factor: low,
            high_freq_factor: high,
            ..
        } = *scaling;
        for f in &mut self.inverse_frequencies {
            let turns = scaling.original_max_positions * *f / (2.0 * PI);
            // 0: slowed down fully, 1: left alone.
            let smooth = if turns < low {
                0.0
            } else if turns > high {
                1.0
            } else {
                (turns - low) / (high - low)
            };
            *f = (1.0 - smooth) * *f / factor + smooth * *f;
        }
        self
    }

    /// YaRN's recipe: a ramp over the pairs' indices between slowed down and left alone.
    pub fn yarn(mut self, scaling: &YarnScaling) -> RotaryTable {
        let dim = 2.0 * self.inverse_frequencies.len() as f64;
        // The index of the pair that turns so many times within the original length.
        let index_of = |turns: f64| {
            let positions = scaling.original_max_positions;
            dim * (positions / (turns * 2.0 * PI)).ln() / (2.0 * self.theta.ln())
        };
        let (mut low, mut high) = (index_of(scaling.beta_fast), index_of(scaling.beta_slow));
        if scaling.ramp == YarnRamp::Truncated {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high {
            high += 0.001;
        }
        for (i, f) in self.inverse_frequencies.iter_mut().enumerate() {
            let slowed = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
            *f = *f / scaling.factor * slowed + *f * (1.0 - slowed);
        }
        self.attention_factor = scaling.attention_factor as f32;
        self
    }

    /// Each pair turns slower by a factor of its own: longrope's lists, or the `rope_freqs` tensor
    /// of GGUF files.
    ///
    /// # Panics
    /// When there is not one factor a pair.
    pub fn divided_by(mut self, factors: &[f32]) -> RotaryTable {
        assert_eq!(
            factors.len(),
            self.inverse_frequencies.len(),
            "one factor a pair"
        );
        for (f, &factor) in self.inverse_frequencies.iter_mut().zip(factors) {
            *f /= f64::from(factor);
        }
        self
    }

    /// Sine and cosine multiplied by `factor`, so that scores grow with its square.
    pub fn with_attention_factor(mut self, factor: f64) -> RotaryTable {
        self.attention_factor = factor as f32;
        self
    }

    /// Channels of a head that turn.
    pub fn rotary_dim(&self) -> usize {
        2 * self.inverse_frequencies.len()
    }

    /// Radians a position, one number a pair: `[rotary_dim / 2]`.
    pub fn inverse_frequencies(&self) -> &[f64] {
        &self.inverse_frequencies
    }

    /// What sine and cosine are multiplied with.
    pub fn attention_factor(&self) -> f32 {
        self.attention_factor
    }
}

/// YaRN's usual attention factor. `mscale` and `mscale_all_dim` are 0 where a model's settings do
/// not name them.
pub fn yarn_attention_factor(factor: f64, mscale: f64, mscale_all_dim: f64) -> f64 {
    let scale_for = |m: f64| {
        if factor <= 1.0 {
            1.0
        } else {
            0.1 * m * factor.ln() + 1.0
        }
    };
    if mscale != 0.0 && mscale_all_dim != 0.0 {
        scale_for(mscale) / scale_for(mscale_all_dim)
    } else {
        scale_for(1.0)
    }
}

/// longrope's usual attention factor for a context `scale` times the original one.
pub fn longrope_attention_factor(scale: f64, original_max_positions: f64) -> f64 {
    if scale <= 1.0 {
        1.0
    } else {
        (1.0 + scale.ln() / original_max_positions.ln()).sqrt()
    }
}

/// The sines and cosines of a batch's positions: computed once, used by all layers.
#[derive(Clone, Debug, Default)]
pub struct RotaryRows {
    half: usize,
    rows: usize,
    /// `[rows][half]`
    cos: Vec<f32>,
    /// `[rows][half]`
    sin: Vec<f32>,
}

impl RotaryRows {
    /// No rows yet.
    pub fn new() -> RotaryRows {
        RotaryRows::default()
    }

    /// Becomes the rows of `positions`, one each; memory is kept for reuse.
    pub fn set(&mut self, table: &RotaryTable, positions: &[u32]) {
        self.clear();
        self.extend(table, positions.iter().copied());
    }

    /// Forgets all rows; memory is kept for reuse.
    pub fn clear(&mut self) {
        self.rows = 0;
        self.cos.clear();
        self.sin.clear();
    }

    /// Adds the rows of `positions`, turned as `table` says: rows of one batch may turn
    /// differently, as long as all tables turn the same number of channels.
    ///
    /// # Panics
    /// When rows are held whose table turns another number of channels.
    pub fn extend(&mut self, table: &RotaryTable, positions: impl IntoIterator<Item = u32>) {
        let half = table.inverse_frequencies.len();
        assert!(
            self.rows == 0 || self.half == half,
            "one number of turning channels"
        );
        self.half = half;
        let factor = f64::from(table.attention_factor);
        let positions = positions.into_iter();
        // No more than that: long prompts count what their rows take.
        let room = positions.size_hint().0 * half;
        self.cos.reserve_exact(room);
        self.sin.reserve_exact(room);
        for position in positions {
            self.rows += 1;
            for &f in &table.inverse_frequencies {
                let (sin, cos) = (f64::from(position) * f).sin_cos();
                self.cos.push((cos * factor) as f32);
                self.sin.push((sin * factor) as f32);
            }
        }
    }

    /// Becomes one row that turns by `positions`, forward or back, as `table` says without scaling:
    /// what is turned already is turned further.
    pub fn set_turn(&mut self, table: &RotaryTable, positions: isize) {
        self.clear();
        self.half = table.inverse_frequencies.len();
        self.rows = 1;
        for &f in &table.inverse_frequencies {
            let (sin, cos) = (positions as f64 * f).sin_cos();
            self.cos.push(cos as f32);
            self.sin.push(sin as f32);
        }
    }

    /// Rows held.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Turns the heads of consecutive rows in place: `x [n][heads][head_dim]`, whose first row is
    /// row `first_row` of these.
    ///
    /// # Panics
    /// When `x` is not whole rows, there are more than are held, or a head is smaller than the
    /// part that turns.
    pub fn rotate(&self, isa: Isa, first_row: usize, heads: usize, head_dim: usize, x: &mut [f32]) {
        assert!(
            2 * self.half <= head_dim,
            "a head holds all channels that turn"
        );
        let row_len = (heads * head_dim).max(1);
        assert!(x.len().is_multiple_of(row_len), "whole rows");
        assert!(
            first_row + x.len() / row_len <= self.rows,
            "rows whose positions were set"
        );
        for (row, x) in x.chunks_exact_mut(row_len).enumerate() {
            let at = (first_row + row) * self.half;
            let (cos, sin) = (&self.cos[at..at + self.half], &self.sin[at..at + self.half]);
            lanes::run(
                isa,
                Rotate {
                    cos,
                    sin,
                    head_dim,
                    x,
                },
            );
        }
    }
}

/// The heads of one row.
struct Rotate<'a> {
    cos: &'a [f32],
    sin: &'a [f32],
    head_dim: usize,
    x: &'a mut [f32],
}

impl Kernel for Rotate<'_> {
    type Output = ();

    fn scalar(self) {
        let half = self.cos.len();
        for head in self.x.chunks_exact_mut(self.head_dim) {
            for i in 0..half {
                let (a, b) = (head[i], head[i + half]);
                head[i] = a * self.cos[i] - b * self.sin[i];
                head[i + half] = b * self.cos[i] + a * self.sin[i];
            }
        }
    }

    #[inline(always)]
    fn lanes<L: Lanes>(self, l: L) {
        let half = self.cos.len();
        let turn = |a: L::V, b: L::V, cos: L::V, sin: L::V| {
            let minus = l.sub(l.splat(0.0), l.mul(b, sin));
            (l.fma(a, cos, minus), l.fma(a, sin, l.mul(b, cos)))
        };
        for head in self.x.chunks_exact_mut(self.head_dim) {
            let (low, high) = head[..2 * half].split_at_mut(half);
            let whole = half - half % L::WIDTH;
            for i in (0..whole).step_by(L::WIDTH) {
                let (cos, sin) = (l.load(&self.cos[i..]), l.load(&self.sin[i..]));
                let (a, b) = turn(l.load(&low[i..]), l.load(&high[i..]), cos, sin);
                l.store(&mut low[i..], a);
                l.store(&mut high[i..], b);
            }
            let (cos, sin) = (
                l.load_part(&self.cos[whole..]),
                l.load_part(&self.sin[whole..]),
            );
            let (a, b) = (l.load_part(&low[whole..]), l.load_part(&high[whole..]));
            let (a, b) = turn(a, b, cos, sin);
            l.store_part(&mut low[whole..], a);
            l.store_part(&mut high[whole..], b);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Eight inverse frequencies and the attention factor, as transformers computes them.
    fn assert_table(table: &RotaryTable, inverse_frequencies: [f64; 8], attention_factor: f64) {
        for (a, b) in table.inverse_frequencies().iter().zip(inverse_frequencies) {
            assert!((a / b - 1.0).abs() < 1e-6, "{a} for {b}");
        }
        assert!((f64::from(table.attention_factor()) - attention_factor).abs() < 1e-6);
    }

    #[test]
    fn linear_and_llama3_frequencies_match_transformers() {
        assert_table(
            &RotaryTable::new(1e4, 16).linear(4.0),
            [
                0.25,
                0.079_056_940_972_805_02,
                0.025_000_000_372_529_03,
                0.007_905_694_656_074_047,
                0.002_499_999_944_120_645_5,
                0.000_790_569_465_607_404_7,
                0.000_250_000_011_874_362_8,
                7.905_694_656_074_047e-05,
            ],
            1.0,
        );
        let scaling = Llama3Scaling {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_positions: 8192.0,
        };
        assert_table(
            &RotaryTable::new(5e5, 16).llama3(&scaling),
            [
                1.0,
                0.193_922_758_102_417,
                0.037_606_030_702_590_94,
                0.007_292_665_075_510_74,
                0.000_429_556_705_057_621,
                8.570_255_886_297_673e-06,
                1.661_967_417_021_514_8e-06,
                3.222_932_889_457_297_3e-07,
            ],
            1.0,
        );
    }

    #[test]
    fn yarn_frequencies_match_transformers() {
        let scaling = YarnScaling {
            factor: 4.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original_max_positions: 32_768.0,
            ramp: YarnRamp::Truncated,
            attention_factor: yarn_attention_factor(4.0, 0.0, 0.0),
        };
        assert_table(
            &RotaryTable::new(1e6, 16).yarn(&scaling),
            [
                1.0,
                0.177_827_939_391_136_17,
                0.031_622_778_624_296_19,
                0.004_217_559_937_387_705,
                0.000_500_000_023_748_725_7,
                4.445_698_505_151_085_6e-05,
                7.905_693_564_680_405e-06,
                1.405_853_367_941_745e-06,
            ],
            1.138_629_436_111_989,
        );
        let scaling = YarnScaling {
            factor: 32.0,
            original_max_positions: 4096.0,
            ramp: YarnRamp::Exact,
            attention_factor: yarn_attention_factor(32.0, 0.0, 0.0),
            ..scaling
        };
        assert_table(
            &RotaryTable::new(15e4, 16).yarn(&scaling),
            [
                1.0,
                0.225_418_001_413_345_34,
                0.050_813_272_595_405_58,
                0.006_794_959_306_716_919,
                0.000_456_483_918_242_156_5,
                1.818_833_698_052_913e-05,
                4.099_978_468_730_114e-06,
                9.242_089_618_055_616e-07,
            ],
            1.346_573_590_279_972_7,
        );
        assert!((yarn_attention_factor(40.0, 0.707, 1.0) - 0.921_042_355_316_339_9).abs() < 1e-9);
    }

    #[test]
    fn longrope_frequencies_match_transformers() {
        let factors = [1.0, 2.0, 3.0, 5.0, 8.0, 16.0, 32.0, 64.0];
        let table = RotaryTable::new(1e4, 16)
            .divided_by(&factors)
            .with_attention_factor(longrope_attention_factor(32.0, 4096.0));
        assert_table(
            &table,
            [
                1.0,
                0.158_113_881_945_610_05,
                0.033_333_335_071_802_14,
                0.006_324_555_724_859_238,
                0.001_249_999_972_060_322_8,
                0.000_197_642_366_401_851_18,
                3.125_000_148_429_535e-05,
                4.941_059_160_046_279_4e-06,
            ],
            1.190_238_071_423_808_3,
        );
        assert_eq!(longrope_attention_factor(1.0, 4096.0), 1.0);
    }

    #[test]
    fn rotation_is_exact_far_out_and_leaves_the_rest_alone() {
        let table = RotaryTable::new(1e10, 24);
        let positions = [0, 3, 1_000_000, 1 << 31];
        let (heads, head_dim) = (2, 29);
        let mut rows = RotaryRows::new();
        rows.set(&table, &positions);
        let x: Vec<f32> = (0..positions.len() * heads * head_dim)
            .map(|i| (i % 17) as f32 - 8.0)
            .collect();
        for isa in Isa::available() {
            let mut y = x.clone();
            rows.rotate(isa, 0, heads, head_dim, &mut y);
            for (i, (x, y)) in x.chunks(head_dim).zip(y.chunks(head_dim)).enumerate() {
                let position = f64::from(positions[i / heads]);
                for (pair, f) in table.inverse_frequencies().iter().enumerate() {
                    let (a, b) = (f64::from(x[pair]), f64::from(x[pair + 12]));
                    let (sin, cos) = (position * f).sin_cos();
                    let exact = [(pair, a * cos - b * sin), (pair + 12, b * cos + a * sin)];
                    for (at, exact) in exact {
                        let off = (f64::from(y[at]) - exact).abs();
                        assert!(off < 3e-6, "{isa} at {position}: {} for {exact}", y[at]);
                    }
                }
                assert_eq!(x[24..], y[24..]);
            }
            // The third row alone has the same bits.
            let row = 2 * heads * head_dim..3 * heads * head_dim;
            let mut alone = x[row.clone()].to_vec();
            rows.rotate(isa, 2, heads, head_dim, &mut alone);
            assert_eq!(alone, y[row], "{isa}");
        }
    }
}
