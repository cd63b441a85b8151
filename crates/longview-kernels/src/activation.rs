//! Elementwise operations between the matrix products.

use crate::Isa;
use crate::lanes::{self, Kernel, Lanes, exp_scalar};
#[cfg(target_arch = "x86_64")]
use crate::packed::layout::BLOCK;

/// The nonlinearity of a gated feed-forward layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x / (1 + e^-x)`.
    Silu,
    /// `x Φ(x)` with the normal distribution function Φ.
    Gelu,
    /// GELU's approximation by `tanh`, which some models are trained with.
    GeluTanh,
}

impl Activation {
    /// `gate = activation(gate) * up`, element by element.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn gate(self, isa: Isa, gate: &mut [f32], up: &[f32]) {
        match self {
            Activation::Silu => zip(isa, gate, up, Gated(Silu)),
            Activation::Gelu => zip(isa, gate, up, Gated(Gelu)),
            Activation::GeluTanh => zip(isa, gate, up, Gated(GeluTanh)),
        }
    }

    /// `out = activation(gate) * up`, element by element, to the bits of [`Activation::gate`].
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn gate_into(self, isa: Isa, gate: &[f32], up: &[f32], out: &mut [f32]) {
        match self {
            Activation::Silu => zip_into(isa, gate, up, out, Gated(Silu)),
            Activation::Gelu => zip_into(isa, gate, up, out, Gated(Gelu)),
            Activation::GeluTanh => zip_into(isa, gate, up, out, Gated(GeluTanh)),
        }
    }

    /// `out = activation(gate) * up`, element by element: `pairs` holds rows of a block of gates and a
    /// block of what is gated, `out` rows of a block.
    ///
    /// # Panics
    /// When these are not as many rows.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn gate_pairs(self, isa: Isa, pairs: &[f32], out: &mut [f32]) {
        assert_eq!(pairs.len(), 2 * out.len(), "as many rows");
        match self {
            Activation::Silu => zip_pairs(isa, pairs, out, Gated(Silu)),
            Activation::Gelu => zip_pairs(isa, pairs, out, Gated(Gelu)),
            Activation::GeluTanh => zip_pairs(isa, pairs, out, Gated(GeluTanh)),
        }
    }

    /// `x = activation(x)`, element by element.
    pub fn apply(self, isa: Isa, x: &mut [f32]) {
        match self {
            Activation::Silu => map(isa, x, Silu),
            Activation::Gelu => map(isa, x, Gelu),
            Activation::GeluTanh => map(isa, x, GeluTanh),
        }
    }
}

/// `x *= 1 / (1 + e^-gate)`, element by element.
///
/// # Panics
/// When the lengths differ.
pub fn sigmoid_gate(isa: Isa, x: &mut [f32], gate: &[f32]) {
    zip(isa, x, gate, SigmoidGate);
}

/// `x = cap * tanh(x / cap)`, element by element.
pub fn softcap(isa: Isa, x: &mut [f32], cap: f32) {
    map(isa, x, Softcap(cap));
}

/// `x += y`, element by element.
///
/// # Panics
/// When the lengths differ.
pub fn add(isa: Isa, x: &mut [f32], y: &[f32]) {
    zip(isa, x, y, AddScaled(1.0));
}

/// `x += y * factor`, element by element.
///
/// # Panics
/// When the lengths differ.
pub fn add_scaled(isa: Isa, x: &mut [f32], y: &[f32], factor: f32) {
    zip(isa, x, y, AddScaled(factor));
}

/// `x *= factor`, element by element.
pub fn scale(isa: Isa, x: &mut [f32], factor: f32) {
    map(isa, x, Scale(factor));
}

/// A function of one number.
trait Map: Copy {
    fn scalar(self, x: f32) -> f32;
    fn lanes<L: Lanes>(self, l: L, x: L::V) -> L::V;
}

/// A function of two numbers.
trait Zip: Copy {
    fn scalar(self, x: f32, y: f32) -> f32;
    fn lanes<L: Lanes>(self, l: L, x: L::V, y: L::V) -> L::V;
}

fn map(isa: Isa, x: &mut [f32], f: impl Map) {
    lanes::run(isa, EachMapped { x, f });
}

fn zip(isa: Isa, x: &mut [f32], y: &[f32], f: impl Zip) {
    assert_eq!(x.len(), y.len(), "as many numbers on both sides");
    lanes::run(isa, EachZipped { x, y, f });
}

fn zip_into(isa: Isa, x: &[f32], y: &[f32], out: &mut [f32], f: impl Zip) {
    assert!(
        x.len() == out.len() && y.len() == out.len(),
        "as many numbers on all sides"
    );
    lanes::run(isa, EachZippedInto { x, y, out, f });
}

