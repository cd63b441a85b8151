//! Matrix products y = x · Wᵀ with weights of any format.
//!
//! One way of summing for every shape: an output is one lane of one accumulator, to which the
//! blocks (or, with f32 activations, the elements) of its row are added in ascending order. Tiles,
//! threads and the number of rows only decide which outputs are computed side by side.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod slab;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod source;

use std::ops::Range;

use crate::activations::{Activations, Need};
use crate::exec::Exec;
use crate::format::Format;
use crate::isa::{Isa, Numerics};
use crate::packed::Packed;
use crate::packed::layout::{BLOCK, LANES};

/// The form of activations that a product with weights of `format` reads.
pub fn needed(numerics: Numerics, format: Format) -> Need {
    if numerics == Numerics::F32 || format.is_float() {
        Need::F32
    } else {
        Need::Int8
    }
}

/// Writes x · Wᵀ to `out`: `x` holds `[rows][k]`, `w` is `[n][k]`, `out` is `[rows][n]`.
///
/// # Panics
/// When the shapes do not fit, or `x` was set without the form that [`needed`] tells.
pub fn matmul(exec: &Exec, x: &Activations, w: &Packed, out: &mut [f32]) {
    matmul_many(exec, x, &[w], &mut [out]);
}

/// Several products with the same input, shared between the threads as one: `outs[i]` becomes
/// x · `ws[i]`ᵀ.
///
/// # Panics
/// As [`matmul`], or when there are not as many outputs as weights.
pub fn matmul_many(exec: &Exec, x: &Activations, ws: &[&Packed], outs: &mut [&mut [f32]]) {
    assert_eq!(ws.len(), outs.len(), "one output for each weight matrix");
    let mut tasks = 0;
    for (w, out) in ws.iter().zip(outs.iter()) {
        assert_eq!(w.k(), x.k(), "weights and activations share k");
        assert_eq!(
            Some(out.len()),
            x.rows().checked_mul(w.n()),
            "outputs are [rows][n]"
        );
        let ready = match needed(exec.numerics, w.format()) {
            Need::Int8 => x.has_int8(),
            _ => x.has_f32(),
        };
        assert!(
            ready,
            "activations lack the form that {} weights need",
            w.format()
        );
        tasks += Split::new(exec, x, w).tasks();
    }
    if x.k() == 0 {
        return outs.iter_mut().for_each(|out| out.fill(0.0));
    }
    let outs = Outputs(outs.as_mut_ptr());
    exec.pool.run(tasks, &|task, _| {
        let mut task = task;
        for (i, w) in ws.iter().enumerate() {
            let split = Split::new(exec, x, w);
            if task < split.tasks() {
                let (panels, groups) = split.part(task);
                // SAFETY: `i` is below the number of outputs, which stay borrowed until `run`
                // returns.
                let out = unsafe { outs.start(i) };
                return Part {
                    x,
                    w,
                    panels,
                    groups,
                    out,
                }
                .compute(exec);
            }
            task -= split.tasks();
        }
    });
}

/// The output slices, of which each task writes its own elements.
struct Outputs<'a>(*mut &'a mut [f32]);

// SAFETY: tasks write disjoint elements, see `Part`.
unsafe impl Sync for Outputs<'_> {}

impl Outputs<'_> {
    /// The first element of output `i`.
    ///
    /// # Safety
    /// `i` is below the number of outputs, and they are still borrowed.
    unsafe fn start(&self, i: usize) -> *mut f32 {
        // SAFETY: the caller's promise; the reference is only read, to copy the pointer out.
        unsafe { (*self.0.add(i).cast::<*mut [f32]>()).cast() }
    }
}

/// How one product is cut into tasks: blocks of rows whose activations stay in the second-level
/// cache, times chunks of panels that get smaller towards the end: long streams for memory first,
/// then small pieces so that the threads finish together.
struct Split {
    panels: usize,
    /// Panels of the smallest chunk.
    least: usize,
    /// How many chunks would share what is left.
    sharers: usize,
    /// Chunks of panels.
    chunks: usize,
    groups: usize,
    group_chunk: usize,
}

