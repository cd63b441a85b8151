//! What this machine can do at most, measured: the denominators of every share that is reported.
//!
//! Each figure is the best of several rounds, for other work on the machine only ever makes a
//! round slower. The loops do nothing but the operation in question, so no kernel can be faster.

use std::time::{Duration, Instant};

#[cfg(target_arch = "x86_64")]
use crate::attention::amx;
use crate::lanes::{self, Kernel, Lanes};
use crate::page::KvType;
use crate::{AlignedBytes, Isa, Pool};

/// How long each figure is measured for.
const MEASURE: Duration = Duration::from_millis(400);

/// Rounds each figure gets at least, however long they take.
const LEAST_ROUNDS: usize = 4;

/// Iterations of an arithmetic loop in one round: about a millisecond, so that on a busy machine
/// some rounds run undisturbed.
const STEPS: usize = 400_000;

/// How long what memory gives at the moment is measured for, each way of reading.
const MOMENT: Duration = Duration::from_millis(40);

/// Bytes it is measured on: more than caches hold.
const MOMENT_BYTES: usize = 256 << 20;

/// Bytes all threads together read in one round: more than the nearest caches hold, and a matter of
/// milliseconds.
const ROUND_BYTES: usize = 64 << 20;

/// Independent chains in an arithmetic loop: more than the latency times the throughput of any
/// multiply-add unit, and few enough for AVX2's 16 registers.
const CHAINS: usize = 12;

/// A machine's measured limits with some number of threads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Gigabytes (10⁹) a second read from a buffer of the size asked for.
    pub memory_gb_per_s: f64,
    /// 10¹² multiplications and additions a second of 8-bit integers summed to 32 bits.
    pub int8_tops: f64,
    /// 10⁹ multiplications and additions a second in single precision.
    pub f32_gflops: f64,
}

impl Limits {
    /// The higher of each figure of two measurements: other work on the machine, or on its memory,
    /// only ever lowers one.
    pub fn or_better(self, other: Limits) -> Limits {
        Limits {
            memory_gb_per_s: self.memory_gb_per_s.max(other.memory_gb_per_s),
            int8_tops: self.int8_tops.max(other.int8_tops),
            f32_gflops: self.f32_gflops.max(other.f32_gflops),
        }
    }
}

/// Measures with the threads of `pool`, reading a buffer of `buffer_bytes`: memory beyond the
/// caches needs 1 GiB or more. Takes two seconds.
pub fn measure(isa: Isa, pool: &Pool, buffer_bytes: usize) -> Limits {
    Limits {
        memory_gb_per_s: memory_bandwidth(isa, pool, buffer_bytes) / 1e9,
        int8_tops: int8_rate(isa, pool) / 1e12,
        f32_gflops: f32_rate(isa, pool) / 1e9,
    }
}

/// What a multiplication and addition of attention over keys or values of type `kv_type`, beside others of type
/// `beside`, takes of a processor: the time of so many of bytes, or of one in single precision where there is
/// `None`.
pub fn byte_products(isa: Isa, kv_type: KvType, beside: KvType) -> Option<usize> {
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Amx && amx::are_read(kv_type, beside) {
        return Some(amx::BYTE_PRODUCTS);
    }
    let _ = (isa, beside);
    kv_type.byte_products()
}

/// Gigabytes (10⁹) a second that the threads of `pool` read from memory at this moment: the mean of a tenth of a
/// second, not the best of it. Beside a piece of work, before it and after it, this says what memory gave that
/// work, where others read from it too and [`measure`] finds a better moment. Takes a fifth of a second and a
/// buffer of `buffer_bytes`, or of 256 MiB if that is less.
pub fn memory_at_present(isa: Isa, pool: &Pool, buffer_bytes: usize) -> f64 {
    memory_rate(isa, pool, buffer_bytes.min(MOMENT_BYTES), mean_rate) / 1e9
}

/// Bytes a second at best.
fn memory_bandwidth(isa: Isa, pool: &Pool, buffer_bytes: usize) -> f64 {
    memory_rate(isa, pool, buffer_bytes, best_rate)
}

