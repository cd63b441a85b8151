//! One vector program for every instruction set.
//!
//! A kernel is a struct that holds its arguments and implements [`Kernel`]: once as plain Rust (the
//! definition) and once over any [`Lanes`]. [`run`] picks the version for an [`Isa`] and compiles
//! the vector one with that instruction set's features, so the operations become single
//! instructions. All lanes of a vector are independent, therefore a value never depends on which
//! lane computed it.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;

use crate::Isa;
use crate::page::Q4_MIDDLE;

#[cfg(target_arch = "x86_64")]
use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
#[cfg(target_arch = "aarch64")]
use neon::Neon;
#[cfg(target_arch = "aarch64")]
pub(crate) use neon::widen_f16;

/// A kernel that can run on any instruction set.
pub(crate) trait Kernel {
    type Output;

    /// The definition, in plain Rust.
    fn scalar(self) -> Self::Output;

    /// The vector version. Implementations are `#[inline(always)]`, as is all they call, so that
    /// the instruction set's features reach every operation.
    fn lanes<L: Lanes>(self, l: L) -> Self::Output;
}

/// Runs `kernel` on `isa`; an instruction set that this processor lacks runs the definition.
#[inline]
pub(crate) fn run<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor was just asked whether it has the features.
        Isa::Avx512 | Isa::Amx if isa.is_available() => unsafe { run_avx512(kernel) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor was just asked whether it has the features.
        Isa::Avx2 | Isa::AvxVnni if isa.is_available() => unsafe { run_avx2(kernel) },
        #[cfg(target_arch = "aarch64")]
        Isa::Neon | Isa::NeonDotprod | Isa::NeonI8mm if isa.is_available() => {
            // SAFETY: the processor was just asked whether it has the features.
            unsafe { run_neon(kernel) }
        }
        _ => kernel.scalar(),
    }
}

/// Runs `work` on [`Isa::Amx`] alone, whose vectors are those of AVX-512.
///
/// # Panics
/// When the processor lacks it.
#[cfg(target_arch = "x86_64")]
pub(crate) fn run_beside_tiles<T>(work: impl FnOnce(Avx512) -> T) -> T {
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn run<T>(work: impl FnOnce(Avx512) -> T) -> T {
        // SAFETY: the caller vouches for the features.
        work(unsafe { Avx512::assume() })
    }
    assert!(Isa::Amx.is_available(), "a processor with tiles");
    // SAFETY: it offers AVX-512 as well.
    unsafe { run(work) }
}

/// # Safety
/// The processor offers [`Isa::Avx512`].
#[cfg(target_arch = "x86_64")]
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller vouches for the features.
    kernel.lanes(unsafe { Avx512::assume() })
}

/// # Safety
/// The processor offers [`Isa::Avx2`].
#[cfg(target_arch = "x86_64")]
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller vouches for the features.
    kernel.lanes(unsafe { Avx2::assume() })
}

/// # Safety
/// The processor offers [`Isa::Neon`].
#[cfg(target_arch = "aarch64")]
#[inline(never)]
#[target_feature(enable = "neon")]
unsafe fn run_neon<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller vouches for the features.
    kernel.lanes(unsafe { Neon::assume() })
}

/// Vectors of `f32`. A value of the implementing type is proof that the processor has the
/// instructions, which is why the arithmetic is safe to call.
pub(crate) trait Lanes: Copy {
    /// A vector of [`Lanes::WIDTH`] numbers.
    type V: Copy;
    /// A vector of [`Lanes::WIDTH`] whole numbers of 32 bits, or of four bytes in each place.
    type I: Copy;
    /// Numbers in a vector; a divisor of 16.
    const WIDTH: usize;

    /// Runs a kernel as a function of its own, with this instruction set's features: for inner
    /// loops, whose registers are best allocated apart from their callers'.
    fn call<K: Kernel>(self, kernel: K) -> K::Output;

