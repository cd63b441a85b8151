//! One row in two: as it is rounded, and what that leaves, rounded again. Their products add up to one
//! with some fifteen bits, in the time of two rows, which is that of one where weights come from memory.

use super::forms::quantize;
use super::{Activations, Need, ROW_RECORD, RowBlock};
use crate::isa::Isa;
use crate::packed::layout::{BLOCK, Grain};

impl Activations {
    /// For one row at a time, of which products add up what int8 takes of it and what that leaves.
    pub fn split() -> Activations {
        Activations {
            is_split: true,
            ..Activations::new()
        }
    }

    /// Rows that one row of the input is held in.
    pub(crate) fn parts(&self) -> usize {
        match self.is_split {
            false => 1,
            true => 2,
        }
    }
}

/// The two rows that `x` is split into, `[2][k]`, for each form of `need` by itself.
pub(super) fn rows_of_forms(
    isa: Isa,
    need: Need,
    x: &[f32],
) -> impl Iterator<Item = (Need, Vec<f32>)> {
    let floats = need.f32.then(|| {
        let nothing = vec![0.0; x.len()];
        (Need::F32, [x, &nothing].concat())
    });
    let codes = need.grains().map(move |grain| {
        let rest = rest(isa, grain, x);
        (Need::of(grain), [x, &rest].concat())
    });
    floats.into_iter().chain(codes)
}

/// What the int8 form of `x` leaves of it.
fn rest(isa: Isa, grain: Grain, x: &[f32]) -> Vec<f32> {
    let mut record = vec![0; x.len().div_ceil(BLOCK) * ROW_RECORD];
    quantize(isa, grain, x, x.len(), 1, &mut record);
    let blocks = x.chunks(BLOCK).zip(record.chunks_exact(ROW_RECORD));
    blocks
        .flat_map(|(x, record)| {
            let read = RowBlock::read(record, 1, 0);
            let rounded = read
                .codes
                .iter()
                .map(move |&code| f32::from(code as i8) * read.scale);
            x.iter().zip(rounded).map(|(x, rounded)| x - rounded)
        })
        .collect()
}
