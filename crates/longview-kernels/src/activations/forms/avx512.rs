//! The same with AVX-512: four blocks at a time where there are so many, one otherwise.

use std::arch::x86_64::*;

use super::{BLOCK, Codes, Grain, Place, ROW_RECORD};

/// Rows of a lot, and blocks, that are written together.
const FOUR: usize = 4;

/// Writes the records of a lot of four rows, or of one, if they are there and their blocks come in fours.
/// Returns whether it did.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
pub(super) fn quantize_lot(grain: Grain, x: &[f32], k: usize, lot: usize, out: &mut [u8]) -> bool {
    if x.len() != lot * k {
        return false;
    }
    let elements = grain.elements();
    match lot {
        FOUR if k.is_multiple_of(elements) => {
            let (a, rest) = x.split_at(k);
            let (b, rest) = rest.split_at(k);
            let (c, d) = rest.split_at(k);
            let rows = [a, b, c, d].map(|row| row.as_chunks::<BLOCK>().0);
            let (records, _) = out.as_chunks_mut::<{ FOUR * ROW_RECORD }>();
            let blocks = elements / BLOCK;
            for (at, records) in records.chunks_exact_mut(blocks).enumerate() {
                let segment = rows.map(|row| &row[at * blocks..][..blocks]);
                let scales = Scales::of(segment.map(|blocks| largest_of(blocks)), grain);
                for (b, record) in records.iter_mut().enumerate() {
                    write_together(segment.map(|blocks| &blocks[b]), &scales, record);
                }
            }
            true
        }
        1 if k.is_multiple_of(elements.max(FOUR * BLOCK)) => {
            let (blocks, _) = x.as_chunks::<BLOCK>();
            let (records, _) = out.as_chunks_mut::<ROW_RECORD>();
            let together = elements.max(FOUR * BLOCK) / BLOCK;
            let lots = blocks.chunks_exact(together);
            for (blocks, records) in lots.zip(records.chunks_exact_mut(together)) {
                let most = match grain {
                    Grain::Block => std::array::from_fn(|b| largest_of(&blocks[b..=b])),
                    Grain::Segment => [largest_of(blocks); FOUR],
                };
                let scales = Scales::of(most, grain);
                let (fours, _) = blocks.as_chunks::<FOUR>();
                let (records, _) = records.as_chunks_mut::<FOUR>();
                for (four, records) in fours.iter().zip(records) {
                    write_apart(four.each_ref(), &scales, records);
                }
            }
            true
        }
        _ => false,
    }
}

/// The scales of four blocks, and what brings their numbers to codes.
struct Scales {
    scales: __m128,
    inverses: [f32; FOUR],
}

