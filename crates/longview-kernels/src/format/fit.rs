//! Choosing the factors of a block: searches for the least weighted squared error.
//!
//! Two levels, as the blocks have them. A *sub-block* of N values is fitted first, with free f32
//! factors: a fixed set of candidate factors around the one its range suggests, each rounded to
//! levels, refitted in closed form to those levels, and judged by its error. The *block* then shares
//! one f16 unit among its sub-blocks: integer scales are chosen in that unit, trying the neighbours
//! of the nearest, and last the unit itself is refitted to everything chosen.

use half::f16;

/// Candidates on each side of the factor that the range suggests.
const STEPS: i32 = 9;

/// How much the error of each value counts: `|x| + rms`.
pub(super) fn weights<const N: usize>(x: &[f32; N]) -> [f32; N] {
    let rms = (x.iter().map(|x| x * x).sum::<f32>() / N as f32).sqrt();
    x.map(|x| x.abs() + rms)
}

/// The factor `s` for which `x ≈ s · level` is best, a level being what `nearest` gives.
///
/// `extreme_level` is the level furthest from zero; candidates match it with the value furthest from
/// zero, times `1 − spread` to `1 + spread`.
pub(super) fn symmetric<const N: usize>(
    x: &[f32; N],
    weights: &[f32; N],
    extreme_level: f32,
    spread: f32,
    nearest: impl Fn(f32) -> f32,
) -> f32 {
    let extreme = x
        .iter()
        .fold(0.0f32, |e, &x| if x.abs() > e.abs() { x } else { e });
    let inverse = extreme_level / extreme;
    if !inverse.is_finite() {
        return 0.0; // All zero, or so small that it is zero in f16.
    }
    let (mut best, mut best_gain) = (0.0, 0.0);
    for step in -STEPS..=STEPS {
        let inverse = inverse * (1.0 + spread * step as f32 / STEPS as f32);
        let [xl, ll] = sums(x, weights, |x, w| {
            let level = nearest(x * inverse);
            [w * x * level, w * level * level]
        });
        // With the best factor xl/ll the error is Σwx² − xl²/ll.
        if ll > 0.0 && xl * xl > best_gain * ll {
            best_gain = xl * xl / ll;
            best = xl / ll;
        }
    }
    best
}

/// The `(scale, min)`, both ≥ 0, for which `x ≈ scale · q − min` is best with q from 0 to `top`.
pub(super) fn affine<const N: usize>(x: &[f32; N], weights: &[f32; N], top: f32) -> (f32, f32) {
    let low = x.iter().fold(0.0f32, |low, &x| low.min(x));
    let high = x.iter().fold(f32::NEG_INFINITY, |high, &x| high.max(x));
    let inverse = top / (high - low);
    if !inverse.is_finite() {
        return (0.0, -low);
    }
    let [total, wx] = sums(x, weights, |x, w| [w, w * x]);
    let (mut best, mut best_gain) = ((0.0, -low), f32::NEG_INFINITY);
    for step in -STEPS..=STEPS {
        let inverse = inverse * (1.0 + step as f32 / STEPS as f32 / top);
        let [wq, wqq, wqx] = sums(x, weights, |x, w| {
            let q = round((x - low) * inverse, 0.0, top);
            [w * q, w * q * q, w * q * x]
        });
        let determinant = total * wqq - wq * wq;
        if determinant <= 0.0 {
            continue;
        }
        let mut scale = (total * wqx - wx * wq) / determinant;
        let mut offset = (wqq * wx - wq * wqx) / determinant;
        if offset > 0.0 {
            (scale, offset) = (wqx / wqq, 0.0);
        }
        // With the best scale and offset the error is Σwx² less this.
        let gain = scale * wqx + offset * wx;
        if scale > 0.0 && gain > best_gain {
            (best, best_gain) = ((scale, -offset), gain);
        }
    }
    best
}

/// A block of `SUBS` sub-blocks with signed scales: element = d · scale · level.
pub(super) struct Symmetric<const SUBS: usize> {
    /// The unit of the scales, exactly an f16.
    pub(super) d: f32,
    /// One for each sub-block.
    pub(super) scales: [i16; SUBS],
}

