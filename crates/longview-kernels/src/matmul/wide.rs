//! Walking a product of many rows: some panels at a time, unpacked slab by slab into the first-level
//! cache, against blocks of rows whose activations stay in the second.
//!
//! The sums of a block of rows lie side by side in a buffer of their own while a panel's slabs are
//! walked: in the output, rows are a power of two apart and would push each other out of the caches.

use std::arch::x86_64::{_MM_HINT_ET0, _MM_HINT_T1, _mm_prefetch};
use std::mem::MaybeUninit;
use std::ops::Range;

use super::Part;
use crate::packed::layout::LANES;

/// Panels that are walked together at most.
pub(super) const PANELS: usize = super::PANELS_TOGETHER;
/// Rows of a block at most.
pub(super) const ROWS: usize = 192;
/// Numbers from one row of a tile's sums to the next.
pub(super) const SUMS_STRIDE: usize = PANELS * LANES;

/// What a walk does with a slab.
pub(super) trait Kernel {
    /// Panels that a tile takes, up to [`PANELS`].
    const PANELS: usize;
    /// Groups of four rows that a tile takes.
    const GROUPS: usize;
    /// Groups of a block of rows, up to [`ROWS`] / 4.
    const BLOCK_GROUPS: usize;
    /// Elements of k that are unpacked at a time.
    const SLAB: usize;
    /// Elements of k for which a block of rows stays in the second-level cache.
    const WIDE_SLAB: usize;

    /// Where elements `first..first + SLAB` lie in a panel, up to rounding.
    fn bytes(part: &Part, first: usize) -> Range<usize>;

    /// Unpacks elements `first..first + count` of `panel` as the tile's panel `slot`.
    fn unpack(&mut self, part: &Part, panel: usize, slot: usize, first: usize, count: usize);

    /// Adds the products of the unpacked elements `first..first + count` with the rows of `tile`.
    fn add(&self, part: &Part, tile: &Tile, first: usize, count: usize);
}

/// The sums of some groups of rows for some panels.
pub(super) struct Tile {
    /// Panels, at least one.
    pub(super) panels: usize,
    /// The first group of four rows.
    pub(super) group: usize,
    /// Groups, at least one.
    pub(super) groups: usize,
    /// `[row][SUMS_STRIDE]`, aligned to 64 bytes, the lanes of a panel after those of another.
    pub(super) sums: *mut f32,
}

/// Room for the sums of a block of rows.
#[repr(align(64))]
struct Sums {
    _room: [f32; ROWS * SUMS_STRIDE],
}

/// Computes `part`, whose rows come in groups of four.
pub(super) fn walk<K: Kernel>(part: &Part, kernel: &mut K) {
    debug_assert_eq!(part.x.shape().group, 4);
    let mut room = MaybeUninit::<Sums>::uninit();
    let sums = room.as_mut_ptr().cast::<f32>();
    let mut group = part.groups.start;
    while group < part.groups.end {
        let end = part.groups.end.min(group + K::BLOCK_GROUPS);
        for wide in (0..part.w.k()).step_by(K::WIDE_SLAB) {
            for panel in part.panels.clone().step_by(K::PANELS) {
                let block = Block {
                    part,
                    panel,
                    panels: K::PANELS.min(part.panels.end - panel),
                    group,
                    end,
                    sums,
                };
                block.begin(wide == 0);
                block.slabs(kernel, wide);
                block.finish();
            }
        }
        group = end;
    }
}

/// Some panels times a block of rows.
struct Block<'a> {
    part: &'a Part<'a>,
    panel: usize,
    panels: usize,
    group: usize,
    end: usize,
    /// Room for `ROWS` rows.
    sums: *mut f32,
}

