//! Block bytes of a file → a panel.
//!
//! Eight codes at a time go from a row to its lane: their bits are moved in one register, and sixteen rows in turn fill each line
//! of the panel while it is in the nearest cache. The offsets of a format are those of its block, whose length is part of the
//! type, so that nothing is checked inside.

use super::layout::{BLOCK, LANES, Layout, SEGMENT};
use crate::format::{Format, iq4_xs_scales, q3_k_scales, scales_and_mins};

/// The codes of 32 elements of a row, unsigned and eight in a word: two groups, of which the first is in the lower half.
type Words = [u64; BLOCK / 8];

/// `byte` eight times.
const fn eight(byte: u8) -> u64 {
    u64::from_ne_bytes([byte; 8])
}

/// What a block of the file puts into the scale planes: the bytes of each 32 elements, in plane order, little endian.
type Scales = [[u8; 4]; SEGMENT];

/// How the block of a format, of `BYTES` bytes, is read.
trait Source<const BYTES: usize> {
    const FORMAT: Format;

    /// The codes of the 32 elements `b` of a block.
    fn words(block: &[u8; BYTES], b: usize) -> Words;

    /// The scales of each 32 elements of a block.
    fn scales(block: &[u8; BYTES]) -> Scales;

    /// The f16 factors of a block of 256 elements.
    fn factors(_block: &[u8; BYTES]) -> [[u8; 2]; 2] {
        [[0; 2]; 2]
    }
}

/// Packs sixteen rows of `blocks` times 32 elements, the bytes of which are as in the file.
pub(super) fn pack_blocks(format: Format, blocks: usize, rows: &[&[u8]; LANES], out: &mut [u8]) {
    let pack = match format {
        Format::F32 | Format::F16 | Format::BF16 => unreachable!("floats have no blocks"),
        Format::Q4_0 => pack::<18, Q4_0>,
        Format::Q4_1 => pack::<20, Q4_1>,
        Format::Q5_0 => pack::<22, Q5_0>,
        Format::Q5_1 => pack::<24, Q5_1>,
        Format::Q8_0 => pack::<34, Q8_0>,
        Format::IQ4_NL => pack::<18, IQ4_NL>,
        Format::Q2_K => pack::<84, Q2_K>,
        Format::Q3_K => pack::<110, Q3_K>,
        Format::Q4_K => pack::<144, Q4_K>,
        Format::Q5_K => pack::<176, Q5_K>,
        Format::Q6_K => pack::<210, Q6_K>,
        Format::IQ4_XS => pack::<136, IQ4_XS>,
    };
    pack(blocks, rows, out);
}

fn pack<const BYTES: usize, S: Source<BYTES>>(
    blocks: usize,
    rows: &[&[u8]; LANES],
    out: &mut [u8],
) {
    let layout = const { Layout::of(S::FORMAT).expect("only quantised formats have blocks") };
    let in_block = const { S::FORMAT.block_len() / BLOCK };
    const { assert!(S::FORMAT.block_bytes() == BYTES) };
    let rows: [&[[u8; BYTES]]; LANES] = std::array::from_fn(|lane| rows[lane].as_chunks().0);
    let mut rest = out;
    for first in (0..blocks).step_by(SEGMENT) {
        let count = SEGMENT.min(blocks - first);
        let (segment, after) = rest.split_at_mut(layout.segment_bytes(count));
        rest = after;
        let (head, codes) = segment.split_at_mut(layout.head_bytes(count));
        let (scale_plane, factor_plane) = head.split_at_mut(count * layout.scale_bytes());
        for b in 0..count {
            let codes = &mut codes[b * layout.code_bytes()..][..layout.code_bytes()];
            let (top, low) = codes.split_at_mut(layout.top_bytes());
            for (lane, row) in rows.iter().enumerate() {
                let words = S::words(&row[(first + b) / in_block], b % in_block);
                put_codes(top, layout.top_bits, lane, &upper(&words, &layout));
                put_codes(low, layout.low_bits, lane, &words);
            }
        }
        for b in (0..count).step_by(in_block) {
            for (lane, row) in rows.iter().enumerate() {
                let block = &row[(first + b) / in_block];
                for (i, scales) in S::scales(block).iter().enumerate().take(in_block) {
                    let plane = &mut scale_plane[(b + i) * layout.scale_bytes()..];
                    put_scales(&layout, &mut plane[..layout.scale_bytes()], lane, scales);
                }
                let plane = &mut factor_plane[..layout.factor_bytes()];
                for (at, factor) in S::factors(block).iter().enumerate() {
                    if at < layout.factor_bytes() / (2 * LANES) {
                        plane[2 * (at * LANES + lane)..][..2].copy_from_slice(factor);
                    }
                }
            }
        }
    }
}

