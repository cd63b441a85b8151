//! One row of a packed panel, read in plain Rust: the definition of the layout.

use half::f16;

use super::layout::{BLOCK, LANES, Layout, SEGMENT, Scales};
use crate::format::IQ4_VALUES;

/// One row's 32 elements of a packed panel, in the form kernels compute with.
///
/// Element `i` of sub-block `s = i / 16` is `scale[s] · (codes[i] − 128)` in centred formats and
/// `scale[s] · codes[i] + min[s]` in the others.
pub(crate) struct LaneBlock {
    /// Codes shifted to the top of their byte (or looked up), offset by 128 in centred formats.
    pub(crate) codes: [u8; BLOCK],
    /// Scale of each half; the same twice in formats with one scale a block.
    pub(crate) scale: [f32; 2],
    /// Minimum of each half, added; 0 in centred formats.
    pub(crate) min: [f32; 2],
    /// The scale of each half as a whole number, in units of `factor`, where sums are whole numbers: of
    /// codes as they are, but for rounded scales, whose sums drop [`Layout::dropped_bits`].
    pub(crate) small_scale: [i32; 2],
    pub(crate) factor: f32,
    /// The same of the minima.
    pub(crate) small_min: [i32; 2],
    pub(crate) min_factor: f32,
}

impl LaneBlock {
    /// Block `b` of row `lane` of a quantised `panel` whose rows have `blocks` blocks.
    pub(crate) fn read(
        layout: &Layout,
        panel: &[u8],
        blocks: usize,
        b: usize,
        lane: usize,
    ) -> Self {
        let first = b / SEGMENT * SEGMENT;
        let in_segment = SEGMENT.min(blocks - first);
        let segment = &panel[b / SEGMENT * layout.segment_bytes(SEGMENT)..];
        let b = b - first;
        let (head, codes) = segment.split_at(layout.head_bytes(in_segment));
        let (top, low) = codes[b * layout.code_bytes()..].split_at(layout.top_bytes());
        let (all_scales, factors) = head.split_at(in_segment * layout.scale_bytes());
        let scales = &all_scales[b * layout.scale_bytes()..];
        let mut block = LaneBlock {
            codes: read_codes(layout, top, low, lane),
            scale: [0.0; 2],
            min: [0.0; 2],
            small_scale: [0; 2],
            factor: 0.0,
            small_min: [0; 2],
            min_factor: 0.0,
        };
        block.read_scales(layout, scales, factors, lane);
        if layout.scales == Scales::Rounded {
            let of_segment = all_scales.chunks_exact(layout.scale_bytes());
            let largest = of_segment.map(|scales| half_bits(scales, lane) & 0x7fff);
            let unit = unit(largest.max().unwrap_or(0));
            let scale = f16::from_bits(half_bits(scales, lane)).to_f32();
            // Not a number where the unit is none, which is taken as 0: `factor` spoils the sum then.
            block.small_scale = [(scale / unit).round_ties_even() as i32; 2];
            block.factor = unit;
        }
        block
    }

    fn read_scales(&mut self, layout: &Layout, scales: &[u8], factors: &[u8], lane: usize) {
        let half =
            |plane: &[u8], at: usize| f16::from_bits(half_bits(plane, at * LANES + lane)).to_f32();
        let small = |at: usize| scales[at * LANES + lane];
        let wide = layout.widening();
        match layout.scales {
            Scales::Half | Scales::Rounded => self.scale = [half(scales, 0) * wide; 2],
            Scales::HalfMin => {
                self.scale = [half(scales, 0) * wide; 2];
                self.min = [half(scales, 1); 2];
            }
            Scales::Small => {
                let scale = |s: usize| i32::from(small(s) as i8);
                self.small_scale = [scale(0), scale(layout.subs - 1)];
            }
            Scales::SmallMin => {
                self.small_scale = [i32::from(small(0)); 2];
                self.small_min = [i32::from(small(1)); 2];
            }
            Scales::NibbleMin => {
                self.small_scale = [0, 1].map(|s| i32::from(small(s) & 15));
                self.small_min = [0, 1].map(|s| i32::from(small(s) >> 4));
            }
        }
        if layout.factor_bytes() > 0 {
            let factor = half(factors, 0);
            self.factor = factor * wide;
            self.scale = self.small_scale.map(|scale| factor * scale as f32 * wide);
            if layout.has_min() {
                self.min_factor = -half(factors, 1);
                self.min = self.small_min.map(|min| self.min_factor * min as f32);
            }
        }
    }

    /// The dequantised elements.
    pub(crate) fn values(&self, layout: &Layout) -> [f32; BLOCK] {
        std::array::from_fn(|i| {
            let (code, scale) = (self.codes[i], self.scale[i / 16]);
            if layout.has_min() {
                scale * f32::from(code) + self.min[i / 16]
            } else {
                scale * (f32::from(code) - 128.0)
            }
        })
    }
}

/// What rounded scales are multiples of, given the bits of the largest magnitude of a segment's: a power of
/// two, such that there are fewer than 2¹² of it in the largest. A scale that is not below a half of that
/// one's power of two keeps the eleven bits of an f16, a smaller one as many as lie above the unit. Zero
/// where all scales are, infinite where one is no number.
pub(crate) fn unit(largest: u16) -> f32 {
    let power = f16::from_bits(largest).to_f32().to_bits() & 0x7f80_0000;
    f32::from_bits(power) / 2048.0
}

/// The bits of f16 number `at` of `plane`.
fn half_bits(plane: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([plane[2 * at], plane[2 * at + 1]])
}

fn read_codes(layout: &Layout, top: &[u8], low: &[u8], lane: usize) -> [u8; BLOCK] {
    let word = |plane: &[u8], j: usize| {
        let at = 64 * j + 4 * lane;
        u32::from_le_bytes([plane[at], plane[at + 1], plane[at + 2], plane[at + 3]])
    };
    let shift = 8 - layout.top_bits - layout.low_bits;
    let mut codes = [0; BLOCK];
    for (g, four) in codes.chunks_exact_mut(4).enumerate() {
        let upper = match layout.top_bits {
            8 => word(top, g),
            4 => word(top, g % 4) >> (4 * (g / 4)) & 0x0f0f_0f0f,
            _ => word(top, g % 2) >> (2 * (g / 2)) & 0x0303_0303,
        };
        let lower = match layout.low_bits {
            0 => 0,
            1 => word(low, 0) >> g & 0x0101_0101,
            _ => word(low, g % 2) >> (2 * (g / 2)) & 0x0303_0303,
        };
        let code = (upper << layout.low_bits | lower).to_le_bytes();
        for (wide, code) in four.iter_mut().zip(code) {
            *wide = if layout.table {
                IQ4_VALUES[usize::from(code)] as u8 ^ 0x80
            } else {
                code << shift
            };
        }
    }
    codes
}