    /// # Safety
    /// `p` is valid for reading `WIDTH` floats; no alignment is needed.
    unsafe fn load_ptr(self, p: *const f32) -> Self::V;
    /// # Safety
    /// `p` is valid for writing `WIDTH` floats; no alignment is needed.
    unsafe fn store_ptr(self, p: *mut f32, v: Self::V);
    /// Reads `WIDTH` half-precision numbers.
    ///
    /// # Safety
    /// `p` is valid for reading `2 * WIDTH` bytes; no alignment is needed.
    unsafe fn load_f16_ptr(self, p: *const u8) -> Self::V;
    /// Writes `WIDTH` half-precision numbers, rounded to nearest even.
    ///
    /// # Safety
    /// `p` is valid for writing `2 * WIDTH` bytes; no alignment is needed.
    unsafe fn store_f16_ptr(self, p: *mut u8, v: Self::V);
    /// Reads `WIDTH` bfloat16 numbers.
    ///
    /// # Safety
    /// `p` is valid for reading `2 * WIDTH` bytes; no alignment is needed.
    #[inline(always)]
    unsafe fn load_bf16_ptr(self, p: *const u8) -> Self::V {
        // SAFETY: the caller vouches for the memory.
        let bytes = unsafe { std::slice::from_raw_parts(p, 2 * Self::WIDTH) };
        let mut whole = [0f32; 16];
        for (x, b) in whole.iter_mut().zip(bytes.chunks_exact(2)) {
            *x = f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16);
        }
        self.load(&whole)
    }
    /// Reads `WIDTH` signed bytes.
    ///
    /// # Safety
    /// `p` is valid for reading `WIDTH` bytes.
    #[inline(always)]
    unsafe fn load_i8_ptr(self, p: *const u8) -> Self::V {
        // SAFETY: the caller vouches for the memory.
        let bytes = unsafe { std::slice::from_raw_parts(p, Self::WIDTH) };
        let mut whole = [0f32; 16];
        for (x, &b) in whole.iter_mut().zip(bytes) {
            *x = f32::from(b as i8);
        }
        self.load(&whole)
    }
    /// Reads the halves of `WIDTH` bytes that begin at bit `shift` (0 or 4), as `n - 7.5`.
    ///
    /// # Safety
    /// `p` is valid for reading `WIDTH` bytes.
    #[inline(always)]
    unsafe fn load_nibbles_ptr(self, p: *const u8, shift: u32) -> Self::V {
        // SAFETY: the caller vouches for the memory.
        let bytes = unsafe { std::slice::from_raw_parts(p, Self::WIDTH) };
        let mut whole = [0f32; 16];
        for (x, &b) in whole.iter_mut().zip(bytes) {
            *x = f32::from(b >> shift & 15) - Q4_MIDDLE;
        }
        self.load(&whole)
    }
    /// Writes rows of half-precision numbers that a bitmap and those of them that are there stand for.
    ///
    /// # Safety
    /// [`SparseRows`] says what has to be there.
    #[inline(always)]
    unsafe fn expand_rows(self, rows: &SparseRows) {
        // SAFETY: the caller vouches for the memory.
        unsafe {
            rows.each_word(|bits, from, to, count| {
                let mut next = from.cast::<[u8; 2]>();
                for at in 0..count {
                    let stays = bits >> at & 1 == 1;
                    let half = if stays { *next } else { [0; 2] };
                    *to.cast::<[u8; 2]>().add(at) = half;
                    next = next.wrapping_add(usize::from(stays));
                }
            });
        }
    }
    /// Asks for the cache line at `p`, which may be any address, into the second-level cache: more
    /// lines can be on their way there than into the first.
    fn prefetch(self, p: *const u8);

    /// Reads `WIDTH` whole numbers.
    ///
    /// # Safety
    /// `p` is valid for reading `4 * WIDTH` bytes; no alignment is needed.
    unsafe fn load_whole(self, p: *const u8) -> Self::I;
    /// Writes the lowest bytes of the whole numbers `x`, which 16 bits hold, one vector after another.
    ///
    /// # Safety
    /// `p` is valid for writing `4 * WIDTH` bytes.
    unsafe fn store_low_bytes(self, p: *mut u8, x: [Self::I; 4]);
    /// Writes what remains of the same above their lowest bytes read as signed ones.
    ///
    /// # Safety
    /// `p` is valid for writing `4 * WIDTH` bytes.
    unsafe fn store_high_bytes(self, p: *mut u8, x: [Self::I; 4]);
    fn splat_whole(self, x: i32) -> Self::I;
    /// Every whole number shifted down by `shift` bits, and of its four bytes the bits of `mask`.
    fn codes(self, x: Self::I, shift: u32, mask: u8) -> Self::I;
    /// `acc` and the sum of the products of four bytes: `codes`, below 128, with signed `factors`.
    fn dot4(self, acc: Self::I, codes: Self::I, factors: Self::I) -> Self::I;
    /// The same of any unsigned bytes.
    fn dot4_bytes(self, acc: Self::I, codes: Self::I, factors: Self::I) -> Self::I;
    /// `256 * high + low`.
    fn join_bytes(self, high: Self::I, low: Self::I) -> Self::I;
    fn to_floats(self, x: Self::I) -> Self::V;
    /// To the nearest whole number, ties to even; anything for numbers beyond 32 bits.
    fn to_whole(self, x: Self::V) -> Self::I;

    fn splat(self, x: f32) -> Self::V;
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The smaller number; `b` when either is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// The larger number; `b` when either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `x` where `a < b`, else `y` (so `y` where either is NaN).
    fn select_less(self, a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V;
    /// To the nearest whole number, ties to even.
    fn round(self, a: Self::V) -> Self::V;
    /// `a * 2^n` for whole `n` between -254 and 254, of `a` near 1.
    fn scale_by_power(self, a: Self::V, n: Self::V) -> Self::V;
    /// `a * 2^n` for whole `n` between -126 and 30 and a normal result.
    fn scale_down(self, a: Self::V, n: Self::V) -> Self::V;
    fn abs(self, a: Self::V) -> Self::V;
    /// The magnitude of `a` with the sign of `sign`.
    fn copy_sign(self, a: Self::V, sign: Self::V) -> Self::V;
    /// `v` in the lanes `lo..hi`, `fill` in the others; bounds may lie outside `0..WIDTH`.
    fn keep(self, v: Self::V, lo: i32, hi: i32, fill: Self::V) -> Self::V;
    fn reduce_max(self, v: Self::V) -> f32;
    /// The sum of all lanes, halves added to halves: one fixed order.
    fn reduce_add(self, v: Self::V) -> f32;

    /// The largest lane of each of four vectors.
    #[inline(always)]
    fn tops(self, v: [Self::V; 4]) -> [f32; 4] {
        [
            self.reduce_max(v[0]),
            self.reduce_max(v[1]),
            self.reduce_max(v[2]),
            self.reduce_max(v[3]),
        ]
    }

    /// The sum of all lanes of each of four vectors: in one fixed order, the same for all four.
    #[inline(always)]
    fn sums(self, v: [Self::V; 4]) -> [f32; 4] {
        [
            self.reduce_add(v[0]),
            self.reduce_add(v[1]),
            self.reduce_add(v[2]),
            self.reduce_add(v[3]),
        ]
    }

    /// The first `WIDTH` numbers of `x`.
    #[inline(always)]
    fn load(self, x: &[f32]) -> Self::V {
        assert!(x.len() >= Self::WIDTH);
        // SAFETY: the slice is long enough.
        unsafe { self.load_ptr(x.as_ptr()) }
    }

    /// Writes the first `WIDTH` numbers of `x`.
    #[inline(always)]
    fn store(self, x: &mut [f32], v: Self::V) {
        assert!(x.len() >= Self::WIDTH);
        // SAFETY: the slice is long enough.
        unsafe { self.store_ptr(x.as_mut_ptr(), v) }
    }

    /// The numbers of `x`, at most `WIDTH`, followed by zeros.
    #[inline(always)]
    fn load_part(self, x: &[f32]) -> Self::V {
        let mut whole = [0f32; 16];
        whole[..x.len()].copy_from_slice(x);
        self.load(&whole)
    }

    /// Writes as many lanes as `x` has room for, at most `WIDTH`.
    #[inline(always)]
    fn store_part(self, x: &mut [f32], v: Self::V) {
        let mut whole = [0f32; 16];
        self.store(&mut whole, v);
        x.copy_from_slice(&whole[..x.len()]);
    }

    /// `e^x` within 1.5 units in the last place; results below the smallest normal number are 0,
    /// `exp(-inf)` is 0, results too large are `inf`, NaN stays NaN.
    #[inline(always)]
    fn exp(self, x: Self::V) -> Self::V {
        // x = n ln 2 + r, |r| <= ln 2 / 2, with ln 2 in two parts so that n * HIGH is exact.
        const LN2_HIGH: f32 = 0.693_359_4;
        const LN2_LOW: f32 = -2.121_944_4e-4;
        let clamped = self.min(self.splat(89.0), self.max(self.splat(-88.0), x));
        let n = self.round(self.mul(clamped, self.splat(std::f32::consts::LOG2_E)));
        let r = self.fma(n, self.splat(-LN2_HIGH), clamped);
        let r = self.fma(n, self.splat(-LN2_LOW), r);
        // Fitted here for the least relative error of 1 + r + r² p(r): 3e-9 before rounding.
        let p = self.splat(1.381_446_7e-3);
        let p = self.fma(p, r, self.splat(8.368_781e-3));
        let p = self.fma(p, r, self.splat(4.166_839_3e-2));
        let p = self.fma(p, r, self.splat(1.666_652e-1));
        let p = self.fma(p, r, self.splat(4.999_999_4e-1));
        let p = self.fma(self.mul(p, r), r, r);
        let e = self.scale_by_power(self.add(p, self.splat(1.0)), n);
        self.select_less(x, self.splat(SMALLEST_EXPONENT), self.splat(0.0), e)
    }

    /// `e^x` for `x <= 16`, as the softmax needs it: fewer operations than [`Lanes::exp`]. Within
    /// 1.5 units in the last place near 0 and 5 at the far end; 0 below -87, NaN stays NaN.
    #[inline(always)]
    fn exp_near(self, x: Self::V) -> Self::V {
        let n = self.round(self.mul(x, self.splat(std::f32::consts::LOG2_E)));
        let r = self.fma(n, self.splat(-std::f32::consts::LN_2), x);
        // The coefficients of `exp`, in one chain.
        let p = self.splat(1.381_446_7e-3);
        let p = self.fma(p, r, self.splat(8.368_781e-3));
        let p = self.fma(p, r, self.splat(4.166_839_3e-2));
        let p = self.fma(p, r, self.splat(1.666_652e-1));
        let p = self.fma(p, r, self.splat(4.999_999_4e-1));
        let p = self.fma(p, r, self.splat(1.0));
        let p = self.fma(p, r, self.splat(1.0));
        // Far out, -inf included, whatever was computed is replaced.
        self.select_less(x, self.splat(-87.0), self.splat(0.0), self.scale_down(p, n))
    }

    /// `tanh x` within a few units in the last place.
    #[inline(always)]
    fn tanh(self, x: Self::V) -> Self::V {
        let a = self.abs(x);
        // Large: 1 - 2 / (e^2a + 1). Small, where that would cancel: odd polynomial fitted here on
        // [0, 0.64] to a relative error of 6e-9.
        let e = self.exp(self.add(a, a));
        let one = self.splat(1.0);
        let large = self.sub(one, self.div(self.splat(2.0), self.add(e, one)));
        let z = self.mul(x, x);
        let p = self.splat(-5.590_941e-3);
        let p = self.fma(p, z, self.splat(2.053_875_3e-2));
        let p = self.fma(p, z, self.splat(-5.370_964e-2));
        let p = self.fma(p, z, self.splat(1.333_109_1e-1));
        let p = self.fma(p, z, self.splat(-3.333_327e-1));
        let small = self.fma(self.mul(p, z), x, x);
        self.select_less(a, self.splat(0.625), small, self.copy_sign(large, x))
    }
}