/// The upper bits of codes.
#[inline(always)]
fn upper(words: &Words, layout: &Layout) -> Words {
    let mut upper = *words;
    for word in &mut upper {
        *word = *word >> layout.low_bits & eight(0xff >> layout.low_bits);
    }
    upper
}

/// Writes the lowest `bits` bits of a row's codes to its lane of a plane.
#[inline(always)]
fn put_codes(plane: &mut [u8], bits: usize, lane: usize, words: &Words) {
    let lines = plane.as_chunks_mut::<{ 4 * LANES }>().0;
    let mut put = |line: usize, word: u32| {
        lines[line][4 * lane..4 * lane + 4].copy_from_slice(&word.to_le_bytes());
    };
    match bits {
        0 => {}
        1 => {
            let mut all = 0;
            for (pair, word) in words.iter().enumerate() {
                all |= (word & eight(1)) << (2 * pair);
            }
            put(0, all as u32 | ((all >> 32) as u32) << 1);
        }
        2 => {
            let mut all = 0;
            for (field, word) in words.iter().enumerate() {
                all |= (word & eight(3)) << (2 * field);
            }
            put(0, all as u32);
            put(1, (all >> 32) as u32);
        }
        4 => {
            for pair in 0..2 {
                let both = words[pair] & eight(15) | (words[pair + 2] & eight(15)) << 4;
                put(2 * pair, both as u32);
                put(2 * pair + 1, (both >> 32) as u32);
            }
        }
        _ => {
            for (pair, &word) in words.iter().enumerate() {
                put(2 * pair, word as u32);
                put(2 * pair + 1, (word >> 32) as u32);
            }
        }
    }
}

/// Spreads one lane's scale bytes: f16 pairs stay together, single bytes go to one row of lanes each.
#[inline(always)]
fn put_scales(layout: &Layout, plane: &mut [u8], lane: usize, bytes: &[u8; 4]) {
    let width = match layout.scales {
        super::layout::Scales::Half
        | super::layout::Scales::HalfMin
        | super::layout::Scales::Rounded => 2,
        _ => 1,
    };
    let count = layout.scale_bytes() / LANES;
    for at in (0..count).step_by(width) {
        plane[at * LANES + width * lane..][..width].copy_from_slice(&bytes[at..at + width]);
    }
}

#[inline(always)]
fn each_pair(word: impl Fn(usize) -> u64) -> Words {
    let mut words = [0; BLOCK / 8];
    for (pair, target) in words.iter_mut().enumerate() {
        *target = word(pair);
    }
    words
}

#[inline(always)]
fn word<const BYTES: usize>(block: &[u8; BYTES], at: usize) -> u64 {
    let word = block[at..at + 8].first_chunk();
    u64::from_le_bytes(*word.expect("eight bytes are a word"))
}

/// 16 bytes from `at` on: element `j` low, element `j + 16` high.
#[inline(always)]
fn nibbles<const BYTES: usize>(block: &[u8; BYTES], at: usize) -> Words {
    each_pair(|pair| word(block, at + 8 * (pair % 2)) >> (4 * (pair / 2)) & eight(15))
}

/// Nibbles from `at` on, where two times 32 elements share 32 bytes.
#[inline(always)]
fn paired_nibbles<const BYTES: usize>(
    block: &[u8; BYTES],
    at: usize,
    b: usize,
    pair: usize,
) -> u64 {
    word(block, at + 32 * (b / 2) + 8 * pair) >> (4 * (b % 2)) & eight(15)
}

/// Adds bit `i` of the 32 bits at `at` as the fifth bit of element `i`.
#[inline(always)]
fn with_fifth_bits<const BYTES: usize>(block: &[u8; BYTES], at: usize, words: Words) -> Words {
    each_pair(|pair| {
        // Bit `i` alone in byte `i`, then as the highest bit of that byte.
        let bits = eight(block[at + pair]) & 0x8040_2010_0804_0201;
        let highest = (bits + eight(0x7f)) & eight(0x80);
        words[pair] | highest >> 3
    })
}

/// 64 bytes of two-bit fields from `at` on.
#[inline(always)]
fn two_bits<const BYTES: usize>(block: &[u8; BYTES], at: usize, b: usize, pair: usize) -> u64 {
    word(block, at + 32 * (b / 4) + 8 * pair) >> (2 * (b % 4)) & eight(3)
}

/// 32 bytes of bits from `at` on.
#[inline(always)]
fn one_bit<const BYTES: usize>(block: &[u8; BYTES], at: usize, b: usize, pair: usize) -> u64 {
    word(block, at + 8 * pair) >> b & eight(1)
}

