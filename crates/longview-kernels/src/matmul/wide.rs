//! Walking a product of many rows: some panels at a time, unpacked slab by slab into the first-level
//! cache, against blocks of rows whose activations stay in the second.
//!
//! The sums of a block of rows lie side by side in a buffer of their own between one slab and the
//! next: in the output, rows are a power of two apart and would push each other out of the caches.
//! What comes out of the last slab goes straight there.

mod pairs;

use std::arch::x86_64::{_MM_HINT_ET0, _MM_HINT_T1, _mm_prefetch};
use std::mem::MaybeUninit;
use std::ops::Range;

use super::Part;
use crate::activations::Activations;
use crate::packed::Packed;
use crate::packed::layout::LANES;
pub(super) use pairs::{Finish, Pairs, walk_pairs};

/// Panels that are walked together at most.
pub(super) const PANELS: usize = super::PANELS_IN_TILES;
/// Rows of a block at most.
pub(super) const ROWS: usize = 256;

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

    /// Where elements `first..first + SLAB` lie in a panel of `w`, up to rounding.
    fn bytes(w: &Packed, first: usize) -> Range<usize>;

    /// Unpacks elements `first..first + count` of `panel` of `w` as the tile's panel `slot`.
    fn unpack(&mut self, w: &Packed, panel: usize, slot: usize, first: usize, count: usize);

    /// Adds the products of the unpacked elements `first..first + count` with the rows of `x` that are in
    /// `tiles`.
    fn add(&mut self, x: &Activations, tiles: Tiles<'_>, first: usize, count: usize);
}

/// The sums of some groups of rows for some panels, which a kernel takes a tile at a time: with the
/// loop over tiles in the kernel, little stands between one and the next.
pub(super) struct Tiles<'a> {
    /// Panels, at least one.
    pub(super) panels: usize,
    /// The next group of four rows.
    pub(super) group: usize,
    /// Groups from there on.
    pub(super) groups: usize,
    /// What the sums of the next group are before.
    from: At<*const f32>,
    /// Where they go.
    to: At<*mut f32>,
    /// The output of the next group, where it is met.
    met: Option<At<*const f32>>,
    ahead: &'a mut Ahead,
}

/// The sums of the rows of a tile.
pub(super) struct Tile {
    /// What they are before.
    pub(super) from: At<*const f32>,
    /// Where they go.
    pub(super) to: At<*mut f32>,
}

impl Tiles<'_> {
    /// Where the sums of the rows to come are.
    pub(super) fn sums(&self) -> Tile {
        Tile {
            from: self.from,
            to: self.to,
        }
    }

    /// The next tile of so many groups, if they are there.
    #[inline(always)]
    pub(super) fn next(&mut self, groups: usize) -> Option<Tile> {
        if self.groups < groups {
            return None;
        }
        self.ahead.step();
        let numbers = |stride: usize| 4 * groups * stride;
        if let Some(met) = &mut self.met {
            met.start = met.start.wrapping_add(numbers(met.stride));
            expect(*met, 4 * groups, self.panels);
        }
        let tile = self.sums();
        let (from, to) = (&mut self.from, &mut self.to);
        from.start = from.start.wrapping_add(numbers(from.stride));
        to.start = to.start.wrapping_add(numbers(to.stride));
        self.group += groups;
        self.groups -= groups;
        Some(tile)
    }
}

/// Asks for the lines of some rows of the output, for writing: stores to lines that are not there
/// wait for one another.
#[inline(always)]
fn expect(at: At<*const f32>, rows: usize, panels: usize) {
    for row in 0..rows {
        for panel in 0..panels {
            let line = at.start.wrapping_add(row * at.stride + panel * LANES);
            // SAFETY: prefetching reads and writes nothing; any address is allowed.
            unsafe { _mm_prefetch::<_MM_HINT_ET0>(line.cast()) };
        }
    }
}

/// Sums of some rows, the lanes of a panel after those of another.
#[derive(Clone, Copy)]
pub(super) struct At<P> {
    /// The first lane of the first row.
    pub(super) start: P,
    /// Numbers from one row to the next.
    pub(super) stride: usize,
}

impl At<*const f32> {
    /// The same of panel `panel` after this one.
    pub(super) fn panel(self, panel: usize) -> Self {
        let start = self.start.wrapping_add(panel * LANES);
        At { start, ..self }
    }

    /// The same of row `row` after this one.
    pub(super) fn row(self, row: usize) -> Self {
        let start = self.start.wrapping_add(row * self.stride);
        At { start, ..self }
    }
}

impl At<*mut f32> {
    /// The same of panel `panel` after this one.
    pub(super) fn panel(self, panel: usize) -> Self {
        let start = self.start.wrapping_add(panel * LANES);
        At { start, ..self }
    }

    /// The same of row `row` after this one.
    pub(super) fn row(self, row: usize) -> Self {
        let start = self.start.wrapping_add(row * self.stride);
        At { start, ..self }
    }

    fn to_read(self) -> At<*const f32> {
        At {
            start: self.start.cast_const(),
            stride: self.stride,
        }
    }
}

/// What all rows' sums are in the beginning.
#[repr(align(64))]
struct Zeros([f32; PANELS * LANES]);

static ZEROS: Zeros = Zeros([0.0; PANELS * LANES]);

/// Room for the sums of a block of rows.
#[repr(align(64))]
struct Sums {
    _room: [f32; ROWS * PANELS * LANES],
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
                    stride: K::PANELS * LANES,
                };
                block.slabs(kernel, wide);
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
    /// Numbers from one row of it to the next.
    stride: usize,
}