/// Rows of half-precision numbers most of which may be 0, and what is fetched meanwhile.
pub(crate) struct SparseRows {
    /// `[rows][words]` of 64 bits, one for each number; those beyond `width` are 0.
    pub bitmaps: *const u8,
    pub words: usize,
    /// The numbers that have a bit, one after another, valid up to `end`.
    pub numbers: *const u8,
    pub end: *const u8,
    /// `[rows][width]`
    pub to: *mut u8,
    pub rows: usize,
    /// A multiple of 16.
    pub width: usize,
    /// What is asked for while this is read, where that takes little time, and how many bytes of it a word.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code))]
    pub next: *const u8,
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code))]
    pub next_step: usize,
}

impl SparseRows {
    /// Calls `expand(bits, from, to, count)` for every word that has numbers, `count` of them.
    ///
    /// # Panics
    /// When there are more bits than numbers.
    ///
    /// # Safety
    /// `bitmaps` and `to` are valid for all rows, `numbers` up to `end`.
    #[inline(always)]
    unsafe fn each_word(&self, mut expand: impl FnMut(u64, *const u8, *mut u8, usize)) {
        let mut from = self.numbers;
        for row in 0..self.rows {
            for word in 0..self.words {
                // SAFETY: the caller vouches for the bitmaps.
                let bits = unsafe {
                    let at = self.bitmaps.add((row * self.words + word) * 8);
                    u64::from_le_bytes(*at.cast())
                };
                let first = row * self.width + word * 64;
                let count = (self.width - word * 64).min(64);
                let bytes = bits.count_ones() as usize * 2;
                assert!(
                    bytes <= self.end as usize - from as usize,
                    "a number for every bit"
                );
                expand(bits, from, self.to.wrapping_add(first * 2), count);
                from = from.wrapping_add(bytes);
            }
        }
    }
}