impl<const SUBS: usize> Symmetric<SUBS> {
    /// Fits a block of `SUBS · N` values. `lowest` is the least integer scale; the greatest is
    /// `−lowest − 1`. The rest is as in [`symmetric`].
    pub(super) fn fit<const N: usize>(
        x: &[f32; 256],
        extreme_level: f32,
        spread: f32,
        lowest: f32,
        nearest: impl Fn(f32) -> f32 + Copy,
    ) -> Symmetric<SUBS> {
        let weights = weights(x);
        let (subs, sub_weights) = (x.as_chunks::<N>().0, weights.as_chunks::<N>().0);
        let free: [f32; SUBS] = std::array::from_fn(|b| {
            symmetric(&subs[b], &sub_weights[b], extreme_level, spread, nearest)
        });
        let widest = free
            .iter()
            .fold(0.0f32, |e, &s| if s.abs() > e.abs() { s } else { e });
        let d = in_f16(widest / lowest);
        if d == 0.0 {
            return Symmetric {
                d: 0.0,
                scales: [0; SUBS],
            };
        }
        let error =
            |b: usize, scale: f32| symmetric_error(&subs[b], &sub_weights[b], scale, nearest);
        let scales: [f32; SUBS] = std::array::from_fn(|b| {
            let middle = round(free[b] / d, lowest, -lowest - 1.0);
            let near = [middle, middle - 1.0, middle + 1.0].into_iter();
            least(near.filter(|s| (lowest..-lowest).contains(s)), |&s| {
                error(b, d * s)
            })
        });

        // d again, now that all levels are chosen.
        let (mut xl, mut ll) = (0.0, 0.0);
        for (b, &scale) in scales.iter().enumerate() {
            let inverse = if scale == 0.0 { 0.0 } else { 1.0 / (d * scale) };
            for (&x, &w) in subs[b].iter().zip(&sub_weights[b]) {
                let level = scale * nearest(x * inverse);
                xl += w * x * level;
                ll += w * level * level;
            }
        }
        let total = |&d: &f32| (0..SUBS).map(|b| error(b, d * scales[b])).sum();
        let refitted = if ll > 0.0 { in_f16(xl / ll) } else { d };
        let d = least([d, refitted].into_iter(), total);
        Symmetric {
            d,
            scales: scales.map(|scale| scale as i16),
        }
    }
}

/// A block of `SUBS` sub-blocks with scales and minima: element = d · scale · q − dmin · min.
pub(super) struct Affine<const SUBS: usize> {
    /// The unit of the scales, exactly an f16, not negative.
    pub(super) d: f32,
    /// The unit of the minima, exactly an f16, not negative.
    pub(super) dmin: f32,
    /// One for each sub-block.
    pub(super) scales: [u8; SUBS],
    /// One for each sub-block.
    pub(super) mins: [u8; SUBS],
}

impl<const SUBS: usize> Affine<SUBS> {
    /// Fits a block of `SUBS · N` values with levels from 0 to `top` and integer scales and minima
    /// from 0 to `highest`.
    pub(super) fn fit<const N: usize>(x: &[f32; 256], top: f32, highest: f32) -> Affine<SUBS> {
        let weights = weights(x);
        let (subs, sub_weights) = (x.as_chunks::<N>().0, weights.as_chunks::<N>().0);
        let free: [(f32, f32); SUBS] =
            std::array::from_fn(|b| affine(&subs[b], &sub_weights[b], top));
        let d = in_f16(free.iter().fold(0.0f32, |e, s| e.max(s.0)) / highest);
        let dmin = in_f16(free.iter().fold(0.0f32, |e, s| e.max(s.1)) / highest);
        let error = |b: usize, scale: f32, min: f32| {
            affine_error(&subs[b], &sub_weights[b], scale, min, top)
        };
        let chosen: [(f32, f32); SUBS] = std::array::from_fn(|b| {
            let middle = |value: f32, unit: f32| {
                if unit == 0.0 {
                    0.0
                } else {
                    round(value / unit, 0.0, highest)
                }
            };
            let (s, m) = (middle(free[b].0, d), middle(free[b].1, dmin));
            let near = [0.0, -1.0, 1.0];
            let pairs = near.into_iter().flat_map(|a| near.map(|b| (s + a, m + b)));
            let legal = |v: f32| (0.0..=highest).contains(&v);
            let pairs = pairs.filter(|&(s, m)| legal(s) && legal(m));
            least(pairs, |&(s, m)| error(b, d * s, dmin * m))
        });

        // d and dmin again, now that all levels are chosen: x ≈ d·a − dmin·m.
        let (mut aa, mut am, mut mm, mut ax, mut mx) = (0.0f64, 0.0f64, 0.0f64, 0.0f64, 0.0f64);
        for (b, &(s, m)) in chosen.iter().enumerate() {
            let inverse = if d * s == 0.0 { 0.0 } else { 1.0 / (d * s) };
            for (&x, &w) in subs[b].iter().zip(&sub_weights[b]) {
                let a = f64::from(s * round((x + dmin * m) * inverse, 0.0, top));
                let (x, w, m) = (f64::from(x), f64::from(w), f64::from(m));
                aa += w * a * a;
                am += w * a * m;
                mm += w * m * m;
                ax += w * a * x;
                mx += w * m * x;
            }
        }
        let determinant = aa * mm - am * am;
        let refitted = if determinant > 0.0 {
            let d = in_f16(((ax * mm - mx * am) / determinant) as f32);
            (d, in_f16(((am * ax - aa * mx) / determinant) as f32))
        } else {
            (d, dmin)
        };
        let total = |&(d, dmin): &(f32, f32)| {
            if d < 0.0 || dmin < 0.0 {
                return f32::INFINITY;
            }
            (0..SUBS)
                .map(|b| error(b, d * chosen[b].0, dmin * chosen[b].1))
                .sum()
        };
        let (d, dmin) = least([(d, dmin), refitted].into_iter(), total);
        let (scales, mins) = (chosen.map(|c| c.0 as u8), chosen.map(|c| c.1 as u8));
        Affine {
            d,
            dmin,
            scales,
            mins,
        }
    }
}