impl Block<'_> {
    /// Adds the slabs from element `wide` on. Sums begin at zero or, after the first elements, at
    /// what the output holds, and end there.
    fn slabs<K: Kernel>(&self, kernel: &mut K, wide: usize) {
        let k = self.part.w.k();
        let end = k.min(wide + K::WIDE_SLAB);
        let direct = self.direct::<K>();
        for first in (wide..end).step_by(K::SLAB) {
            let count = K::SLAB.min(k - first);
            for slot in 0..self.panels {
                kernel.unpack(self.part.w, self.panel + slot, slot, first, count);
            }
            let tiles = (self.end - self.group).div_ceil(K::GROUPS);
            let mut ahead = self.ahead::<K>(wide, first, tiles);
            let begins = (first == wide).then_some(wide);
            let ends = first + K::SLAB >= end;
            for groups in [self.group..direct, direct..self.end] {
                let whole = groups.end == direct;
                let tiles = self.tiles(&groups, whole, begins, ends, &mut ahead);
                kernel.add(self.part.x, tiles, first, count);
                if ends && !whole {
                    // SAFETY: both have room for so many lanes.
                    self.each_row(&groups, |row, sums, lanes| unsafe {
                        copy(sums, row, lanes)
                    });
                }
            }
        }
    }

    /// The end of the groups whose tiles may be read from the output and written to it: whole ones.
    fn direct<K: Kernel>(&self) -> usize {
        let groups = self.end.min(self.part.x.rows() / 4) - self.group;
        match self.part.lanes(self.panel + self.panels - 1) {
            LANES => self.group + groups - groups % K::GROUPS,
            _ => self.group,
        }
    }

    /// The tiles of a slab for some groups; the first one `begins` after so many elements of k.
    fn tiles<'a>(
        &self,
        groups: &Range<usize>,
        whole: bool,
        begins: Option<usize>,
        ends: bool,
        ahead: &'a mut Ahead,
    ) -> Tiles<'a> {
        // SAFETY: inside the block's sums, or behind the last.
        let sums = unsafe { self.sums.add(4 * (groups.start - self.group) * self.stride) };
        let sums = At {
            start: sums,
            stride: self.stride,
        };
        let mut tiles = Tiles {
            panels: self.panels,
            group: groups.start,
            groups: groups.len(),
            from: sums.to_read(),
            to: sums,
            met: None,
            ahead,
        };
        if begins == Some(0) {
            tiles.from = At {
                start: ZEROS.0.as_ptr(),
                stride: 0,
            };
        }
        let begins_later = begins.is_some_and(|before| before > 0);
        if whole && !groups.is_empty() {
            let out = At {
                start: self.part.out(4 * groups.start, self.panel),
                stride: self.part.w.n(),
            };
            if begins_later {
                tiles.from = out.to_read();
            }
            if ends {
                tiles.to = out;
            }
            if begins_later || ends {
                expect(out.to_read(), 4, self.panels);
                tiles.met = Some(out.to_read());
            }
        } else if begins_later {
            // SAFETY: both have room for so many lanes.
            self.each_row(groups, |row, sums, lanes| unsafe { copy(row, sums, lanes) });
        }
        tiles
    }

    /// What is unpacked after the slab at `first` of the wide slab at `wide`.
    fn ahead<K: Kernel>(&self, wide: usize, first: usize, tiles: usize) -> Ahead {
        let part = self.part;
        let k = part.w.k();
        let (next, end) = (first + K::SLAB, k.min(wide + K::WIDE_SLAB));
        let after = self.panel + K::PANELS;
        // The next slab, the next panels, or all panels again.
        let (first, panel) = if next < end {
            (next, self.panel)
        } else if after < part.panels.end {
            (wide, after)
        } else if end < k {
            (end, part.panels.start)
        } else {
            (0, part.panels.end)
        };
        let panels = panel..part.panels.end.min(panel + K::PANELS);
        Ahead::new::<K>(panels.map(|panel| (part.w, panel)), first, tiles)
    }

    /// Calls `work(out, sums, lanes)` for every panel of every row of `groups` that is there.
    fn each_row(&self, groups: &Range<usize>, work: impl Fn(*mut f32, *mut f32, usize)) {
        for row in 4 * groups.start..self.part.x.rows().min(4 * groups.end) {
            for slot in 0..self.panels {
                let panel = self.panel + slot;
                let at = (row - 4 * self.group) * self.stride + slot * LANES;
                // SAFETY: inside the block's sums.
                let sums = unsafe { self.sums.add(at) };
                work(self.part.out(row, panel), sums, self.part.lanes(panel));
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
    /// The elements that are unpacked with element `first` of some panels of matrices of one shape,
    /// [`PANELS`] at most, in so many steps.
    fn new<'a, K: Kernel>(
        panels: impl Iterator<Item = (&'a Packed, usize)>,
        first: usize,
        steps: usize,
    ) -> Ahead {
        let mut ahead = Ahead {
            starts: [std::ptr::null(); PANELS],
            panels: 0,
            at: 0,
            lines: 0,
            stride: 0,
        };
        for (start, (w, panel)) in ahead.starts.iter_mut().zip(panels) {
            let bytes = K::bytes(w, first);
            *start = w.panel(panel).as_ptr().wrapping_add(bytes.start);
            ahead.panels += 1;
            ahead.lines = bytes.len().div_ceil(LINE);
            ahead.stride = ahead.lines.div_ceil(steps);
        }
        ahead
    }

    #[inline(always)]
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