impl Scales {
    /// Of blocks whose largest magnitudes are among these bits, to the bit what
    /// [`super::scale_and_inverse`] makes.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
    fn of(most: [__m512i; FOUR], grain: Grain) -> Scales {
        // Four registers become one whose 128 bits hold a number of each, and those one.
        let max = |a, b| _mm512_max_epu32(a, b);
        let pair = |a, b| max(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let (low, high) = (pair(most[0], most[1]), pair(most[2], most[3]));
        let all = max(
            _mm512_unpacklo_epi64(low, high),
            _mm512_unpackhi_epi64(low, high),
        );
        let all = max(all, _mm512_shuffle_i32x4::<0b01_00_11_10>(all, all));
        let all = max(all, _mm512_shuffle_i32x4::<0b10_11_00_01>(all, all));
        let bits = _mm512_castsi512_si128(all);

        let spoilt = _mm_cmpge_epu32_mask(bits, _mm_set1_epi32(0x7f80_0000));
        let some = _mm_cmpge_epu32_mask(bits, _mm_set1_epi32(7 << 23)) & !spoilt;
        let largest = _mm_castsi128_ps(bits);
        let inverses = _mm_maskz_div_ps(some, _mm_set1_ps(127.0), largest);
        let scales = match grain {
            Grain::Block => {
                let scale = _mm_castps_si128(_mm_div_ps(largest, _mm_set1_ps(127.0)));
                let even = _mm_and_si128(_mm_srli_epi32::<13>(scale), _mm_set1_epi32(1));
                let scale = _mm_add_epi32(scale, _mm_add_epi32(even, _mm_set1_epi32(0xfff)));
                let scale = _mm_and_si128(scale, _mm_set1_epi32(!0x1fff));
                _mm_maskz_mov_ps(some, _mm_castsi128_ps(scale))
            }
            Grain::Segment => _mm_maskz_div_ps(some, _mm_set1_ps(1.0), inverses),
        };
        let scales = _mm_mask_mov_ps(scales, spoilt, _mm_set1_ps(f32::NAN));
        let mut out = [0.0; FOUR];
        // SAFETY: room for four numbers.
        unsafe { _mm_storeu_ps(out.as_mut_ptr(), inverses) };
        Scales {
            scales,
            inverses: out,
        }
    }
}

/// Sixteen numbers of which one is the largest magnitude of the blocks, as bits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
fn largest_of(blocks: &[[f32; BLOCK]]) -> __m512i {
    let mut most = [_mm512_setzero_si512(); 2];
    for block in blocks {
        for (half, most) in most.iter_mut().enumerate() {
            // SAFETY: a half of the block.
            let x = unsafe { _mm512_loadu_si512(block.as_ptr().add(16 * half).cast()) };
            let magnitude = _mm512_and_si512(x, _mm512_set1_epi32(0x7fff_ffff));
            *most = _mm512_max_epu32(*most, magnitude);
        }
    }
    _mm512_max_epu32(most[0], most[1])
}

/// Writes the record that four rows share.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
fn write_together(
    blocks: [&[f32; BLOCK]; FOUR],
    scales: &Scales,
    record: &mut [u8; FOUR * ROW_RECORD],
) {
    let (codes, fields) = codes_and_fields(blocks, scales);
    let to = record.as_mut_ptr();
    // SAFETY: the record is 128 bytes of codes and 64 of fields.
    unsafe {
        _mm512_storeu_si512(to.cast(), codes[0]);
        _mm512_storeu_si512(to.add(64).cast(), codes[1]);
        _mm512_storeu_si512(to.add(128).cast(), fields);
    }
}

/// Writes the records of four blocks of one row.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
fn write_apart(
    blocks: [&[f32; BLOCK]; FOUR],
    scales: &Scales,
    records: &mut [[u8; ROW_RECORD]; FOUR],
) {
    let (codes, fields) = codes_and_fields(blocks, scales);
    let by_block = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    let fields = _mm512_permutexvar_epi32(by_block, fields);
    let halves = [
        _mm512_castsi512_si256(codes[0]),
        _mm512_extracti64x4_epi64::<1>(codes[0]),
        _mm512_castsi512_si256(codes[1]),
        _mm512_extracti64x4_epi64::<1>(codes[1]),
    ];
    let fields = [
        _mm512_castsi512_si128(fields),
        _mm512_extracti32x4_epi32::<1>(fields),
        _mm512_extracti32x4_epi32::<2>(fields),
        _mm512_extracti32x4_epi32::<3>(fields),
    ];
    for ((record, codes), fields) in records.iter_mut().zip(halves).zip(fields) {
        let to = record.as_mut_ptr();
        // SAFETY: a record is 32 bytes of codes and 16 of fields.
        unsafe {
            _mm256_storeu_si256(to.cast(), codes);
            _mm_storeu_si128(to.add(BLOCK).cast(), fields);
        }
    }
}

/// The codes of four blocks, one after the other, and `[field][block]` of scales, −128 Σ codes, the same of
/// the first half, and Σ codes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
fn codes_and_fields(blocks: [&[f32; BLOCK]; FOUR], scales: &Scales) -> ([__m512i; 2], __m512i) {
    // Infinities and NaNs of a spoilt block would have codes of their own.
    let whole = |at: usize| {
        let inverse = scales.inverses[at];
        let some = if inverse == 0.0 { 0 } else { !0 };
        let half = |half: usize| {
            // SAFETY: a half of the block.
            let x = unsafe { _mm512_loadu_ps(blocks[at].as_ptr().add(16 * half)) };
            _mm512_cvtps_epi32(_mm512_maskz_mul_ps(some, x, _mm512_set1_ps(inverse)))
        };
        // In each 128 bits four codes of one half and four of the other.
        _mm512_packs_epi32(half(0), half(1))
    };
    let fours = [
        _mm512_packs_epi16(whole(0), whole(1)),
        _mm512_packs_epi16(whole(2), whole(3)),
    ];
    let in_order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    let codes = fours.map(|codes| _mm512_permutexvar_epi32(in_order, codes));

    let ones = _mm512_set1_epi8(1);
    let sums = fours.map(|codes| _mm512_dpbusd_epi32(_mm512_setzero_si512(), ones, codes));
    // Σ of the halves of blocks 0 and 1 in the first 128 bits, of blocks 2 and 3 in the third.
    let sums = _mm512_add_epi32(
        _mm512_shuffle_i32x4::<0b01_00_01_00>(sums[0], sums[1]),
        _mm512_shuffle_i32x4::<0b11_10_11_10>(sums[0], sums[1]),
    );
    let sums = _mm512_add_epi32(sums, _mm512_shuffle_i32x4::<0b10_11_00_01>(sums, sums));
    let first = _mm512_setr_epi32(0, 2, 8, 10, 0, 2, 8, 10, 0, 2, 8, 10, 0, 2, 8, 10);
    let second = _mm512_setr_epi32(1, 3, 9, 11, 1, 3, 9, 11, 1, 3, 9, 11, 1, 3, 9, 11);
    // The two fields that both halves count for.
    const ALL: __mmask16 = 0xf0f0;
    let sums = _mm512_add_epi32(
        _mm512_permutexvar_epi32(first, sums),
        _mm512_maskz_permutexvar_epi32(ALL, second, sums),
    );
    let negated = _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32::<7>(sums));
    let floats = _mm512_castps_si512(_mm512_cvtepi32_ps(sums));
    let fields = _mm512_mask_mov_epi32(negated, 0xf000, floats);
    let scales = _mm512_castps_si512(_mm512_broadcast_f32x4(scales.scales));
    (codes, _mm512_mask_mov_epi32(fields, 0x000f, scales))
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
pub(super) fn quantize_row(values: &[f32], place: Place, out: &mut [u8]) {
    // SAFETY: this function has the features.
    let largest = |block: &[f32; BLOCK]| unsafe { largest(block) };
    // SAFETY: as above.
    let codes = |block: &[f32; BLOCK], inverse: f32| unsafe { codes(block, inverse) };
    super::quantize_row(values, place, out, largest, codes);
}

/// # Safety
/// The caller has the features of `quantize_row` enabled.
#[inline(always)]
unsafe fn largest(block: &[f32; BLOCK]) -> u32 {
    // SAFETY: loads of the block's two halves.
    unsafe {
        let magnitude = |at: usize| {
            let x = _mm512_loadu_si512(block.as_ptr().add(at).cast());
            _mm512_and_si512(x, _mm512_set1_epi32(0x7fff_ffff))
        };
        _mm512_reduce_max_epu32(_mm512_max_epu32(magnitude(0), magnitude(16)))
    }
}

/// # Safety
/// The caller has the features of `quantize_row` enabled.
#[inline(always)]
unsafe fn codes(block: &[f32; BLOCK], inverse: f32) -> Codes {
    // SAFETY: loads of the block's two halves, a store of its codes.
    unsafe {
        let code = |at: usize| {
            let x = _mm512_loadu_ps(block.as_ptr().add(at));
            let scaled = _mm512_mul_ps(x, _mm512_set1_ps(inverse));
            _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(scaled))
        };
        let codes = _mm256_set_m128i(code(16), code(0));
        // Sums of absolute differences add bytes without sign: codes offset by 128.
        let offset = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
        let sums = _mm256_sad_epu8(offset, _mm256_setzero_si256());
        let sums = _mm256_add_epi64(sums, _mm256_unpackhi_epi64(sums, sums));
        let sum = |half: __m128i| _mm_cvtsi128_si32(half) - 128 * 16;
        let sums = [
            sum(_mm256_castsi256_si128(sums)),
            sum(_mm256_extracti128_si256::<1>(sums)),
        ];
        let mut bytes = [0; BLOCK];
        _mm256_storeu_si256(bytes.as_mut_ptr().cast(), codes);
        Codes { codes: bytes, sums }
    }
}