/// Below this, `e^x` is no normal number; every version returns 0 there.
pub(crate) const SMALLEST_EXPONENT: f32 = -87.336_54;

/// `e^x` with the same flush to 0 as [`Lanes::exp`].
pub(crate) fn exp_scalar(x: f32) -> f32 {
    if x < SMALLEST_EXPONENT { 0.0 } else { x.exp() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Function {
        Exp,
        ExpNear,
        Tanh,
    }

    struct Map<'a> {
        x: &'a mut [f32],
        function: Function,
    }

    impl Kernel for Map<'_> {
        type Output = ();

        fn scalar(self) {
            for x in self.x {
                *x = if self.function == Function::Tanh {
                    x.tanh()
                } else {
                    exp_scalar(*x)
                };
            }
        }

        #[inline(always)]
        fn lanes<L: Lanes>(self, l: L) {
            for chunk in self.x.chunks_mut(L::WIDTH) {
                let v = l.load_part(chunk);
                let v = match self.function {
                    Function::Exp => l.exp(v),
                    Function::ExpNear => l.exp_near(v),
                    Function::Tanh => l.tanh(v),
                };
                l.store_part(chunk, v);
            }
        }
    }

    fn ulps(a: f32, b: f64) -> f64 {
        let unit = (b.abs() as f32).max(f32::MIN_POSITIVE);
        (f64::from(a) - b).abs() / f64::from(f32::from_bits(unit.to_bits() + 1) - unit)
    }

    #[test]
    fn exp_and_tanh_are_accurate() {
        for isa in Isa::available() {
            let x = (0..200_000).map(|i| -86.9 + i as f32 * 0.000_878);
            let x: Vec<f32> = x
                .chain((0..20_000).map(|i| (i - 10_000) as f32 * 1.234e-4))
                .collect();
            for function in [Function::Exp, Function::ExpNear, Function::Tanh] {
                let mut y = x.clone();
                run(
                    isa,
                    Map {
                        x: &mut y,
                        function,
                    },
                );
                for (&x, &y) in x.iter().zip(&y) {
                    let wide = f64::from(x);
                    let (exact, allowed) = match function {
                        Function::Exp => (wide.exp(), 1.5),
                        Function::ExpNear if x > 16.0 => continue,
                        Function::ExpNear => (wide.exp(), 1.5 + wide.abs() / 25.0),
                        Function::Tanh => (wide.tanh(), 3.0),
                    };
                    let off = ulps(y, exact);
                    assert!(
                        off <= allowed,
                        "{isa} {function:?}({x}) = {y}, {off} units off"
                    );
                }
            }
        }
    }

    #[test]
    fn exp_at_the_edges() {
        for isa in Isa::available() {
            let mut x = [
                f32::NEG_INFINITY,
                0.0,
                -0.0,
                -1e30,
                1e30,
                f32::INFINITY,
                f32::NAN,
                88.7,
            ];
            run(
                isa,
                Map {
                    x: &mut x,
                    function: Function::Exp,
                },
            );
            assert_eq!(
                x[..6],
                [0.0, 1.0, 1.0, 0.0, f32::INFINITY, f32::INFINITY],
                "{isa}"
            );
            assert!(x[6].is_nan() && x[7].is_finite(), "{isa} {x:?}");
            let mut x = [f32::NEG_INFINITY, 0.0, -0.0, -1e30, -87.5, -104.0, f32::NAN];
            run(
                isa,
                Map {
                    x: &mut x,
                    function: Function::ExpNear,
                },
            );
            assert_eq!(x[..4], [0.0, 1.0, 1.0, 0.0], "{isa}");
            assert!(x[4] < 1e-37 && x[5] < 1e-37 && x[6].is_nan(), "{isa} {x:?}");
        }
    }
}
