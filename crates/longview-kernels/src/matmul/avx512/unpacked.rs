//! Slabs of panels as products of many rows read them: codes of eight bits, scales of 32.

use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::unpack::{Block, DROPPED, Factors, SmallBlock, Unit, pair_of_minima};
use crate::matmul::source::{Segment, Source};
use crate::matmul::wide;
use crate::packed::Packed;
use crate::packed::layout::{BLOCK, Grain, LANES, SEGMENT, Scales};

/// Blocks that are unpacked at a time: two segments.
pub(super) const BLOCKS: usize = 2 * SEGMENT;
/// Elements of k for which a block of rows stays in the second-level cache.
pub(in crate::matmul) const WIDE_SLAB: usize = 8 * SEGMENT * BLOCK;
/// Bytes of a register.
pub(super) const VECTOR: usize = 64;
/// Bytes of a block's codes.
pub(super) const CODES: usize = LANES * BLOCK;
/// Where codes of four bits are centred.
const CENTRE: i32 = 8;
/// Bytes of the factors of a panel.
const FACTORS: usize = BLOCKS / SEGMENT * 2 * VECTOR;

/// Some blocks of each panel of a tile, `[panel][BLOCKS]`, each codes `[group][row][4]` · scales
/// `[half][row]` · minima `[half][row]`, which are added; halves and minima as the format has them. Where
/// scales and minima are whole numbers, scales are i32, and a panel ends with the factors of its segments,
/// `[segment][2][row]`.
///
/// With `SIGNED`, codes of formats without minima are two's complement; otherwise they are offset by
/// 128. Those with minima have no sign. Minima that are whole numbers are pairs of i16: of a block's halves, or
/// of a block and the next one, in every other block. Where codes are taken from their centre, the other blocks
/// have pairs of scales, times the centre, and the factor is that of codes of four bits.
#[repr(align(64))]
pub(super) struct Unpacked<S, const SIGNED: bool> {
    room: MaybeUninit<[u8; wide::PANELS * (BLOCKS * (CODES + 4 * VECTOR) + FACTORS)]>,
    source: PhantomData<S>,
}

/// Where the parts of an unpacked block are.
pub(super) struct Place<S>(PhantomData<S>);

impl<S: Source> Place<S> {
    /// Minima in a block.
    pub(super) const MINIMA: usize = CODES + S::LAYOUT.subs * VECTOR;
    /// Bytes of a block.
    pub(super) const BLOCK: usize = match (S::LAYOUT.has_min(), S::LAYOUT.grain()) {
        (false, _) => Self::MINIMA,
        (true, Grain::Block) => Self::MINIMA + S::LAYOUT.subs * VECTOR,
        (true, Grain::Segment) => Self::MINIMA + VECTOR,
    };
    /// Bytes from one panel to the next.
    pub(super) const PANEL: usize = BLOCKS * Self::BLOCK
        + match S::LAYOUT.grain() {
            Grain::Block => 0,
            Grain::Segment => FACTORS,
        };

    /// Pairs of minima of a segment.
    pub(super) const PAIRS: usize = S::LAYOUT.subs * SEGMENT / 2;

    /// Whether codes of four bits with minima are multiplied as far as they are from [`CENTRE`]: a block's sum
    /// has sixteen bits then, for which there is a faster product with the scale, and Σ scale · x is added once
    /// a segment. All of it in whole numbers, so that no bit of the result is another.
    pub(super) const CENTRED: bool = matches!(S::LAYOUT.scales, Scales::SmallMin)
        && S::LAYOUT.top_bits == 4
        && S::LAYOUT.low_bits == 0;

    /// Where pair `pair` of a segment's scales is, in the blocks that have no minima.
    pub(super) const fn scales(pair: usize) -> usize {
        Self::pair(pair) + Self::BLOCK
    }

    /// Where pair `pair` of a segment's minima is.
    pub(super) const fn pair(pair: usize) -> usize {
        pair * 2 / S::LAYOUT.subs * Self::BLOCK + Self::MINIMA
    }

    /// Where the factors of a panel's segment `at` are.
    pub(super) const fn factors(at: usize) -> usize {
        BLOCKS * Self::BLOCK + at * 2 * VECTOR
    }
}

impl<S: Source, const SIGNED: bool> Unpacked<S, SIGNED> {
    pub(super) fn new() -> Self {
        Unpacked {
            room: MaybeUninit::uninit(),
            source: PhantomData,
        }
    }

    /// The first block of the first panel.
    pub(super) fn blocks(&self) -> *const u8 {
        self.room.as_ptr().cast()
    }

