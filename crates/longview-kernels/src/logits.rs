//! Passes over the logits of a vocabulary.
//!
//! Plain arithmetic in one fixed order: unlike other kernels, these give the same bits on every
//! instruction set and every platform, so that a seed gives the same text everywhere.

use crate::compiled::for_each_isa;
use crate::isa::Isa;

/// Numbers that a pass takes at once, each in a lane of its own: a fixed number, so that sums come
/// out the same everywhere.
const LANES: usize = 16;

/// eˣ for x ≤ 0, to within 2 units in the last place; 0 below −87, where f32 runs out of normal
/// numbers, and 1 above 0.
///
/// Branch-free, so that loops over a vocabulary are vectorised.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // x = n·ln 2 + r with |r| ≤ ln 2 / 2. The constant rounds to an integer in the f32 format.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts, the first short enough that n times it is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = x.clamp(-87.0, 0.0);
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * LN2_HIGH - n * LN2_LOW;
    // The Taylor series to r⁷/7!: its remainder is below 1e-8 for |r| ≤ 0.35.
    let mut sum = 1.0 / 5_040.0;
    for term in [
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ] {
        sum = sum * r + term;
    }
    // n stands in the low bits of `shifted`; a conversion to integers would not be vectorised.
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    if x < -87.0 { 0.0 } else { sum * power }
}

/// Σ exp(logit − highest) of logits that are given in pieces.
#[derive(Clone, Copy, Debug)]
pub struct Mass {
    highest: f32,
    sums: [f64; LANES],
}

impl Mass {
    /// Nothing yet; no logit will be above `highest`.
    pub fn new(highest: f32) -> Mass {
        Mass {
            highest,
            sums: [0.0; LANES],
        }
    }

    /// Adds `logits`. Pieces of a multiple of 16 logits, the last excepted, give the sum of the
    /// whole, bit for bit.
    pub fn add(&mut self, isa: Isa, logits: &[f32]) {
        add_mass(isa, logits, self.highest, &mut self.sums);
    }

    /// The sum.
    pub fn total(&self) -> f64 {
        self.sums.iter().sum()
    }
}

for_each_isa!(add_mass, plain_add_mass(logits: &[f32], highest: f32, sums: &mut [f64; LANES]));

#[inline(always)]
fn plain_add_mass(logits: &[f32], highest: f32, sums: &mut [f64; LANES]) {
    let (blocks, rest) = logits.as_chunks::<LANES>();
    for block in blocks {
        for (sum, logit) in sums.iter_mut().zip(block) {
            *sum += f64::from(exp(logit - highest));
        }
    }
    for (sum, logit) in sums.iter_mut().zip(rest) {
        *sum += f64::from(exp(logit - highest));
    }
}

/// What one pass over the logits of a step tells.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Survey {
    /// The highest logit, −∞ when there is none; NaNs are passed over.
    pub highest: f32,
    /// Whether all logits are below +∞: neither that nor NaN.
    pub all_below_infinity: bool,
}

for_each_isa!(
    /// Looks at all of `logits` once.
    pub survey, plain_survey(logits: &[f32]) -> Survey
);

#[inline(always)]
fn plain_survey(logits: &[f32]) -> Survey {
    let higher = |most: f32, logit: f32| if logit > most { logit } else { most };
    let (blocks, rest) = logits.as_chunks::<LANES>();
    let mut most = [f32::NEG_INFINITY; LANES];
    // Without an early end, so that the loop is vectorised.
    let mut bad = [0_u32; LANES];
    for block in blocks {
        for ((most, bad), &logit) in most.iter_mut().zip(&mut bad).zip(block) {
            *most = higher(*most, logit);
            *bad |= u32::from(logit.partial_cmp(&f32::INFINITY) != Some(std::cmp::Ordering::Less));
        }
    }
    let good = |logit: &f32| *logit < f32::INFINITY;
    Survey {
        highest: most
            .into_iter()
            .chain(rest.iter().copied())
            .fold(f32::NEG_INFINITY, higher),
        all_below_infinity: bad == [0; LANES] && rest.iter().all(good),
    }
}

for_each_isa!(
    /// Where `logit` stands first in `logits`.
    pub first, plain_first(logits: &[f32], logit: f32) -> Option<usize>
);

#[inline(always)]
fn plain_first(logits: &[f32], logit: f32) -> Option<usize> {
    /// Looked through without a branch: some vectors.
    const PIECE: usize = 8 * LANES;
    let is = |other: &f32| *other == logit;
    let piece = logits
        .chunks(PIECE)
        .position(|piece| piece.iter().fold(false, |any, other| any | is(other)))?;
    let start = piece * PIECE;
    logits[start..].iter().position(is).map(|at| start + at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_everywhere_and_exact_at_zero() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-100.0), 0.0);
        for step in 0..87_000 {
            let x = -(step as f32) / 1_000.0;
            let want = f64::from(x).exp();
            let error = (f64::from(exp(x)) - want).abs() / want;
            assert!(error < 2.5e-7, "exp({x}) = {} but {want}", exp(x));
        }
    }

    #[test]
    fn the_mass_has_the_same_bits_on_every_isa_and_in_pieces() {
        for count in [0, 1, 7, 15, 16, 17, 32, 100, 1000] {
            let logits: Vec<f32> = (0..count).map(|i| -(i as f32) * 0.31).collect();
            let mut lanes = [0.0; LANES];
            for (i, &logit) in logits.iter().enumerate() {
                lanes[i % LANES] += f64::from(exp(logit - 2.0));
            }
            let want: f64 = lanes.iter().sum();
            for isa in Isa::available() {
                for piece in [16, 48, 4096] {
                    let mut mass = Mass::new(2.0);
                    logits.chunks(piece).for_each(|piece| mass.add(isa, piece));
                    assert_eq!(mass.total().to_bits(), want.to_bits(), "{isa}, {count}");
                }
            }
        }
    }

    #[test]
    fn the_highest_and_the_first_are_found_wherever_they_are() {
        for isa in Isa::available() {
            for len in [1, 15, 16, 17, 40, 129, 300] {
                for at in (0..len).step_by(7).chain([len - 1]) {
                    let mut logits = vec![-1.0; len];
                    logits[at] = 3.0;
                    logits[len - 1] = 3.0;
                    let seen = survey(isa, &logits);
                    assert_eq!((seen.highest, seen.all_below_infinity), (3.0, true));
                    assert_eq!(first(isa, &logits, 3.0), Some(at));
                    assert_eq!(first(isa, &logits, 4.0), None);
                    logits[at] = f32::NAN;
                    assert!(!survey(isa, &logits).all_below_infinity);
                    let rest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                    assert_eq!(survey(isa, &logits).highest, rest);
                    logits[at] = f32::INFINITY;
                    assert!(!survey(isa, &logits).all_below_infinity);
                }
            }
            let nothing = survey(isa, &[]);
            assert_eq!(nothing.highest, f32::NEG_INFINITY);
            assert_eq!(first(isa, &[], 0.0), None);
        }
    }
}
