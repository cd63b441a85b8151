//! The numeric forms of stored keys and values.
//!
//! Floats stand for themselves. In the quantised forms every token's channels are cut into blocks of
//! [`QUANT_BLOCK`], counted from channel 0, and each block has a scale of its own, so that a token
//! can be appended without touching the others and an outlier coarsens 31 neighbours at most. A
//! scale is half precision, rounded up, so that codes never overflow:
//!
//! | form | stored number | scale `s` of a block | error of a number at most |
//! |---|---|---|---|
//! | q8 | `s · code`, codes −127..127 | largest magnitude ÷ 127 | `s / 2`: 0.4 % of the block's largest |
//! | q4 | `s · (code − 7.5)`, codes 0..15 | largest magnitude ÷ 7.5 | `s / 2`: 6.7 % of the block's largest |
//!
//! Two more hold the same codes and scales, and so the same numbers, as q8 and q4, but lie as products of
//! bytes read them (`quads`): *dotted* forms. Attention multiplies their codes with whole numbers, which
//! queries and weights are rounded to.
//!
//! Forms that are made of a whole page at a time, kivi and sparse, are described in `whole`.
//!
//! Numbers beyond ±65504 become ±65504 first. A block that holds a NaN becomes NaN whole: it is not
//! hidden.

use half::{bf16, f16};

use super::quads::CodeBits;
use super::whole::{Kivi, KiviBits, KiviGroup, KiviQueries, Sparse};

/// Channels of a token that share one scale in the quantised forms.
pub const QUANT_BLOCK: usize = 32;

/// Why rows of some forms cannot be read by number.
const NO_ROWS: &str = "pages in which four numbers lie together have no rows of numbers";

/// Bytes of a scale.
pub(crate) const SCALE_BYTES: usize = 2;

/// What numbers of half precision and of the quantised forms are limited to.
pub(crate) const LARGEST_F16: f32 = 65504.0;

/// The middle of the codes 0..15: a code of q4 stands for `code - Q4_MIDDLE` scales.
pub(crate) const Q4_MIDDLE: f32 = 7.5;

/// Numbers of a row that lie in the same 16 bytes of nibbles: the first 16 in the low halves of the
/// bytes, the next 16 in the high ones.
const NIBBLE_RUN: usize = 32;

/// The numeric form in which keys or values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KvType {
    /// Single precision.
    F32,
    /// Half precision, rounded to nearest even; numbers beyond its range become its largest finite
    /// number, so that one outlier cannot turn a whole context into NaN.
    F16,
    /// The upper half of single precision, rounded to nearest even: the range of f32 with three
    /// digits.
    BF16,
    /// 8 bits a number and a scale for every 32 channels of a token: 8.5 bits.
    Q8,
    /// 4 bits a number and a scale for every 32 channels of a token: 4.5 bits.
    Q4,
    /// The numbers of [`KvType::Q8`] or [`KvType::Q4`], read in whole numbers.
    Dotted(Dotted),
    /// 4 or 2 bits a number: keys with a scale and a middle for every group of tokens of a channel,
    /// values with both for every 32 channels of a token. Made of whole pages.
    Kivi(Kivi),
    /// The largest numbers of every token in half precision, and where they are. Made of whole
    /// pages.
    Sparse(Sparse),
}

/// How numbers that are read in whole numbers are stored, and how they are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Dotted {
    /// Bits of a code.
    pub bits: DottedBits,
    /// What attention rounds queries and weights to; says nothing of what is stored.
    pub queries: QueryBits,
}

/// Bits of a code of [`Dotted`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DottedBits {
    /// The codes of q8.
    Eight,
    /// The codes of q4.
    Four,
}

/// What factors that are multiplied with codes are rounded to: queries, and weights times the scales of
/// their values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QueryBits {
    /// 16 bits of the largest of a block of a query, or of a page's weights.
    Sixteen,
    /// 8 bits of it: half the arithmetic.
    Eight,
}