impl Block<'_> {
    /// Sums begin at zero when `fresh`, else at what the output holds.
    fn begin(&self, fresh: bool) {
        let rows = 4 * (self.end - self.group);
        // SAFETY: a block has at most `ROWS` rows.
        unsafe { self.sums.write_bytes(0, rows * SUMS_STRIDE) };
        if !fresh {
            // SAFETY: both have room for so many lanes.
            self.each_row(|out, sums, lanes| unsafe { copy(out, sums, lanes) });
        }
    }

    /// Adds the slabs from element `wide` on.
    fn slabs<K: Kernel>(&self, kernel: &mut K, wide: usize) {
        let k = self.part.w.k();
        let end = k.min(wide + K::WIDE_SLAB);
        for first in (wide..end).step_by(K::SLAB) {
            let count = K::SLAB.min(k - first);
            for slot in 0..self.panels {
                kernel.unpack(self.part, self.panel + slot, slot, first, count);
            }
            let tiles = (self.end - self.group).div_ceil(K::GROUPS);
            let mut ahead = self.ahead::<K>(wide, first, tiles);
            for group in (self.group..self.end).step_by(K::GROUPS) {
                ahead.step();
                if first + K::SLAB >= end {
                    self.expect_writes(group, K::GROUPS);
                }
                let tile = Tile {
                    panels: self.panels,
                    group,
                    groups: K::GROUPS.min(self.end - group),
                    // SAFETY: inside the block's sums.
                    sums: unsafe { self.sums.add(4 * (group - self.group) * SUMS_STRIDE) },
                };
                kernel.add(self.part, &tile, first, count);
            }
        }
    }

    /// What is unpacked after the slab at `first` of the wide slab at `wide`.
    fn ahead<K: Kernel>(&self, wide: usize, first: usize, tiles: usize) -> Ahead {
        let part = self.part;
        let next = first + K::SLAB;
        let same = next < part.w.k().min(wide + K::WIDE_SLAB);
        let (panel, first) = if same {
            (self.panel, next)
        } else {
            (self.panel + K::PANELS, wide)
        };
        let bytes = K::bytes(part, first);
        let panels = panel..part.panels.end.min(panel + K::PANELS);
        let mut starts = [std::ptr::null(); PANELS];
        for (start, panel) in starts.iter_mut().zip(panels.clone()) {
            *start = part.w.panel(panel).as_ptr().wrapping_add(bytes.start);
        }
        let lines = bytes.len().div_ceil(LINE);
        Ahead {
            starts,
            panels: panels.len(),
            at: 0,
            lines,
            stride: lines.div_ceil(tiles),
        }
    }

    /// Asks for the lines of the output that the sums of some groups go to, for writing: stores to
    /// lines that are not there wait for one another.
    fn expect_writes(&self, group: usize, groups: usize) {
        let rows = 4 * group..self.part.x.rows().min(4 * (group + groups));
        for row in rows {
            let out = self.part.out(row, self.panel).cast::<i8>();
            for line in 0..=self.panels {
                // SAFETY: prefetching reads and writes nothing; any address is allowed.
                unsafe { _mm_prefetch::<_MM_HINT_ET0>(out.wrapping_add(LINE * line)) };
            }
        }
    }

    /// Writes the sums to the output.
    fn finish(&self) {
        // SAFETY: both have room for so many lanes.
        self.each_row(|out, sums, lanes| unsafe { copy(sums, out, lanes) });
    }

    /// Calls `work(out, sums, lanes)` for every panel of every row that is there.
    fn each_row(&self, work: impl Fn(*mut f32, *mut f32, usize)) {
        let rows = self.part.x.rows().min(4 * self.end) - 4 * self.group;
        for row in 0..rows {
            for slot in 0..self.panels {
                let panel = self.panel + slot;
                let out = self.part.out(4 * self.group + row, panel);
                // SAFETY: inside the block's sums.
                let sums = unsafe { self.sums.add(row * SUMS_STRIDE + slot * LANES) };
                work(out, sums, self.part.lanes(panel));
            }
        }
    }
}

/// Asks for the weights that are unpacked next, some between one tile and another: all at once they
/// would keep everything else waiting.
struct Ahead {
    /// Where each panel's begin.
    starts: [*const u8; PANELS],
    panels: usize,
    /// The next line of each.
    at: usize,
    /// Lines of each.
    lines: usize,
    /// Lines of each for a tile.
    stride: usize,
}

/// Bytes of a cache line.
const LINE: usize = 64;

impl Ahead {
    fn step(&mut self) {
        let end = self.lines.min(self.at + self.stride);
        for line in self.at..end {
            for start in &self.starts[..self.panels] {
                // SAFETY: prefetching reads nothing; any address is allowed.
                unsafe { _mm_prefetch::<_MM_HINT_T1>(start.wrapping_add(LINE * line).cast()) };
            }
        }
        self.at = end;
    }
}

/// Copies the first `lanes` of 16 floats; all of them without a call.
///
/// # Safety
/// There are so many at both places.
unsafe fn copy(from: *const f32, to: *mut f32, lanes: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        if lanes == LANES {
            to.cast::<[f32; LANES]>()
                .write_unaligned(from.cast::<[f32; LANES]>().read_unaligned());
        } else {
            std::ptr::copy_nonoverlapping(from, to, lanes);
        }
    }
}