impl Split {
    fn new(exec: &Exec, x: &Activations, w: &Packed) -> Split {
        let shape = x.shape();
        let panels = w.panels();
        let groups = if x.rows() == 0 { 0 } else { shape.groups };
        let most_groups = match needed(exec.numerics, w.format()) {
            Need::Int8 => (CACHED_BYTES / shape.record_bytes().max(1)).max(2 * TILE_GROUPS),
            // f32 products walk k in slabs, so only a slab of each row must stay cached.
            _ => CACHED_FLOAT_ROWS / 4,
        };
        let blocks = groups.div_ceil(most_groups).max(1);
        let group_chunk = groups.div_ceil(blocks).next_multiple_of(TILE_GROUPS);
        // A chunk should take microseconds, be it for reading its weights or for its rows.
        let panel_work = w.bytes() / panels.max(1) * x.rows().div_ceil(8).max(1);
        let mut split = Split {
            panels,
            least: TASK_BYTES.div_ceil(panel_work.max(1)),
            sharers: 2 * exec.pool.threads(),
            chunks: 0,
            groups,
            group_chunk,
        };
        split.chunks = split.panel_chunks().count();
        split
    }

    fn tasks(&self) -> usize {
        self.chunks * self.groups.div_ceil(self.group_chunk.max(1))
    }

    fn part(&self, task: usize) -> (Range<usize>, Range<usize>) {
        let group = task / self.chunks * self.group_chunk;
        let panels = self.panel_chunks().nth(task % self.chunks);
        (
            panels.unwrap_or(0..0),
            group..self.groups.min(group + self.group_chunk),
        )
    }

    fn panel_chunks(&self) -> impl Iterator<Item = Range<usize>> {
        let mut start = 0;
        std::iter::from_fn(move || {
            let left = self.panels - start;
            let count = left.div_ceil(self.sharers).max(self.least).min(left);
            start += count;
            (count > 0).then(|| start - count..start)
        })
    }
}

/// Activations of a block of rows should take about this much of the second-level cache.
const CACHED_BYTES: usize = 512 << 10;
/// Rows of a block of an f32 product.
const CACHED_FLOAT_ROWS: usize = 96;
/// Weights that a task of up to eight rows should at least read.
const TASK_BYTES: usize = 48 << 10;
/// Row groups that the largest tile takes at once.
const TILE_GROUPS: usize = 3;

/// One task: the outputs of some panels for some groups of rows. Parts of one product are
/// disjoint and together cover it.
struct Part<'a> {
    x: &'a Activations,
    w: &'a Packed,
    panels: Range<usize>,
    groups: Range<usize>,
    /// `[rows][n]`, the whole output.
    out: *mut f32,
}

impl Part<'_> {
    fn compute(&self, exec: &Exec) {
        let int8 = needed(exec.numerics, self.w.format()) == Need::Int8;
        match exec.usable_isa() {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if int8 => avx512::int8(self),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => avx512::float(self),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 if int8 => avx2::int8(self),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::float(self),
            #[cfg(target_arch = "aarch64")]
            isa @ (Isa::Neon | Isa::NeonDotprod | Isa::NeonI8mm) if int8 => neon::int8(self, isa),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon | Isa::NeonDotprod | Isa::NeonI8mm => neon::float(self),
            _ if int8 => scalar::int8(self),
            _ => scalar::float(self),
        }
    }

    /// Rows of this part.
    fn rows(&self) -> Range<usize> {
        let group = self.x.shape().group;
        self.groups.start * group..self.x.rows().min(self.groups.end * group)
    }

    /// Outputs of `panel`.
    fn lanes(&self, panel: usize) -> usize {
        LANES.min(self.w.n() - panel * LANES)
    }

    /// Blocks of a row.
    fn blocks(&self) -> usize {
        self.w.k() / BLOCK
    }

    /// Where output `row`, first lane of `panel` goes.
    fn out(&self, row: usize, panel: usize) -> *mut f32 {
        debug_assert!(row < self.x.rows() && panel * LANES < self.w.n());
        // SAFETY: row and column are inside `[rows][n]`.
        unsafe { self.out.add(row * self.w.n() + panel * LANES) }
    }

    /// Replaces one output by what `new` makes of it, for plain Rust.
    fn update(&self, row: usize, panel: usize, lane: usize, new: impl FnOnce(f32) -> f32) {
        assert!(self.rows().contains(&row) && self.panels.contains(&panel));
        assert!(lane < self.lanes(panel));
        // SAFETY: inside the output, and only this part touches this element.
        unsafe {
            let out = self.out(row, panel).add(lane);
            *out = new(*out);
        }
    }
}