/// The whole number nearest to `x` from `low` to `high`, without a call into the C library: adding
/// 1.5 · 2^23 leaves no bits for a fraction.
pub(super) fn round(x: f32, low: f32, high: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0;
    (x.clamp(low, high) + SHIFT) - SHIFT
}

fn symmetric_error<const N: usize>(
    x: &[f32; N],
    weights: &[f32; N],
    scale: f32,
    nearest: impl Fn(f32) -> f32,
) -> f32 {
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    squares(x, weights, |x| scale * nearest(x * inverse))
}

fn affine_error<const N: usize>(
    x: &[f32; N],
    weights: &[f32; N],
    scale: f32,
    min: f32,
    top: f32,
) -> f32 {
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    squares(x, weights, |x| {
        scale * round((x + min) * inverse, 0.0, top) - min
    })
}

fn squares<const N: usize>(x: &[f32; N], weights: &[f32; N], stored: impl Fn(f32) -> f32) -> f32 {
    let [sum] = sums(x, weights, |x, w| [w * (x - stored(x)) * (x - stored(x))]);
    sum
}

/// Sums of terms of each value and its weight, in eight lanes, so that the compiler may use vectors
/// of any width without the order of the sum depending on it. N is a multiple of eight.
#[inline(always)]
fn sums<const N: usize, const S: usize>(
    x: &[f32; N],
    weights: &[f32; N],
    terms: impl Fn(f32, f32) -> [f32; S],
) -> [f32; S] {
    let mut lanes = [[0.0; 8]; S];
    for (x, w) in x.as_chunks::<8>().0.iter().zip(weights.as_chunks::<8>().0) {
        for lane in 0..8 {
            let terms = terms(x[lane], w[lane]);
            for (sum, term) in lanes.iter_mut().zip(terms) {
                sum[lane] += term;
            }
        }
    }
    lanes.map(|lanes| lanes.iter().sum())
}

/// The candidate with the least error, the first of equals.
fn least<T: Copy>(candidates: impl Iterator<Item = T>, error: impl Fn(&T) -> f32) -> T {
    candidates
        .map(|candidate| (error(&candidate), candidate))
        .reduce(|best, next| if next.0 < best.0 { next } else { best })
        .expect("the middle candidate is always legal")
        .1
}

fn in_f16(x: f32) -> f32 {
    f16::from_f32(x).to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_goes_to_the_nearest_whole_number_in_range() {
        for (x, rounded) in [
            (0.4, 0.0),
            (0.6, 1.0),
            (1.5, 2.0),
            (2.5, 2.0),
            (-3.7, -4.0),
            (99.0, 15.0),
        ] {
            assert_eq!(round(x, -8.0, 15.0), rounded, "{x}");
        }
    }

    /// Values that a scale and a minimum can express exactly are found again.
    #[test]
    fn exact_values_are_fitted_exactly() {
        let x: [f32; 32] = std::array::from_fn(|i| 0.25 * (i % 16) as f32 - 1.5);
        let (scale, min) = affine(&x, &weights(&x), 15.0);
        assert!(
            (scale - 0.25).abs() < 1e-6 && (min - 1.5).abs() < 1e-5,
            "{scale} {min}"
        );
        let x: [f32; 16] = std::array::from_fn(|i| 0.5 * (i as f32 - 8.0));
        let nearest = |x| round(x, -32.0, 31.0);
        let found = symmetric(&x, &weights(&x), -32.0, 0.03, nearest);
        let error = symmetric_error(&x, &weights(&x), found, nearest);
        assert!(error < 1e-6, "{found} {error}");
    }
}