#[cfg(target_arch = "x86_64")]
fn zip_pairs(isa: Isa, pairs: &[f32], out: &mut [f32], f: impl Zip) {
    lanes::run(isa, EachPaired { pairs, out, f });
}

struct EachMapped<'a, F> {
    x: &'a mut [f32],
    f: F,
}

impl<F: Map> Kernel for EachMapped<'_, F> {
    type Output = ();

    fn scalar(self) {
        self.x.iter_mut().for_each(|x| *x = self.f.scalar(*x));
    }

    #[inline(always)]
    fn lanes<L: Lanes>(self, l: L) {
        let mut x = self.x.chunks_exact_mut(L::WIDTH);
        for x in x.by_ref() {
            let y = self.f.lanes(l, l.load(x));
            l.store(x, y);
        }
        let x = x.into_remainder();
        let y = self.f.lanes(l, l.load_part(x));
        l.store_part(x, y);
    }
}

struct EachZipped<'a, F> {
    x: &'a mut [f32],
    y: &'a [f32],
    f: F,
}

impl<F: Zip> Kernel for EachZipped<'_, F> {
    type Output = ();

    fn scalar(self) {
        self.x
            .iter_mut()
            .zip(self.y)
            .for_each(|(x, &y)| *x = self.f.scalar(*x, y));
    }

    #[inline(always)]
    fn lanes<L: Lanes>(self, l: L) {
        let mut x = self.x.chunks_exact_mut(L::WIDTH);
        let mut y = self.y.chunks_exact(L::WIDTH);
        for (x, y) in x.by_ref().zip(y.by_ref()) {
            let z = self.f.lanes(l, l.load(x), l.load(y));
            l.store(x, z);
        }
        let x = x.into_remainder();
        let z = self.f.lanes(l, l.load_part(x), l.load_part(y.remainder()));
        l.store_part(x, z);
    }
}

struct EachZippedInto<'a, F> {
    x: &'a [f32],
    y: &'a [f32],
    out: &'a mut [f32],
    f: F,
}

impl<F: Zip> Kernel for EachZippedInto<'_, F> {
    type Output = ();

    fn scalar(self) {
        let both = self.x.iter().zip(self.y);
        for (out, (&x, &y)) in self.out.iter_mut().zip(both) {
            *out = self.f.scalar(x, y);
        }
    }

    #[inline(always)]
    fn lanes<L: Lanes>(self, l: L) {
        let mut out = self.out.chunks_exact_mut(L::WIDTH);
        let mut x = self.x.chunks_exact(L::WIDTH);
        let mut y = self.y.chunks_exact(L::WIDTH);
        for ((out, x), y) in out.by_ref().zip(x.by_ref()).zip(y.by_ref()) {
            l.store(out, self.f.lanes(l, l.load(x), l.load(y)));
        }
        let (x, y) = (l.load_part(x.remainder()), l.load_part(y.remainder()));
        l.store_part(out.into_remainder(), self.f.lanes(l, x, y));
    }
}

#[cfg(target_arch = "x86_64")]
struct EachPaired<'a, F> {
    /// `[rows][2][BLOCK]`
    pairs: &'a [f32],
    /// `[rows][BLOCK]`
    out: &'a mut [f32],
    f: F,
}