/// Bytes a second, by `rate`, in the way of reading that gives most.
fn memory_rate(
    isa: Isa,
    pool: &Pool,
    buffer_bytes: usize,
    rate: impl Fn(f64, &mut dyn FnMut()) -> f64,
) -> f64 {
    // Rounds go through the buffer in turn, each a window with a part for each thread, in whole
    // units of the reading loop.
    let window = buffer_bytes.min(ROUND_BYTES);
    let part = (window / pool.threads())
        .next_multiple_of(STREAMS * READ_BYTES)
        .max(STREAMS * READ_BYTES);
    let window = part * pool.threads();
    let windows = (buffer_bytes / window).max(1);
    let mut buffer = AlignedBytes::zeroed(window * windows);
    // Untouched memory would all be one page of zeros.
    pool.for_each_chunk(&mut buffer, part, |_, part, _| part.fill(1));
    let mut next = 0;
    // Some processors read faster from one place, others from several, or with narrower registers.
    let narrower = Some(Isa::Avx2).filter(|narrower| isa > *narrower && narrower.is_available());
    let ways = [
        Some((isa, 1)),
        Some((isa, STREAMS)),
        narrower.map(|isa| (isa, 1)),
    ];
    let rates = ways.into_iter().flatten().map(|(isa, streams)| {
        rate(window as f64, &mut || {
            let window = &buffer[next * window..][..window];
            pool.run(pool.threads(), &|thread, _| {
                let bytes = &window[thread * part..][..part];
                std::hint::black_box(lanes::run(isa, Read { bytes, streams }));
            });
            next = (next + 1) % windows;
        })
    });
    rates.fold(0.0, f64::max)
}

/// Multiplications and additions a second.
fn f32_rate(isa: Isa, pool: &Pool) -> f64 {
    let width = match isa {
        Isa::Scalar => 1,
        Isa::Avx2 | Isa::AvxVnni | Isa::Neon | Isa::NeonDotprod | Isa::NeonI8mm => 8,
        Isa::Avx512 | Isa::Amx => 16,
    };
    let work = STEPS * CHAINS * width * 2 * pool.threads();
    best_rate(work as f64, &mut || {
        pool.run(pool.threads(), &|_, _| {
            std::hint::black_box(lanes::run(
                isa,
                MultiplyAdd {
                    seed: std::hint::black_box(0.5),
                },
            ));
        });
    })
}

/// Multiplications and additions a second.
fn int8_rate(isa: Isa, pool: &Pool) -> f64 {
    let width = match isa {
        Isa::Scalar => 1,
        Isa::Neon | Isa::NeonDotprod => 16,
        Isa::Avx2 | Isa::AvxVnni | Isa::NeonI8mm => 32,
        Isa::Avx512 => 64,
        Isa::Amx => 16 * 16 * 64,
    };
    let work = STEPS * CHAINS * width * 2 * pool.threads();
    best_rate(work as f64, &mut || {
        pool.run(pool.threads(), &|_, _| {
            std::hint::black_box(int8::products(isa, std::hint::black_box(3)));
        });
    })
}

/// The mean of several rounds of `work` units each, in units a second.
fn mean_rate(work: f64, round: &mut dyn FnMut()) -> f64 {
    let start = Instant::now();
    let mut done = 0.0;
    while done == 0.0 || start.elapsed() < MOMENT {
        round();
        done += work;
    }
    done / start.elapsed().as_secs_f64()
}

/// The best of several rounds of `work` units each, in units a second.
fn best_rate(work: f64, round: &mut dyn FnMut()) -> f64 {
    let start = Instant::now();
    let mut best = Duration::MAX;
    let mut rounds = 0;
    while rounds < LEAST_ROUNDS || start.elapsed() < MEASURE {
        let began = Instant::now();
        round();
        best = best.min(began.elapsed());
        rounds += 1;
    }
    work / best.as_secs_f64()
}

/// What the reading loop takes at once: four lines of cache.
const READ_BYTES: usize = 256;
/// Places from which it reads in turn.
const STREAMS: usize = 4;
/// How far ahead it asks for what it reads.
const AHEAD: usize = 2048;

/// Reads all bytes, from the beginnings of so many parts on, and sums them up as floats.
struct Read<'a> {
    bytes: &'a [u8],
    streams: usize,
}