impl Dotted {
    /// How its codes lie.
    pub(crate) fn codes(self) -> CodeBits {
        match self.bits {
            DottedBits::Eight => CodeBits::Eight,
            DottedBits::Four => CodeBits::Four,
        }
    }

    /// The form that holds the same numbers row by row.
    pub(crate) fn numbers(self) -> KvType {
        match self.bits {
            DottedBits::Eight => KvType::Q8,
            DottedBits::Four => KvType::Q4,
        }
    }

    /// What stands in a page for a code of [`Dotted::numbers`].
    #[inline]
    pub(crate) fn stored(self, code: f32) -> u8 {
        match self.bits {
            DottedBits::Eight => (code + CodeBits::Eight.middle()) as u8,
            DottedBits::Four => code as u8,
        }
    }
}

impl QueryBits {
    /// The largest whole number.
    pub(crate) fn limit(self) -> f32 {
        match self {
            // Both bytes are signed: 127 · 256 + 127.
            QueryBits::Sixteen => 32_639.0,
            QueryBits::Eight => 127.0,
        }
    }
}

impl KvType {
    /// Forms that are written token by token, of dotted ones some of each kind.
    pub const ALL: [KvType; 7] = [
        KvType::F32,
        KvType::F16,
        KvType::BF16,
        KvType::Q8,
        KvType::Q4,
        KvType::dotted(DottedBits::Eight, QueryBits::Sixteen),
        KvType::dotted(DottedBits::Four, QueryBits::Eight),
    ];

    /// Every dotted form.
    pub const DOTTED: [KvType; 4] = [
        KvType::dotted(DottedBits::Eight, QueryBits::Sixteen),
        KvType::dotted(DottedBits::Eight, QueryBits::Eight),
        KvType::dotted(DottedBits::Four, QueryBits::Sixteen),
        KvType::dotted(DottedBits::Four, QueryBits::Eight),
    ];

    /// Forms that are made of whole pages, some of each kind.
    pub const WHOLE: [KvType; 6] = [
        KvType::kivi(KiviBits::Four, KiviGroup::Tokens32),
        KvType::kivi(KiviBits::Four, KiviGroup::Tokens64),
        KvType::kivi(KiviBits::Two, KiviGroup::Tokens32),
        KvType::Sparse(Sparse { percent: 50 }),
        KvType::Sparse(Sparse { percent: 70 }),
        KvType::kivi(KiviBits::Four, KiviGroup::Tokens32).with_queries(KiviQueries::Int8),
    ];

    /// The codes of q8 or q4, read with queries of so many bits.
    pub const fn dotted(bits: DottedBits, queries: QueryBits) -> KvType {
        KvType::Dotted(Dotted { bits, queries })
    }

    /// Kivi with so many bits, and keys with a scale for so many tokens.
    pub const fn kivi(bits: KiviBits, group: KiviGroup) -> KvType {
        KvType::Kivi(Kivi {
            bits,
            group,
            queries: KiviQueries::Float,
        })
    }

    /// The same read with queries of this kind, where it is kivi.
    pub const fn with_queries(self, queries: KiviQueries) -> KvType {
        match self {
            KvType::Kivi(kivi) => KvType::Kivi(Kivi { queries, ..kivi }),
            other => other,
        }
    }

    /// Products of bytes that attention makes for one of its numbers, where it multiplies pages of this form in
    /// whole numbers and not in floats.
    pub fn byte_products(self) -> Option<usize> {
        let queries = match self {
            KvType::Dotted(dotted) => dotted.queries,
            KvType::Kivi(kivi) => kivi.queries.bits(),
            _ => return None,
        };
        Some(match queries {
            QueryBits::Eight => 1,
            QueryBits::Sixteen => 2,
        })
    }

    /// Whether it is made of whole pages, with [`pack_page`](super::pack_page), rather than written
    /// token by token.
    pub fn is_whole(self) -> bool {
        matches!(self, KvType::Kivi(_) | KvType::Sparse(_))
    }

