//! The products in plain Rust: the definition that vector kernels are tested against.

use super::Part;
use crate::activations::{ROW_RECORD, RowBlock};
use crate::packed::float_at;
use crate::packed::lane::LaneBlock;
use crate::packed::layout::{BLOCK, LANES, Layout};

/// Quantised weights · int8 activations: exact integer dot products of each block, f32 sums.
pub(super) fn int8(part: &Part) {
    let layout = Layout::of(part.w.format()).expect("int8 products have quantised weights");
    let shape = part.x.shape();
    for panel in part.panels.clone() {
        for lane in 0..part.lanes(panel) {
            part.rows()
                .for_each(|row| part.update(row, panel, lane, |_| 0.0));
            for b in 0..part.blocks() {
                let w = LaneBlock::read(&layout, part.w.panel(panel), part.blocks(), b, lane);
                for row in part.rows() {
                    let lot = &part.x.records()[row / shape.lot * shape.record_bytes()..];
                    let record = &lot[b * shape.lot * ROW_RECORD..];
                    let x = RowBlock::read(record, shape.lot, row % shape.lot);
                    let dot = x.scale * block_dot(&layout, &w, &x);
                    part.update(row, panel, lane, |sum| sum + dot);
                }
            }
        }
    }
}

/// A block's contribution in units of the activation scale.
fn block_dot(layout: &Layout, w: &LaneBlock, x: &RowBlock) -> f32 {
    let half = |s: usize| {
        let start = if layout.has_min() { 0 } else { x.negated[s] };
        let pairs = w.codes[16 * s..16 * s + 16]
            .iter()
            .zip(&x.codes[16 * s..16 * s + 16]);
        pairs.fold(start, |sum, (&w, &x)| {
            sum + i32::from(w) * i32::from(x as i8)
        })
    };
    let (low, high) = (half(0), half(1));
    let dot = if layout.subs == 1 {
        (low + high) as f32 * w.scale[0]
    } else {
        low as f32 * w.scale[0] + high as f32 * w.scale[1]
    };
    match (layout.has_min(), layout.subs) {
        (false, _) => dot,
        (true, 1) => dot + w.min[0] * x.sum,
        (true, _) => {
            let sum = |s: usize| x.negated[s] as f32 * (-1.0 / 128.0);
            dot + w.min[0] * sum(0) + w.min[1] * sum(1)
        }
    }
}

/// Weights of any format, dequantised block by block · f32 activations.
pub(super) fn float(part: &Part) {
    let (k, layout) = (part.w.k(), Layout::of(part.w.format()));
    let shape = part.x.shape();
    let mut values = [0.0; BLOCK];
    for panel in part.panels.clone() {
        let bytes = part.w.panel(panel);
        for lane in 0..part.lanes(panel) {
            part.rows()
                .for_each(|row| part.update(row, panel, lane, |_| 0.0));
            for first in (0..k).step_by(BLOCK) {
                let values = &mut values[..BLOCK.min(k - first)];
                match &layout {
                    Some(layout) => {
                        let b = first / BLOCK;
                        let block = LaneBlock::read(layout, bytes, part.blocks(), b, lane);
                        values.copy_from_slice(&block.values(layout));
                    }
                    None => values.iter_mut().enumerate().for_each(|(i, value)| {
                        *value = float_at(part.w.format(), bytes, (first + i) * LANES + lane);
                    }),
                }
                for row in part.rows() {
                    let start = row / shape.group * (shape.float_bytes() / 4);
                    let x = part.x.floats()[start + row % shape.group..]
                        .iter()
                        .step_by(shape.group)
                        .skip(first);
                    part.update(row, panel, lane, |sum| {
                        values.iter().zip(x).fold(sum, |sum, (w, x)| sum + w * x)
                    });
                }
            }
        }
    }
}