impl Kernel for Read<'_> {
    type Output = f32;

    fn scalar(self) -> f32 {
        let mut sums = [0u64; 8];
        for block in self.bytes.chunks_exact(64) {
            for (sum, word) in sums.iter_mut().zip(block.chunks_exact(8)) {
                let word = word.try_into().map_or(0, u64::from_le_bytes);
                *sum = sum.wrapping_add(word);
            }
        }
        sums.iter().fold(0u64, |a, &b| a.wrapping_add(b)) as f32
    }

    #[inline(always)]
    fn lanes<L: Lanes>(self, l: L) -> f32 {
        let mut sums = [l.splat(0.0); 4];
        let stream = self.bytes.len() / self.streams;
        for at in (0..stream).step_by(READ_BYTES) {
            for start in (0..self.streams).map(|i| i * stream) {
                let block = &self.bytes[start + at..][..READ_BYTES];
                if self.streams > 1 {
                    for line in block.chunks_exact(64) {
                        l.prefetch(line.as_ptr().wrapping_add(AHEAD));
                    }
                }
                for (i, vector) in block.chunks_exact(4 * L::WIDTH).enumerate() {
                    // SAFETY: the chunk holds a whole vector.
                    sums[i % 4] = l.add(sums[i % 4], unsafe { l.load_ptr(vector.as_ptr().cast()) });
                }
            }
        }
        let sum = sums.into_iter().reduce(|a, b| l.add(a, b));
        sum.map_or(0.0, |sum| l.reduce_add(sum))
    }
}

/// Independent chains of multiply-adds in registers.
struct MultiplyAdd {
    seed: f32,
}

impl Kernel for MultiplyAdd {
    type Output = f32;

    fn scalar(self) -> f32 {
        let mut chains = [self.seed; CHAINS];
        for _ in 0..STEPS {
            chains
                .iter_mut()
                .for_each(|x| *x = *x * self.seed + self.seed);
        }
        chains.iter().sum()
    }

    #[inline(always)]
    fn lanes<L: Lanes>(self, l: L) -> f32 {
        let seed = l.splat(self.seed);
        let mut chains = [seed; CHAINS];
        for _ in 0..STEPS {
            for x in &mut chains {
                *x = l.fma(*x, seed, seed);
            }
        }
        let sum = chains.into_iter().reduce(|a, b| l.add(a, b));
        sum.map_or(0.0, |sum| l.reduce_add(sum))
    }
}

/// Loops of 8-bit products, one for each instruction set.
mod int8 {
    use super::{CHAINS, STEPS};
    use crate::Isa;

