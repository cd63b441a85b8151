//! The products in plain Rust: the definition that vector kernels are tested against.

use super::Part;
use crate::activations::{ROW_RECORD, RowBlock};
use crate::packed::float_at;
use crate::packed::lane::LaneBlock;
use crate::packed::layout::{BLOCK, Grain, LANES, Layout, SEGMENT};

/// Quantised weights · int8 activations: exact integer dot products of each block, f32 sums.
pub(super) fn int8(part: &Part) {
    let layout = Layout::of(part.w.format()).expect("int8 products have quantised weights");
    match layout.grain() {
        Grain::Block => {
            by_blocks::<1>(part, &layout, |ws, x| {
                ws.iter()
                    .flatten()
                    .map(|w| block_dot(&layout, w, &x(0)))
                    .sum()
            });
        }
        Grain::Segment => {
            by_blocks::<SEGMENT>(part, &layout, |ws, x| segment_dot(&layout, ws, x));
        }
    }
}

/// Sums what `dot` makes of up to `N` blocks after another, which share an activation scale.
fn by_blocks<'x, const N: usize>(
    part: &Part<'x>,
    layout: &Layout,
    dot: impl Fn(&[Option<LaneBlock>; N], &dyn Fn(usize) -> RowBlock<'x>) -> f32,
) {
    let shape = part.x.shape();
    let (grain, records) = (layout.grain(), part.x.records(layout.grain()));
    for panel in part.panels.clone() {
        for lane in 0..part.lanes(panel) {
            part.rows()
                .for_each(|row| part.update(row, panel, lane, |_| 0.0));
            for first in (0..part.blocks()).step_by(N) {
                let read = |b: usize| {
                    let (bytes, blocks) = (part.w.panel(panel), part.blocks());
                    let there = first + b < blocks;
                    there.then(|| LaneBlock::read(layout, bytes, blocks, first + b, lane))
                };
                let ws: [Option<LaneBlock>; N] = std::array::from_fn(read);
                for row in part.rows() {
                    let lot = &records[row / shape.lot * shape.record_bytes(grain)..];
                    let x = |b: usize| {
                        let record = &lot[(first + b) * shape.lot * ROW_RECORD..];
                        RowBlock::read(record, shape.lot, row % shape.lot)
                    };
                    let added = x(0).scale * dot(&ws, &x);
                    part.update(row, panel, lane, |sum| sum + added);
                }
            }
        }
    }
}

/// A segment's contribution in units of the activation scale: whole numbers but for the factors.
fn segment_dot<'a>(
    layout: &Layout,
    ws: &[Option<LaneBlock>; SEGMENT],
    x: &dyn Fn(usize) -> RowBlock<'a>,
) -> f32 {
    let (mut scaled, mut minima, mut factors) = (0, 0, (0.0, 0.0));
    for (b, w) in ws.iter().flatten().enumerate() {
        let x = x(b);
        for s in 0..2 {
            scaled += w.small_scale[s] * (half_dot(layout, w, &x, s) >> layout.dropped_bits());
            minima += w.small_min[s] * (x.negated[s] / -128);
        }
        factors = (w.factor, w.min_factor);
    }
    let dot = scaled as f32 * factors.0;
    match layout.has_min() {
        true => minima as f32 * factors.1 + dot,
        false => dot,
    }
}

/// The dot product of the codes of a half.
fn half_dot(layout: &Layout, w: &LaneBlock, x: &RowBlock, s: usize) -> i32 {
    let start = if layout.has_min() { 0 } else { x.negated[s] };
    let half = 16 * s..16 * s + 16;
    let pairs = w.codes[half.clone()].iter().zip(&x.codes[half]);
    pairs.fold(start, |sum, (&w, &x)| {
        sum + i32::from(w) * i32::from(x as i8)
    })
}

/// A block's contribution in units of the activation scale.
fn block_dot(layout: &Layout, w: &LaneBlock, x: &RowBlock) -> f32 {
    let (low, high) = (half_dot(layout, w, x, 0), half_dot(layout, w, x, 1));
    let dot = (low + high) as f32 * w.scale[0];
    match layout.has_min() {
        false => dot,
        true => dot + w.min[0] * x.sum,
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