#[cfg(target_arch = "x86_64")]
impl<F: Zip> Kernel for EachPaired<'_, F> {
    type Output = ();

    fn scalar(self) {
        let rows = self.pairs.as_chunks::<{ 2 * BLOCK }>().0;
        for (pairs, out) in rows.iter().zip(self.out.chunks_exact_mut(BLOCK)) {
            let (x, y) = pairs.split_at(BLOCK);
            for ((x, y), out) in x.iter().zip(y).zip(out) {
                *out = self.f.scalar(*x, *y);
            }
        }
    }

    #[inline(always)]
    fn lanes<L: Lanes>(self, l: L) {
        let rows = self.pairs.as_chunks::<{ 2 * BLOCK }>().0;
        for (pairs, out) in rows.iter().zip(self.out.chunks_exact_mut(BLOCK)) {
            for at in (0..BLOCK).step_by(L::WIDTH) {
                let (x, y) = (l.load(&pairs[at..]), l.load(&pairs[BLOCK + at..]));
                l.store(&mut out[at..], self.f.lanes(l, x, y));
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Gated<F>(F);

impl<F: Map> Zip for Gated<F> {
    fn scalar(self, gate: f32, up: f32) -> f32 {
        self.0.scalar(gate) * up
    }

    #[inline(always)]
    fn lanes<L: Lanes>(self, l: L, gate: L::V, up: L::V) -> L::V {
        l.mul(self.0.lanes(l, gate), up)
    }
}

#[derive(Clone, Copy)]
struct Silu;

impl Map for Silu {
    fn scalar(self, x: f32) -> f32 {
        x / (1.0 + exp_scalar(-x))
    }

    #[inline(always)]
    fn lanes<L: Lanes>(self, l: L, x: L::V) -> L::V {
        let e = l.exp(l.sub(l.splat(0.0), x));
        l.div(x, l.add(l.splat(1.0), e))
    }
}

#[derive(Clone, Copy)]
struct SigmoidGate;

impl Zip for SigmoidGate {
    fn scalar(self, x: f32, gate: f32) -> f32 {
        x / (1.0 + exp_scalar(-gate))
    }

    #[inline(always)]
    fn lanes<L: Lanes>(self, l: L, x: L::V, gate: L::V) -> L::V {
        let e = l.exp(l.sub(l.splat(0.0), gate));
        l.div(x, l.add(l.splat(1.0), e))
    }
}

/// sqrt(2 / π) and its product with 0.044715, of the published approximation.
const GELU_TANH: (f32, f32) = (0.797_884_6, 0.035_677_407);

#[derive(Clone, Copy)]
struct GeluTanh;

impl Map for GeluTanh {
    fn scalar(self, x: f32) -> f32 {
        // x (1 + tanh u) / 2 = x / (1 + e^-2u), which does not cancel for negative x.
        let u = x * (GELU_TANH.0 + GELU_TANH.1 * x * x);
        x / (1.0 + exp_scalar(-2.0 * u))
    }

    #[inline(always)]
    fn lanes<L: Lanes>(self, l: L, x: L::V) -> L::V {
        let inner = l.fma(l.splat(GELU_TANH.1), l.mul(x, x), l.splat(GELU_TANH.0));
        let e = l.exp(l.mul(l.mul(x, l.splat(-2.0)), inner));
        l.div(x, l.add(l.splat(1.0), e))
    }
}

#[derive(Clone, Copy)]
struct Gelu;

impl Map for Gelu {
    fn scalar(self, x: f32) -> f32 {
        (f64::from(x) * normal_distribution(f64::from(x))) as f32
    }

    #[inline(always)]
    fn lanes<L: Lanes>(self, l: L, x: L::V) -> L::V {
        // The smaller tail of the normal distribution: with a = |x| / sqrt 2 it is
        // erfc(a) / 2 = e^-a² t p(t), t = 1 / (1 + a / 2); p fitted here on 0 <= a <= 9.5 to a
        // relative error of 4e-8, the factor 1/2 taken in.
        let a = l.mul(l.abs(x), l.splat(std::f32::consts::FRAC_1_SQRT_2));
        let t = l.div(l.splat(1.0), l.fma(a, l.splat(0.5), l.splat(1.0)));
        let mut p = l.splat(0.5 * TAIL[8]);
        for &c in TAIL[..8].iter().rev() {
            p = l.fma(p, t, l.splat(0.5 * c));
        }
        let squared = l.mul(x, l.mul(x, l.splat(-0.5)));
        let tail = l.mul(l.mul(p, t), l.exp(squared));
        let zero = l.splat(0.0);
        l.mul(x, l.select_less(x, zero, tail, l.sub(l.splat(1.0), tail)))
    }
}

/// `erfc(a) e^{a²} = t (TAIL[0] + TAIL[1] t + …)` with `t = 1 / (1 + a / 2)`.
const TAIL: [f32; 9] = [
    0.282_087_68,
    0.282_353_34,
    0.243_262_13,
    0.202_065,
    -0.025_165_254,
    0.275_958_48,
    -0.485_364_94,
    0.283_692_1,
    -0.058_888_577,
];

/// Φ(x) by the series e^{-x²/2} / sqrt(2π) · (x + x³/3 + x⁵/15 + …), whose terms do not cancel.
fn normal_distribution(x: f64) -> f64 {
    if x.abs() > 9.0 {
        return if x < 0.0 { 0.0 } else { 1.0 };
    }
    let (mut term, mut sum, mut n) = (x, x, 1.0);
    while term.abs() > 1e-18 * sum.abs() {
        n += 2.0;
        term *= x * x / n;
        sum += term;
    }
    0.5 + sum * (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt()
}

#[derive(Clone, Copy)]
struct Softcap(f32);

impl Map for Softcap {
    fn scalar(self, x: f32) -> f32 {
        self.0 * (x / self.0).tanh()
    }

    #[inline(always)]
    fn lanes<L: Lanes>(self, l: L, x: L::V) -> L::V {
        l.mul(l.splat(self.0), l.tanh(l.mul(x, l.splat(1.0 / self.0))))
    }
}

#[derive(Clone, Copy)]
struct Scale(f32);

impl Map for Scale {
    fn scalar(self, x: f32) -> f32 {
        x * self.0
    }

    #[inline(always)]
    fn lanes<L: Lanes>(self, l: L, x: L::V) -> L::V {
        l.mul(x, l.splat(self.0))
    }
}

#[derive(Clone, Copy)]
struct AddScaled(f32);

impl Zip for AddScaled {
    fn scalar(self, x: f32, y: f32) -> f32 {
        x + y * self.0
    }

    #[inline(always)]
    fn lanes<L: Lanes>(self, l: L, x: L::V, y: L::V) -> L::V {
        l.fma(y, l.splat(self.0), x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs() -> Vec<f32> {
        let dense = (0..4001).map(|i| (i - 2000) as f32 * 0.006);
        dense
            .chain([-1e4, -100.0, 100.0, 1e4, 1e-20, -1e-20, 0.0])
            .collect()
    }

    fn assert_close(isa: Isa, x: f32, found: f32, exact: f64, relative: f64) {
        let off = (f64::from(found) - exact).abs();
        assert!(
            off <= relative * exact.abs() + 1e-12,
            "{isa} f({x}) = {found}, not {exact}"
        );
    }

    #[test]
    fn activations_are_accurate_on_both_sides_of_zero() {
        for isa in Isa::available() {
            for kind in [Activation::Silu, Activation::Gelu, Activation::GeluTanh] {
                let x = inputs();
                let mut y = x.clone();
                kind.apply(isa, &mut y);
                for (&x, &y) in x.iter().zip(&y) {
                    let wide = f64::from(x);
                    let exact = match kind {
                        Activation::Silu => wide / (1.0 + (-wide).exp()),
                        Activation::Gelu => wide * normal_distribution(wide),
                        Activation::GeluTanh => {
                            let u = (2.0 / std::f64::consts::PI).sqrt()
                                * (wide + 0.044_715 * wide.powi(3));
                            wide / (1.0 + (-2.0 * u).exp())
                        }
                    };
                    // Far in the tail the rounding of the exponent's argument counts.
                    let relative = 1e-6 + 2e-7 * wide.abs().min(20.0).powi(2);
                    if exact.abs() > 1e-10 || y != 0.0 {
                        assert_close(isa, x, y, exact, relative);
                    }
                }
            }
        }
    }

    #[test]
    fn series_of_the_normal_distribution() {
        for (x, phi) in [
            (0.0, 0.5),
            (1.0, 0.841_344_746_068_543),
            (-3.0, 0.001_349_898_031_630),
        ] {
            assert!((normal_distribution(x) - phi).abs() < 1e-14);
        }
    }

    #[test]
    fn an_element_has_the_same_bits_wherever_it_stands() {
        for isa in Isa::available() {
            for kind in [Activation::Silu, Activation::Gelu, Activation::GeluTanh] {
                let gate: Vec<f32> = inputs().into_iter().take(50).collect();
                let up: Vec<f32> = gate.iter().map(|x| 1.5 - x).collect();
                let mut all = gate.clone();
                kind.gate(isa, &mut all, &up);
                let mut elsewhere = vec![0.0; gate.len()];
                kind.gate_into(isa, &gate, &up, &mut elsewhere);
                assert_eq!(elsewhere, all, "{isa} {kind:?}");
                for i in 0..gate.len() {
                    let mut alone = [gate[i]];
                    kind.gate(isa, &mut alone, &up[i..=i]);
                    assert_eq!(alone[0].to_bits(), all[i].to_bits(), "{isa} {kind:?} {i}");
                }
            }
        }
    }

    #[test]
    fn gates_are_sigmoids() {
        for isa in Isa::available() {
            let gate = inputs();
            let mut x = vec![3.0; gate.len()];
            sigmoid_gate(isa, &mut x, &gate);
            for (&gate, &x) in gate.iter().zip(&x) {
                let exact = 3.0 / (1.0 + (-f64::from(gate)).exp());
                // Far in the tail the rounding of the exponent's argument counts.
                assert_close(
                    isa,
                    gate,
                    x,
                    exact,
                    1e-6 + 2e-7 * f64::from(gate).abs().min(20.0),
                );
            }
        }
    }

    #[test]
    fn sums_scales_and_caps() {
        for isa in Isa::available() {
            let mut x = inputs();
            let y: Vec<f32> = x.iter().map(|x| x * 0.5).collect();
            add_scaled(isa, &mut x, &y, -2.0);
            assert!(x.iter().all(|&x| x == 0.0));
            add(isa, &mut x, &y);
            scale(isa, &mut x, 2.0);
            assert_eq!(x, inputs());
            softcap(isa, &mut x, 3.0);
            for (&x, &y) in inputs().iter().zip(&x) {
                assert_close(isa, x, y, 3.0 * (f64::from(x) / 3.0).tanh(), 1e-6);
            }
        }
    }
}