/// The scales of a block of 32 elements that begins with `COUNT` bytes of them.
#[inline(always)]
fn leading<const BYTES: usize, const COUNT: usize>(block: &[u8; BYTES]) -> Scales {
    let mut scales = [[0; 4]; SEGMENT];
    scales[0][..COUNT].copy_from_slice(&block[..COUNT]);
    scales
}

/// The two bytes of an f16.
#[inline(always)]
fn half<const BYTES: usize>(block: &[u8; BYTES], at: usize) -> [u8; 2] {
    [block[at], block[at + 1]]
}

/// How a format's block is read, in one line each: its bytes, the codes of the 32 elements `b`, the scales, and the
/// factors where it has some.
macro_rules! source {
    ($name:ident, $bytes:literal, |$block:ident, $b:pat_param| $words:expr, $scales:expr $(, $factors:expr)?) => {
        #[allow(non_camel_case_types)] // The names that everyone knows them by.
        struct $name;

        impl Source<$bytes> for $name {
            const FORMAT: Format = Format::$name;

            #[inline(always)]
            fn words($block: &[u8; $bytes], $b: usize) -> Words {
                $words
            }

            #[inline(always)]
            fn scales(block: &[u8; $bytes]) -> Scales {
                $scales(block)
            }

            $(
                #[inline(always)]
                fn factors(block: &[u8; $bytes]) -> [[u8; 2]; 2] {
                    $factors(block)
                }
            )?
        }
    };
}

source!(Q4_0, 18, |block, _| nibbles(block, 2), leading::<18, 2>);
source!(Q4_1, 20, |block, _| nibbles(block, 4), leading::<20, 4>);
source!(
    Q5_0,
    22,
    |block, _| with_fifth_bits(block, 2, nibbles(block, 6)),
    leading::<22, 2>
);
source!(
    Q5_1,
    24,
    |block, _| with_fifth_bits(block, 4, nibbles(block, 8)),
    leading::<24, 4>
);
source!(
    Q8_0,
    34,
    |block, _| each_pair(|pair| word(block, 2 + 8 * pair) ^ eight(0x80)),
    leading::<34, 2>
);
source!(IQ4_NL, 18, |block, _| nibbles(block, 2), leading::<18, 2>);
source!(
    Q2_K,
    84,
    |block, b| each_pair(|pair| two_bits(block, 16, b, pair)),
    |block: &[u8; 84]| std::array::from_fn(|b| [block[2 * b], block[2 * b + 1], 0, 0]),
    |block| [half(block, 80), half(block, 82)]
);
source!(
    Q3_K,
    110,
    |block, b| each_pair(|pair| two_bits(block, 32, b, pair) | one_bit(block, 0, b, pair) << 2),
    |block: &[u8; 110]| {
        let small = q3_k_scales(&block[96..108]);
        std::array::from_fn(|b| [small[2 * b] as u8, small[2 * b + 1] as u8, 0, 0])
    },
    |block| [half(block, 108), [0; 2]]
);
source!(
    Q4_K,
    144,
    |block, b| each_pair(|pair| paired_nibbles(block, 16, b, pair)),
    |block: &[u8; 144]| scales_and_mins(&block[4..16]).map(|(scale, min)| [scale, min, 0, 0]),
    |block| [half(block, 0), half(block, 2)]
);
source!(
    Q5_K,
    176,
    |block, b| each_pair(|pair| {
        paired_nibbles(block, 48, b, pair) | one_bit(block, 16, b, pair) << 4
    }),
    |block: &[u8; 176]| scales_and_mins(&block[4..16]).map(|(scale, min)| [scale, min, 0, 0]),
    |block| [half(block, 0), half(block, 2)]
);
source!(
    Q6_K,
    210,
    |block, b| {
        let (half, j) = (b / 4, b % 4);
        each_pair(|pair| {
            let low = word(block, 64 * half + 32 * (j % 2) + 8 * pair) >> (4 * (j / 2));
            low & eight(15) | two_bits(block, 128, b, pair) << 4
        })
    },
    |block: &[u8; 210]| { std::array::from_fn(|b| [block[192 + 2 * b], block[193 + 2 * b], 0, 0]) },
    |block| [half(block, 208), [0; 2]]
);
source!(
    IQ4_XS,
    136,
    |block, b| nibbles(block, 8 + 16 * b),
    |block: &[u8; 136]| iq4_xs_scales(&block[2..8]).map(|scale| [scale as u8, 0, 0, 0]),
    |block| [half(block, 0), [0; 2]]
);
