//! Two products with the same input of which one gates the other, for a product that follows.
//!
//! What comes out is the input of that product alone, so it is quantised where it is made: the
//! outputs of the two, four bytes each, never go to memory.

use super::needed;
use crate::activation::Activation;
use crate::activations::{Activations, Need};
use crate::exec::Exec;
use crate::packed::Packed;

/// `out` becomes the int8 form of `activation(x · gateᵀ) · (x · upᵀ)`, bit for bit what
/// [`super::matmul_many`], [`Activation::gate`] and [`Activations::set`] make one after the other, where
/// that pays: weights of one quantised format whose outputs are whole blocks, and rows that are taken in
/// tiles and stay in the second-level cache. Otherwise returns `false`, and `out` is as it was.
///
/// # Panics
/// When the shapes do not fit, or `x` was set without the form that [`needed`] tells.
pub fn matmul_gated(
    exec: &Exec,
    x: &Activations,
    gate: &Packed,
    up: &Packed,
    activation: Activation,
    out: &mut Activations,
) -> bool {
    assert_eq!((gate.n(), gate.k()), (up.n(), up.k()), "one shape");
    assert_eq!(gate.k(), x.k(), "weights and activations share k");
    let int8 = needed(exec.numerics, gate.format()) == Need::Int8;
    if !int8 || gate.format() != up.format() || !x.shape().in_tiles() {
        return false;
    }
    assert!(x.has_int8(), "activations lack their int8 form");
    #[cfg(target_arch = "x86_64")]
    return tiles::gated(exec, x, [gate, up], activation, out);
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (activation, out);
        unreachable!("no processor of another kind takes rows in tiles")
    }
}

#[cfg(target_arch = "x86_64")]
mod tiles {
    use super::{Activation, Activations, Exec, Packed};
    use crate::activations::TILE_ROWS;
    use crate::matmul::avx512::{WIDE_SLAB, int8_pairs};
    use crate::matmul::plan::Plan;
    use crate::matmul::wide::Pairs;
    use crate::packed::layout::BLOCK;

    pub(super) fn gated(
        exec: &Exec,
        x: &Activations,
        [gate, up]: [&Packed; 2],
        activation: Activation,
        out: &mut Activations,
    ) -> bool {
        if x.k() == 0 || x.k() > WIDE_SLAB || !gate.n().is_multiple_of(BLOCK) {
            return false;
        }
        let isa = exec.usable_isa();
        let blocks = out.by_blocks(exec, x.rows(), gate.n());
        let finish = |block: usize, lot: usize, pairs: &[f32]| {
            let mut made = [0.0; TILE_ROWS * BLOCK];
            let made = &mut made[..pairs.len() / 2];
            activation.gate_pairs(isa, pairs, made);
            blocks.write(lot, block, made);
        };
        let ws = [gate];
        let plan = Plan::new(exec, x, &ws);
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
