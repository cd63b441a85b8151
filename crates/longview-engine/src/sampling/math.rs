//! Exponential and logarithm in plain arithmetic, so that a seed gives the same text everywhere.
//!
//! The standard library's versions come from the platform's C library and differ in the last bit
//! from one to the next, which is enough to move a random draw.

use std::sync::OnceLock;

use longview_kernels::Isa;
pub use longview_kernels::logits::exp;
use longview_kernels::logits::{self as kernels, Mass, Survey};

/// The natural logarithm of a finite x > 0, to within a few units in the last place of f64.
pub fn ln(x: f64) -> f64 {
    debug_assert!(x > 0.0 && x.is_finite());
    // x = 2ⁿ·m with m in [1/√2, √2), then ln m = 2·artanh((m − 1) / (m + 1)) as a series.
    let bits = x.to_bits();
    let mut n = (bits >> 52) as i64 - 1_023;
    let mut m = f64::from_bits(bits & 0x000f_ffff_ffff_ffff | 0x3ff0_0000_0000_0000);
    if m > std::f64::consts::SQRT_2 {
        m *= 0.5;
        n += 1;
    }
    let t = (m - 1.0) / (m + 1.0);
    let square = t * t;
    let mut sum = 0.0;
    // |t| ≤ 0.172: t²³ is below 1e-17.
    for k in (0..12).rev() {
        sum = sum * square + 1.0 / f64::from(2 * k + 1);
    }
    n as f64 * std::f64::consts::LN_2 + 2.0 * t * sum
}

/// Logits that are copied before they are summed up: a multiple of what a sum takes at once.
const PIECE: usize = 256;

/// Σ exp(logit − highest) over `logits`, none of which is above `highest`.
pub fn mass(mut logits: impl Iterator<Item = f32>, highest: f32) -> f64 {
    let (isa, mut mass) = (isa(), Mass::new(highest));
    let mut piece = [0.0; PIECE];
    loop {
        let mut count = 0;
        for (slot, logit) in piece.iter_mut().zip(&mut logits) {
            *slot = logit;
            count += 1;
        }
        mass.add(isa, &piece[..count]);
        if count < PIECE {
            return mass.total();
        }
    }
}

/// [`mass`] of a whole vocabulary, with the same sum.
pub fn mass_of(logits: &[f32], highest: f32) -> f64 {
    let mut mass = Mass::new(highest);
    mass.add(isa(), logits);
    mass.total()
}

/// The highest of `logits` and whether all are numbers below +∞.
pub fn survey(logits: &[f32]) -> Survey {
    kernels::survey(isa(), logits)
}

/// The first of `logits` that equals `logit`.
pub fn first(logits: &[f32], logit: f32) -> Option<usize> {
    kernels::first(isa(), logits, logit)
}

/// The highest of what `logit` says of `items`, −∞ when there is none; NaNs are passed over.
pub fn highest_of<T>(items: &[T], logit: impl Fn(&T) -> f32) -> f32 {
    /// Looked at at once, so that no step waits for the one before.
    const LANES: usize = 16;
    let higher = |most: f32, logit: f32| if logit > most { logit } else { most };
    let (blocks, rest) = items.as_chunks::<LANES>();
    let mut most = [f32::NEG_INFINITY; LANES];
    for block in blocks {
        for (most, item) in most.iter_mut().zip(block) {
            *most = higher(*most, logit(item));
        }
    }
    let most = most.into_iter().chain(rest.iter().map(logit));
    most.fold(f32::NEG_INFINITY, higher)
}

/// What passes over a vocabulary are compiled for. They give the same bits whatever it is, so it
/// need not be handed through every chain of samplers.
fn isa() -> Isa {
    static CHOSEN: OnceLock<Isa> = OnceLock::new();
    *CHOSEN.get_or_init(|| Isa::from_environment().unwrap_or(Isa::Scalar))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ln_is_close_over_many_magnitudes() {
        assert_eq!(ln(1.0), 0.0);
        for step in 1..20_000 {
            let x = 1.003_f64.powi(step - 10_000) * 1.000_7;
            assert!(
                (ln(x) - x.ln()).abs() <= 1e-15 * x.ln().abs().max(1.0),
                "{x}"
            );
        }
    }

    #[test]
    fn mass_of_equal_logits_counts_them() {
        for count in [0, 1, 7, 15, 16, 17, 32, 100] {
            let logits = vec![2.0; count];
            assert_eq!(mass(logits.iter().copied(), 2.0), count as f64);
            let logits: Vec<f32> = (0..count).map(|i| -(i as f32)).collect();
            assert_eq!(mass_of(&logits, 0.0), mass(logits.iter().copied(), 0.0));
        }
    }
}
