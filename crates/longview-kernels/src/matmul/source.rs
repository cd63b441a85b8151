//! Quantised formats as types, and where the blocks of a packed panel lie.

use crate::format::Format;
use crate::memory::prefetch_farther;
use crate::packed::layout::{Layout, SEGMENT};

/// A quantised format, as a type.
pub(super) trait Source {
    const LAYOUT: Layout;
}

macro_rules! sources {
    ($($name:ident = $format:ident,)*) => {$(
        pub(super) struct $name;
        impl Source for $name {
            const LAYOUT: Layout = match Layout::of(Format::$format) {
                Some(layout) => layout,
                None => panic!("a float format has no codes"),
            };
        }
    )*};
}

sources! {
    Q40 = Q4_0, Q41 = Q4_1, Q50 = Q5_0, Q51 = Q5_1, Q80 = Q8_0, Q2K = Q2_K, Q3K = Q3_K, Q4K = Q4_K,
    Q5K = Q5_K, Q6K = Q6_K, Iq4Nl = IQ4_NL, Iq4Xs = IQ4_XS,
}

/// Calls `$function::<S>(args)` for the source of a quantised format.
macro_rules! with_source {
    ($format:expr, $function:ident($($arg:expr),*)) => {{
        use crate::format::Format as F;
        use crate::matmul::source as u;
        match $format {
            F::Q4_0 => $function::<u::Q40>($($arg),*),
            F::Q4_1 => $function::<u::Q41>($($arg),*),
            F::Q5_0 => $function::<u::Q50>($($arg),*),
            F::Q5_1 => $function::<u::Q51>($($arg),*),
            F::Q8_0 => $function::<u::Q80>($($arg),*),
            F::Q2_K => $function::<u::Q2K>($($arg),*),
            F::Q3_K => $function::<u::Q3K>($($arg),*),
            F::Q4_K => $function::<u::Q4K>($($arg),*),
            F::Q5_K => $function::<u::Q5K>($($arg),*),
            F::Q6_K => $function::<u::Q6K>($($arg),*),
            F::IQ4_NL => $function::<u::Iq4Nl>($($arg),*),
            F::IQ4_XS => $function::<u::Iq4Xs>($($arg),*),
            F::F32 | F::F16 | F::BF16 => unreachable!("float formats have no codes"),
        }
    }};
}
pub(super) use with_source;

/// How far ahead of a segment weights are asked for: what arrives in the time memory takes to
/// answer. A whole segment comes on top, as its first block already needs the end of it.
const AHEAD: usize = 2560;

/// Where the parts of a segment begin.
#[derive(Clone, Copy)]
pub(super) struct Segment {
    scales: *const u8,
    factors: *const u8,
    codes: *const u8,
}

impl Segment {
    /// Segment `at` of a panel of `blocks` blocks, and how many blocks it has.
    ///
    /// # Safety
    /// `panel` is a packed panel of `S` with `blocks` blocks, and `8 · at < blocks`.
    #[inline(always)]
    pub(super) unsafe fn at<S: Source>(
        panel: *const u8,
        blocks: usize,
        at: usize,
    ) -> (Self, usize) {
        let layout = S::LAYOUT;
        let count = SEGMENT.min(blocks - at * SEGMENT);
        // SAFETY: the parts lie inside the panel one after the other.
        unsafe {
            let scales = panel.add(at * layout.segment_bytes(SEGMENT));
            let segment = Segment {
                scales,
                factors: scales.add(count * layout.scale_bytes()),
                codes: scales.add(layout.head_bytes(count)),
            };
            (segment, count)
        }
    }

    /// Upper bits, lower bits and scales of block `b`, and the segment's factors.
    ///
    /// # Safety
    /// `b` is below the segment's number of blocks.
    #[inline(always)]
    pub(super) unsafe fn planes<S: Source>(self, b: usize) -> Planes {
        let layout = S::LAYOUT;
        // SAFETY: the block's parts lie inside the segment.
        unsafe {
            let top = self.codes.add(b * layout.code_bytes());
            Planes {
                top,
                low: top.add(layout.top_bytes()),
                scales: self.scales.add(b * layout.scale_bytes()),
                factors: self.factors,
            }
        }
    }

    /// Asks for weights some way ahead of block `b`, in this panel or the next.
    #[inline(always)]
    pub(super) fn prefetch<S: Source>(self, b: usize) {
        let layout = S::LAYOUT;
        let bytes = layout.segment_bytes(SEGMENT) / SEGMENT;
        let start = self
            .scales
            .wrapping_add(layout.segment_bytes(SEGMENT) + AHEAD + b * bytes);
        for line in 0..bytes.div_ceil(64) {
            prefetch_farther(start.wrapping_add(64 * line));
        }
    }
}

/// Where the parts of a block are.
#[derive(Clone, Copy)]
pub(super) struct Planes {
    pub(super) top: *const u8,
    pub(super) low: *const u8,
    pub(super) scales: *const u8,
    pub(super) factors: *const u8,
}

/// Asks for weights some way ahead: in the same panels, or in those that come after all of them.
#[cfg(target_arch = "x86_64")]
pub(super) struct Ahead {
    panel_bytes: usize,
    /// Bytes of the other panels, between the end of one and what is read after it.
    skipped: usize,
    /// Bytes from a block to what is asked for when it is read.
    distance: usize,
}

#[cfg(target_arch = "x86_64")]
impl Ahead {
    /// For `panels` panels of so many blocks that are read side by side, `distance` bytes ahead or as many as suit
    /// most processors.
    pub(super) fn new<S: Source>(panels: usize, blocks: usize, distance: Option<usize>) -> Ahead {
        let panel_bytes = S::LAYOUT.panel_bytes(blocks);
        Ahead {
            panel_bytes,
            skipped: (panels - 1) * panel_bytes,
            distance: distance.unwrap_or(S::LAYOUT.segment_bytes(SEGMENT) + AHEAD),
        }
    }

    /// Asks for what lies ahead of a block of a segment of each of `panels`: every so many lines (`STEP`), from line
    /// `from` on. A line of one panel follows that of another: the processor, which fetches further lines of what it
    /// sees read in order, then has more streams to do so for. `into` says into which
    /// cache.
    #[inline(always)]
    pub(super) fn ask<S: Source, const STEP: usize>(
        &self,
        panels: &[*const u8],
        segment: usize,
        block: usize,
        from: usize,
        into: impl Fn(*const u8),
    ) {
        let bytes = S::LAYOUT.segment_bytes(SEGMENT);
        let block_bytes = bytes / SEGMENT;
        let mut start = segment * bytes + block * block_bytes + self.distance;
        if start >= self.panel_bytes {
            start += self.skipped;
        }
        for line in (from..block_bytes.div_ceil(64)).step_by(STEP) {
            for panel in panels {
                into(panel.wrapping_add(start + 64 * line));
            }
        }
    }
}