    /// Unpacks elements `first..first + count` of `panel` as panel `slot`; `first` is the first of a
    /// segment.
    pub(super) fn unpack(
        &mut self,
        w: &Packed,
        panel: usize,
        slot: usize,
        first: usize,
        count: usize,
    ) {
        assert!(slot < wide::PANELS && count <= BLOCKS * BLOCK);
        let (panel, blocks) = (w.panel(panel).as_ptr(), w.k() / BLOCK);
        for at in (0..count / BLOCK).step_by(SEGMENT) {
            let segment = (first / BLOCK + at) / SEGMENT;
            // SAFETY: `Isa::Avx512` runs only where the processor offers the features; `first` is
            // the first element of a segment of the panel, and there is room for the segment and its
            // factors in slot `slot`.
            unsafe {
                let start = self.room.as_mut_ptr().cast::<u8>();
                let slot = start.add(slot * Place::<S>::PANEL);
                let to = slot.add(at * Place::<S>::BLOCK);
                match S::LAYOUT.grain() {
                    Grain::Block => read::<S, SIGNED>(panel, blocks, segment, to),
                    Grain::Segment => {
                        let factors = slot.add(Place::<S>::factors(at / SEGMENT));
                        read_small::<S>(panel, blocks, segment, to, factors);
                    }
                }
            }
        }
    }
}

/// Where the elements that are unpacked with element `first` lie in a panel.
pub(super) fn slab_bytes<S: Source>(first: usize) -> Range<usize> {
    let bytes = S::LAYOUT.segment_bytes(SEGMENT);
    let start = first / (SEGMENT * BLOCK) * bytes;
    start..start + BLOCKS / SEGMENT * bytes
}

/// Unpacks segment `at` of `panel`.
///
/// # Safety
/// The processor offers the features; the segment lies in the panel of so many blocks, and `to`, aligned
/// to 64 bytes, has room for its own.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn read<S: Source, const SIGNED: bool>(
    panel: *const u8,
    blocks: usize,
    at: usize,
    to: *mut u8,
) {
    let layout = S::LAYOUT;
    // SAFETY: the caller's promise; blocks are counted inside the segment.
    unsafe {
        let (segment, count) = Segment::at::<S>(panel, blocks, at);
        for b in 0..count {
            let block = Block::unpack::<S>(segment.planes::<S>(b));
            let to = to.add(b * Place::<S>::BLOCK);
            for (g, mut code) in block.codes.into_iter().enumerate() {
                if SIGNED && !layout.has_min() {
                    code = _mm512_xor_si512(code, _mm512_set1_epi8(-128));
                }
                _mm512_store_si512(to.add(VECTOR * g).cast(), code);
            }
            for s in 0..layout.subs {
                _mm512_store_ps(to.add(CODES + VECTOR * s).cast(), block.scale[s]);
                if layout.has_min() {
                    let min = to.add(Place::<S>::MINIMA + VECTOR * s);
                    _mm512_store_ps(min.cast(), block.min[s]);
                }
            }
        }
    }
}

/// Unpacks segment `at` of `panel`, whose scales are whole numbers.
///
/// # Safety
/// As [`read`]; `factors`, aligned alike, has room for those of a segment.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn read_small<S: Source>(
    panel: *const u8,
    blocks: usize,
    at: usize,
    to: *mut u8,
    factors: *mut u8,
) {
    let layout = S::LAYOUT;
    // SAFETY: the caller's promise; blocks are counted inside the segment.
    unsafe {
        let (segment, count) = Segment::at::<S>(panel, blocks, at);
        let unit = Unit::of::<S>(segment, count);
        for b in 0..count {
            let planes = segment.planes::<S>(b);
            let block = SmallBlock::unpack::<S>(planes, unit);
            let to = to.add(b * Place::<S>::BLOCK);
            for (g, code) in block.codes.into_iter().enumerate() {
                _mm512_store_si512(to.add(VECTOR * g).cast(), code);
            }
            for s in 0..layout.subs {
                _mm512_store_si512(to.add(CODES + VECTOR * s).cast(), block.scale[s]);
            }
        }
        if layout.has_min() {
            for pair in 0..Place::<S>::PAIRS {
                let to = to.add(Place::<S>::pair(pair));
                _mm512_store_si512(to.cast(), pair_of_minima::<S>(segment, pair));
            }
        }
        let mut of_all = Factors::of::<S>(segment.planes::<S>(0), unit);
        if Place::<S>::CENTRED {
            for pair in 0..Place::<S>::PAIRS {
                let scale = |b: usize| {
                    let scale = to.add(b * Place::<S>::BLOCK + CODES);
                    _mm512_mullo_epi32(_mm512_load_si512(scale.cast()), _mm512_set1_epi32(CENTRE))
                };
                let second = _mm512_slli_epi32::<16>(scale(2 * pair + 1));
                let both = _mm512_or_si512(scale(2 * pair), second);
                _mm512_store_si512(to.add(Place::<S>::scales(pair)).cast(), both);
            }
            let bits = _mm512_set1_ps((1 << DROPPED) as f32);
            of_all.scale = _mm512_mul_ps(of_all.scale, bits);
        }
        _mm512_store_ps(factors.cast(), of_all.scale);
        _mm512_store_ps(factors.add(VECTOR).cast(), of_all.min);
    }
}
