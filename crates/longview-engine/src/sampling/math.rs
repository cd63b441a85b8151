//! Exponential and logarithm in plain arithmetic, so that a seed gives the same text everywhere.
//!
//! The standard library's versions come from the platform's C library and differ in the last bit
//! from one to the next, which is enough to move a random draw.

/// eˣ for x ≤ 0, to within 2 units in the last place; 0 below −87, where f32 runs out of normal
/// numbers, and 1 above 0.
///
/// Branch-free, so that loops over a vocabulary are vectorised.
#[inline]
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

/// Numbers that the passes over a vocabulary take at once, each in a lane of its own: a fixed number,
/// so that sums come out the same everywhere.
const LANES: usize = 16;

/// Σ exp(logit − highest) over `logits`, none of which is above `highest`.
pub fn mass(logits: impl Iterator<Item = f32>, highest: f32) -> f64 {
    let mut logits = logits.fuse();
    let mut sums = [0.0; LANES];
    loop {
        let mut block = [f32::NEG_INFINITY; LANES];
        let mut count = 0;
        for (slot, logit) in block.iter_mut().zip(&mut logits) {
            *slot = logit;
            count += 1;
        }
        add_mass(&mut sums, &block, highest);
        if count < LANES {
            return sums.iter().sum();
        }
    }
}

/// [`mass`] of a whole vocabulary, with the same sum.
pub fn mass_of(logits: &[f32], highest: f32) -> f64 {
    let (blocks, rest) = logits.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for block in blocks {
        add_mass(&mut sums, block, highest);
    }
    let mut block = [f32::NEG_INFINITY; LANES];
    block[..rest.len()].copy_from_slice(rest);
    add_mass(&mut sums, &block, highest);
    sums.iter().sum()
}

#[inline(always)]
fn add_mass(sums: &mut [f64; LANES], block: &[f32; LANES], highest: f32) {
    for (sum, logit) in sums.iter_mut().zip(block) {
        *sum += f64::from(exp(logit - highest));
    }
}

/// The highest of `logits`, −∞ when there is none; NaNs are passed over.
pub fn highest(logits: &[f32]) -> f32 {
    let higher = |most: f32, logit: f32| if logit > most { logit } else { most };
    let (blocks, rest) = logits.as_chunks::<LANES>();
    let mut most = [f32::NEG_INFINITY; LANES];
    for block in blocks {
        for (most, &logit) in most.iter_mut().zip(block) {
            *most = higher(*most, logit);
        }
    }
    let most = most.into_iter().chain(rest.iter().copied());
    most.fold(f32::NEG_INFINITY, higher)
}

/// Whether all of `logits` are below +∞: neither that nor NaN.
pub fn all_below_infinity(logits: &[f32]) -> bool {
    // Without an early end, so that the loop is vectorised.
    logits
        .iter()
        .fold(true, |all, &logit| all & (logit < f32::INFINITY))
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

    #[test]
    fn the_highest_is_found_wherever_it_is() {
        for len in [1, 15, 16, 17, 40] {
            for at in 0..len {
                let mut logits = vec![-1.0; len];
                logits[at] = 3.0;
                assert_eq!(highest(&logits), 3.0);
                assert!(all_below_infinity(&logits));
                logits[at] = f32::NAN;
                assert_eq!(
                    highest(&logits),
                    if len > 1 { -1.0 } else { f32::NEG_INFINITY }
                );
                assert!(!all_below_infinity(&logits));
                logits[at] = f32::INFINITY;
                assert!(!all_below_infinity(&logits));
            }
        }
        assert_eq!(highest(&[]), f32::NEG_INFINITY);
    }
}