    /// Bytes of a row of `width` numbers, scales not counted; of forms that do not lie in rows once they
    /// are f32.
    #[inline(always)]
    pub(crate) fn row_bytes(self, width: usize) -> usize {
        match self {
            KvType::F32 => width * 4,
            KvType::F16 | KvType::BF16 => width * 2,
            KvType::Q8 => width,
            KvType::Q4 => width.div_ceil(NIBBLE_RUN) * NIBBLE_RUN / 2,
            KvType::Dotted(_) | KvType::Kivi(_) | KvType::Sparse(_) => width * 4,
        }
    }

    /// The scales a token of `channels` channels has.
    pub(crate) fn scales(self, channels: usize) -> usize {
        match self {
            KvType::F32 | KvType::F16 | KvType::BF16 | KvType::Sparse(_) => 0,
            KvType::Q8 | KvType::Q4 | KvType::Dotted(_) | KvType::Kivi(_) => {
                channels.div_ceil(QUANT_BLOCK)
            }
        }
    }

    /// Number `at` of a row, in scales where the form has them.
    pub(crate) fn get(self, row: &[u8], at: usize) -> f32 {
        match self {
            KvType::F32 => {
                let b = &row[at * 4..][..4];
                f32::from_le_bytes([b[0], b[1], b[2], b[3]])
            }
            KvType::F16 => f16::from_le_bytes([row[at * 2], row[at * 2 + 1]]).to_f32(),
            KvType::BF16 => bf16::from_le_bytes([row[at * 2], row[at * 2 + 1]]).to_f32(),
            KvType::Q8 => f32::from(row[at] as i8),
            KvType::Q4 => {
                let (byte, shift) = nibble(at);
                f32::from(row[byte] >> shift & 15) - Q4_MIDDLE
            }
            KvType::Dotted(_) | KvType::Kivi(_) | KvType::Sparse(_) => unreachable!("{NO_ROWS}"),
        }
    }

    /// Writes number `at` of a row: a float, or what [`Codes`] made of one.
    #[inline(always)]
    pub(crate) fn put(self, row: &mut [u8], at: usize, x: f32) {
        match self {
            KvType::F32 => row[at * 4..][..4].copy_from_slice(&x.to_le_bytes()),
            KvType::F16 => {
                let half = f16::from_f32(x.clamp(-LARGEST_F16, LARGEST_F16));
                row[at * 2..][..2].copy_from_slice(&half.to_le_bytes());
            }
            KvType::BF16 => {
                row[at * 2..][..2].copy_from_slice(&bf16::from_f32(x).to_le_bytes());
            }
            KvType::Q8 => row[at] = x as i8 as u8,
            KvType::Q4 => {
                let (byte, shift) = nibble(at);
                row[byte] = row[byte] & !(15 << shift) | (x as u8) << shift;
            }
            KvType::Dotted(_) | KvType::Kivi(_) | KvType::Sparse(_) => unreachable!("{NO_ROWS}"),
        }
    }
}

impl std::fmt::Display for KvType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            KvType::F32 => "f32",
            KvType::F16 => "f16",
            KvType::BF16 => "bf16",
            KvType::Q8 => "q8",
            KvType::Q4 => "q4",
            KvType::Dotted(dotted) => {
                let queries = match dotted.queries {
                    QueryBits::Sixteen => "int16",
                    QueryBits::Eight => "int8",
                };
                return write!(f, "{} with {queries} queries", dotted.numbers());
            }
            KvType::Kivi(kivi) => {
                let bits = match kivi.bits {
                    KiviBits::Four => 4,
                    KiviBits::Two => 2,
                };
                let queries = match kivi.queries {
                    KiviQueries::Float => "",
                    KiviQueries::Int8 => " with int8 queries",
                };
                return write!(f, "kivi{bits}/{}{queries}", kivi.group.tokens());
            }
            KvType::Sparse(sparse) => return write!(f, "sparse{}", sparse.percent),
        })
    }
}