    /// `STEPS * CHAINS` vectors of products.
    pub(super) fn products(isa: Isa, seed: i8) -> i32 {
        match isa {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the processor was just asked whether it has the features.
            Isa::Avx512 if isa.is_available() => unsafe { avx512(seed) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Amx if isa.is_available() => unsafe { tiles() },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the processor was just asked whether it has the features.
            Isa::Avx2 if isa.is_available() => unsafe { avx2(seed) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the processor was just asked whether it has the features.
            Isa::AvxVnni if isa.is_available() => unsafe { avx_vnni(seed) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: as above.
            Isa::Neon if isa.is_available() => unsafe { neon(seed) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: as above.
            Isa::NeonDotprod if isa.is_available() => unsafe { neon_dotprod(seed) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: as above.
            Isa::NeonI8mm if isa.is_available() => unsafe { neon_i8mm(seed) },
            _ => scalar(seed),
        }
    }

    fn scalar(seed: i8) -> i32 {
        let mut chains = [i32::from(seed); CHAINS];
        for _ in 0..STEPS {
            for x in &mut chains {
                *x = x.wrapping_add(i32::from(*x as i8) * i32::from(seed));
            }
        }
        chains.iter().fold(0, |a, &b| a.wrapping_add(b))
    }

    /// # Safety
    /// The processor offers AVX-512 F and VNNI.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512vnni")]
    unsafe fn avx512(seed: i8) -> i32 {
        use std::arch::x86_64::*;
        let seed = _mm512_set1_epi8(seed);
        let mut chains = [seed; CHAINS];
        for _ in 0..STEPS {
            for x in &mut chains {
                *x = _mm512_dpbusd_epi32(*x, seed, seed);
            }
        }
        let sum = chains.into_iter().fold(seed, |a, b| _mm512_add_epi32(a, b));
        _mm512_reduce_add_epi32(sum)
    }

    /// Products of whole tiles of zeros.
    ///
    /// # Safety
    /// The processor offers [`Isa::Amx`].
    #[cfg(target_arch = "x86_64")]
    unsafe fn tiles() -> i32 {
        // SAFETY: the caller's promise.
        unsafe { crate::amx::whole_products(STEPS * CHAINS) };
        0
    }

    /// # Safety
    /// The processor offers AVX2 and AVX-VNNI.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,avxvnni")]
    unsafe fn avx_vnni(seed: i8) -> i32 {
        use std::arch::x86_64::*;
        let seed = _mm256_set1_epi8(seed);
        let mut chains = [seed; CHAINS];
        for _ in 0..STEPS {
            for x in &mut chains {
                *x = _mm256_dpbusd_avx_epi32(*x, seed, seed);
            }
        }
        let sum = chains.into_iter().fold(seed, |a, b| _mm256_add_epi32(a, b));
        _mm256_extract_epi32::<0>(sum)
    }

    /// Products of pairs in 16 bits and their sum: what every product of bytes needs here, and
    /// less than one that sums to 32 bits in the end.
    ///
    /// # Safety
    /// The processor offers AVX2.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    unsafe fn avx2(seed: i8) -> i32 {
        use std::arch::x86_64::*;
        let seed = _mm256_set1_epi8(seed);
        let mut chains = [seed; CHAINS];
        for _ in 0..STEPS {
            for x in &mut chains {
                *x = _mm256_add_epi16(*x, _mm256_maddubs_epi16(*x, seed));
            }
        }
        let sum = chains.into_iter().fold(seed, |a, b| _mm256_add_epi16(a, b));
        _mm256_extract_epi32::<0>(sum)
    }

    /// Products of two halves in 16 bits and their sum in 32.
    ///
    /// # Safety
    /// The processor offers NEON.
    #[cfg(target_arch = "aarch64")]
    #[target_feature(enable = "neon")]
    unsafe fn neon(seed: i8) -> i32 {
        use std::arch::aarch64::*;
        let seed = vdupq_n_s8(seed);
        let mut chains = [vreinterpretq_s32_s8(seed); CHAINS];
        for _ in 0..STEPS {
            for x in &mut chains {
                let codes = vreinterpretq_s8_s32(*x);
                let products = vmull_s8(vget_low_s8(codes), vget_low_s8(seed));
                *x = vpadalq_s16(*x, vmlal_high_s8(products, codes, seed));
            }
        }
        vaddvq_s32(chains.into_iter().fold(chains[0], |a, b| vaddq_s32(a, b)))
    }

    /// A loop of one instruction that adds products of `seed` to `x`.
    #[cfg(target_arch = "aarch64")]
    macro_rules! neon_loop {
        ($name:ident, $features:literal, $instruction:literal) => {
            /// # Safety
            /// The processor offers the features.
            #[cfg(target_arch = "aarch64")]
            #[target_feature(enable = $features)]
            unsafe fn $name(seed: i8) -> i32 {
                use std::arch::aarch64::*;
                let seed = vdupq_n_s8(seed);
                let mut chains = [vreinterpretq_s32_s8(seed); CHAINS];
                for _ in 0..STEPS {
                    for x in &mut chains {
                        // SAFETY: register arithmetic.
                        unsafe {
                            std::arch::asm!(
                                $instruction,
                                x = inout(vreg) *x,
                                seed = in(vreg) seed,
                                options(pure, nomem, nostack, preserves_flags)
                            );
                        }
                    }
                }
                vaddvq_s32(chains.into_iter().fold(chains[0], |a, b| vaddq_s32(a, b)))
            }
        };
    }

    #[cfg(target_arch = "aarch64")]
    neon_loop!(
        neon_dotprod,
        "neon,dotprod",
        "sdot {x:v}.4s, {seed:v}.16b, {seed:v}.16b"
    );
    #[cfg(target_arch = "aarch64")]
    neon_loop!(
        neon_i8mm,
        "neon,i8mm",
        "smmla {x:v}.4s, {seed:v}.16b, {seed:v}.16b"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_numbers_above_zero() {
        // How large they are depends on what else the machine does, or emulates.
        let is_rate = |rate: f64| rate.is_finite() && rate > 0.0;
        let pool = Pool::new(2);
        for isa in [Isa::Scalar, Isa::best()] {
            assert!(is_rate(f32_rate(isa, &pool)) && is_rate(int8_rate(isa, &pool)));
        }
        // An odd size, and less than a round of the loop.
        for bytes in [0, 5 << 20] {
            assert!(is_rate(memory_bandwidth(Isa::best(), &pool, bytes)));
            assert!(is_rate(memory_at_present(Isa::best(), &pool, bytes)));
        }
    }
}
