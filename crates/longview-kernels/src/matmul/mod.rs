//! Matrix products y = x · Wᵀ with weights of any format.
//!
//! One way of summing for every shape: an output is one lane of one accumulator, to which the
//! blocks (or, with f32 activations, the elements) of its row are added in ascending order. Tiles,
//! threads and the number of rows only decide which outputs are computed side by side.
//!
//! Blocks are of 32 elements, or of 256 where the scales of weights are whole numbers but for one
//! factor, as in the K formats, or may be rounded to such, as in Q4_0 (by kernels with AVX-512 and plain
//! Rust; others take them as they are): there codes, scales and int8 activations make one whole number,
//! Σ scale · code · x, which can be summed in any order. With minima Σ minimum · x makes a second one.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod gated;
#[cfg(target_arch = "aarch64")]
mod neon;
mod plan;
mod scalar;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod slab;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod source;
#[cfg(target_arch = "x86_64")]
mod wide;

use std::ops::Range;

pub use gated::matmul_gated;

use crate::activations::{Activations, Need};
use crate::exec::Exec;
use crate::format::Format;
use crate::isa::{Isa, Numerics};
use crate::packed::Packed;
use crate::packed::layout::{BLOCK, Grain, LANES, Layout};
use plan::Plan;

/// Panels that many rows take together: as many as their sums leave registers for.
const PANELS_TOGETHER: usize = 3;
/// Panels that they take in tiles: as many as stay in the first-level cache beside the rows.
const PANELS_IN_TILES: usize = 4;
/// Panels that one group of rows takes together where rows are few: from several streams, more is on
/// its way from memory.
const PANELS_OF_ONE_GROUP: usize = 4;
/// Panels that two groups take.
const PANELS_OF_TWO_GROUPS: usize = 2;
/// Groups of rows whose sums stay in registers.
const FEW_GROUPS: usize = 3;
/// Rows up to which blocks of panels are unpacked into registers, met by all rows.
const SOME_ROWS: usize = 40;
/// Panels that such rows take together where they are more than a few groups.
const PANELS_OF_SOME_ROWS: usize = 2;

/// The form of activations that a product with weights of `format` reads.
pub fn needed(numerics: Numerics, format: Format) -> Need {
    match Layout::of(format) {
        Some(layout) if numerics != Numerics::F32 => Need::of(layout.grain()),
        _ => Need::F32,
    }
}

/// Whether products with weights of `format` round activations in larger blocks than the format itself has, and
/// so more coarsely than those do whose format it is.
pub fn rounds_in_larger_blocks(numerics: Numerics, format: Format) -> bool {
    needed(numerics, format) == Need::WIDE_BLOCKS && format.block_len() < Grain::Segment.elements()
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
    for (w, out) in ws.iter().zip(outs.iter()) {
        assert_eq!(w.k(), x.k(), "weights and activations share k");
        assert_eq!(
            Some(out.len()),
            (x.rows() / x.parts()).checked_mul(w.n()),
            "outputs are [rows][n]"
        );
        assert!(
            x.has().covers(needed(exec.numerics, w.format())),
            "activations lack the form that {} weights need",
            w.format()
        );
    }
    if x.k() == 0 {
        return outs.iter_mut().for_each(|out| out.fill(0.0));
    }
    match x.parts() {
        1 => product(exec, x, ws, outs),
        _ => add_up(ws, outs, |parts| product(exec, x, ws, parts)),
    }
}

/// What [`matmul_many`] writes, of all rows that are held.
fn product(exec: &Exec, x: &Activations, ws: &[&Packed], outs: &mut [&mut [f32]]) {
    let outs = Outputs(outs.as_mut_ptr());
    let plan = Plan::new(exec, x, ws);
    exec.pool.run(plan.tasks(), &|task, _| {
        plan.parts(task, |i, panels, groups| {
            // SAFETY: `i` is below the number of outputs, which stay borrowed until `run` returns.
            let out = unsafe { outs.start(i) };
            let w = ws[i];
            Part {
                x,
                w,
                panels,
                groups,
                out,
            }
            .compute(exec);
        });
    });
}

/// Adds up the products with the parts of one row, `[2][n]` each.
fn add_up(ws: &[&Packed], outs: &mut [&mut [f32]], product: impl FnOnce(&mut [&mut [f32]])) {
    let mut parts: Vec<Vec<f32>> = ws.iter().map(|w| vec![0.0; 2 * w.n()]).collect();
    let mut views: Vec<&mut [f32]> = parts.iter_mut().map(Vec::as_mut_slice).collect();
    product(&mut views);
    for (out, parts) in outs.iter_mut().zip(&parts) {
        let (most, rest) = parts.split_at(out.len());
        for ((out, most), rest) in out.iter_mut().zip(most).zip(rest) {
            *out = most + rest;
        }
    }
}

/// Rows up to which a product waits for memory more than for anything else.
const EXPECTED_ROWS: usize = 8;
/// Bytes of weights that a thread asks for before a product: what arrives while the few rows of an input
/// are made, and stays in the second-level cache until it is read.
const EXPECTED_BYTES: usize = 256 << 10;

/// Tells the threads that a product with `ws` comes next, or soon, of as many rows as `x` has: while they
/// have nothing else to do they ask for the weights that they will read first. Changes no result.
pub fn announce(exec: &Exec, x: &Activations, ws: &[&Packed]) {
    let plan = (x.rows() <= EXPECTED_ROWS).then(|| Plan::new(exec, x, ws));
    for worker in 0..exec.pool.threads() {
        let mut first: &[u8] = &[];
        if let Some(plan) = plan.as_ref().filter(|plan| worker < plan.tasks()) {
            plan.parts(worker, |i, panels, _| {
                if first.is_empty() {
                    first = ws[i].panels_from(panels.start);
                }
            });
        }
        exec.pool
            .announce(worker, &first[..first.len().min(EXPECTED_BYTES)]);
    }
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
        let int8 = needed(exec.numerics, self.w.format()) != Need::F32;
        match exec.usable_isa() {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Amx if int8 => avx512::int8(self),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Amx => avx512::float(self),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 if int8 => avx2::int8(self),
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni if int8 => avx2::int8_vnni(self),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::AvxVnni => avx2::float(self),
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