/// Where number `at` of a row of nibbles is: its byte and how far up in it.
pub(crate) fn nibble(at: usize) -> (usize, u32) {
    let (run, within) = (at / NIBBLE_RUN, at % NIBBLE_RUN);
    let half = NIBBLE_RUN / 2;
    (
        run * half + within % half,
        if within < half { 0 } else { 4 },
    )
}

/// A block of at most [`QUANT_BLOCK`] channels of one token, quantised.
pub(crate) struct Codes {
    /// Whole numbers, as floats; as many as the block has channels count.
    pub codes: [f32; QUANT_BLOCK],
    /// Half precision.
    pub scale: f16,
}

impl Codes {
    /// Quantises `x` to the form `kv_type`, which must be one with scales.
    #[inline(always)]
    pub(crate) fn new(kv_type: KvType, x: &[f32]) -> Codes {
        let mut codes = [0f32; QUANT_BLOCK];
        codes[..x.len()].copy_from_slice(x);
        if codes.iter().any(|x| x.is_nan()) {
            return Codes {
                codes: [0.0; QUANT_BLOCK],
                scale: f16::NAN,
            };
        }
        let limited = codes.map(|x| x.clamp(-LARGEST_F16, LARGEST_F16));
        let largest = limited.iter().fold(0f32, |m, x| m.max(x.abs()));
        let (steps, middle, last) = match kv_type {
            KvType::Q4 => (Q4_MIDDLE, Q4_MIDDLE, 15.0),
            _ => (127.0, 0.0, 127.0),
        };
        let scale = half_rounded_up(largest / steps);
        let inverse = if largest == 0.0 {
            0.0
        } else {
            1.0 / scale.to_f32()
        };
        let lowest = last - 2.0 * steps;
        let codes = limited.map(|x| {
            let code = (x * inverse + middle).round_ties_even();
            code.clamp(lowest, last)
        });
        Codes { codes, scale }
    }
}

/// The smallest half-precision number that is not below `x`, which is finite and not negative.
pub(crate) fn half_rounded_up(x: f32) -> f16 {
    let near = f16::from_f32(x);
    if near.to_f32() < x {
        f16::from_bits(near.to_bits() + 1)
    } else {
        near
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_by_hand() {
        // The scale is 254 ÷ 127 = 2, a half-precision number.
        let q8 = Codes::new(KvType::Q8, &[254.0, -254.0, 3.1, 0.9, -5.0]);
        assert_eq!(q8.scale.to_f32(), 2.0);
        assert_eq!(q8.codes[..5], [127.0, -127.0, 2.0, 0.0, -2.0]);
        // 15 ÷ 7.5 = 2; the levels are ±1, ±3, … ±15.
        let q4 = Codes::new(KvType::Q4, &[15.0, -15.0, 1.0, -1.0, 6.1]);
        assert_eq!(q4.scale.to_f32(), 2.0);
        assert_eq!(q4.codes[..5], [15.0, 0.0, 8.0, 7.0, 11.0]);
        for kv_type in [KvType::Q8, KvType::Q4] {
            let zeros = Codes::new(kv_type, &[0.0; 32]);
            assert_eq!(zeros.scale.to_f32(), 0.0);
            assert!(Codes::new(kv_type, &[1.0, f32::NAN]).scale.is_nan());
            let limited = Codes::new(kv_type, &[f32::INFINITY, f32::NEG_INFINITY]);
            assert!(limited.scale.is_finite());
            // So small that the scale is the smallest half there is.
            assert!(Codes::new(kv_type, &[1e-30]).scale.to_bits() == 1);
        }
    }

    #[test]
    fn nibbles_lie_in_runs_of_sixteen_bytes() {
        let mut seen = [false; 128];
        for at in 0..128 {
            let (byte, shift) = nibble(at);
            let place = byte * 2 + shift as usize / 4;
            assert!(!std::mem::replace(&mut seen[place], true));
        }
        assert_eq!(
            (nibble(3), nibble(19), nibble(35)),
            ((3, 0), (3, 4), (19, 0))
        );
    }
}
