//! Two products with the same input of which one gates the other, for a product that follows.
//!
//! What comes out is the input of that product alone, so it is quantised where it is made: the
//! outputs of the two, four bytes each, never go to memory. Where that product reads blocks of 256, those
//! of some rows wait in the second-level cache for a block to be complete.

use super::needed;
use crate::activation::Activation;
use crate::activations::{Activations, Need};
use crate::exec::Exec;
use crate::packed::Packed;
#[cfg(target_arch = "x86_64")]
use crate::packed::layout::Grain;

/// `out` becomes the int8 form `need` of `activation(x · gateᵀ) · (x · upᵀ)`, bit for bit what
/// [`super::matmul_many`], [`Activation::gate`] and [`Activations::set`] make one after the other, where
/// that pays: weights of one quantised format whose outputs are whole blocks of one int8 form, and rows that
/// are taken in tiles and stay in the second-level cache. Otherwise returns `false`, and `out` is as it was.
///
/// # Panics
/// When the shapes do not fit, or `x` was set without the form that [`needed`] tells.
pub fn matmul_gated(
    exec: &Exec,
    x: &Activations,
    gate: &Packed,
    up: &Packed,
    activation: Activation,
    need: Need,
    out: &mut Activations,
) -> bool {
    assert_eq!((gate.n(), gate.k()), (up.n(), up.k()), "one shape");
    assert_eq!(gate.k(), x.k(), "weights and activations share k");
    let given = needed(exec.numerics, gate.format());
    if given == Need::F32 || gate.format() != up.format() || !x.shape().in_tiles() {
        return false;
    }
    assert!(x.has().covers(given), "activations lack their int8 form");
    #[cfg(target_arch = "x86_64")]
    return match need {
        Need::BLOCKS => tiles::gated(exec, x, [gate, up], activation, Grain::Block, out),
        Need::WIDE_BLOCKS => tiles::gated(exec, x, [gate, up], activation, Grain::Segment, out),
        _ => false,
    };
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (activation, need, out);
        unreachable!("no processor of another kind takes rows in tiles")
    }
}

#[cfg(target_arch = "x86_64")]
mod tiles {
    use std::cell::RefCell;

    use super::{Activation, Activations, Exec, Grain, Packed};
    use crate::activations::TILE_ROWS;
    use crate::matmul::avx512::{WIDE_SLAB, int8_pairs};
    use crate::matmul::plan::Plan;
    use crate::matmul::wide::{self, Pairs};
    use crate::packed::layout::{BLOCK, LANES, SEGMENT};

    thread_local! {
        /// What is gated of some rows' blocks of 256, `[rows][256]`.
        static WAITING: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    }

    pub(super) fn gated(
        exec: &Exec,
        x: &Activations,
        [gate, up]: [&Packed; 2],
        activation: Activation,
        grain: Grain,
        out: &mut Activations,
    ) -> bool {
        let elements = grain.elements();
        if x.k() == 0 || x.k() > WIDE_SLAB || !gate.n().is_multiple_of(elements) {
            return false;
        }
        let isa = exec.usable_isa();
        let Some(blocks) = out.by_blocks(exec, x.shape().lot, x.rows(), gate.n(), grain) else {
            return false;
        };
        let finish = |block: usize, lot: usize, pairs: &[f32]| {
            let mut made = [0.0; TILE_ROWS * BLOCK];
            let made = &mut made[..pairs.len() / 2];
            activation.gate_pairs(isa, pairs, made);
            if grain == Grain::Block {
                return blocks.write(lot, block, made);
            }
            WAITING.with_borrow_mut(|waiting| {
                waiting.resize(wide::ROWS * elements, 0.0);
                // A task has rows for so many lots at once, one after the other.
                let of_lot = TILE_ROWS * elements;
                let waiting = &mut waiting[lot % (wide::ROWS / TILE_ROWS) * of_lot..][..of_lot];
                let rows = made
                    .chunks_exact(BLOCK)
                    .zip(waiting.chunks_exact_mut(elements));
                for (made, waiting) in rows {
                    waiting[block % SEGMENT * BLOCK..][..BLOCK].copy_from_slice(made);
                }
                if block % SEGMENT == SEGMENT - 1 {
                    let count = made.len() / BLOCK * elements;
                    blocks.write(lot, block / SEGMENT, &waiting[..count]);
                }
            });
        };
        let ws = [gate];
        let plan = Plan::with_panels(exec, x, &ws, elements / LANES);
        exec.pool.run(plan.tasks(), &|task, _| {
            plan.parts(task, |_, panels, groups| {
                let pairs = Pairs {
                    x,
                    ws: [gate, up],
                    panels,
                    groups,
                };
                int8_pairs(&pairs, &finish);
            });
        });
        true
    }
}
