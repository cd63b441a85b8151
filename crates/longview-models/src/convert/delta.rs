//! Gated delta layers of a Hugging Face folder as GGUF files have them.

use longview_kernels::recurrent::DeltaShape;

use super::inventory::Entry;
use super::stream::{Data, Rows};
use super::{check_shape, folder_tensor};
use crate::delta_rows::{DeltaFiles, Fused, value_heads};
use crate::error::ModelError;
use crate::load::rate_of_logarithm;
use crate::model::ModelFile;
use crate::names::Role;

/// What makes `entry`, a tensor of a gated delta layer; `None` where the folder's tensor of the same
/// role is the same.
pub(super) fn from_folder<'a>(
    model: &'a ModelFile,
    files: DeltaFiles,
    shape: &DeltaShape,
    entry: &Entry,
) -> Result<Option<Data<'a>>, ModelError> {
    let hidden = model.blueprint().hidden;
    let order = files.gguf_order();
    let heads_of = |before, width| value_heads(shape, order, before, width);
    let keys = 2 * shape.key_heads * shape.key_dim;
    let values = shape.value_heads * shape.value_dim;
    let matrix = |role, expected: [usize; 2], rows: Rows| {
        let tensor = folder_tensor(model, role, entry.layer, 0)?;
        check_shape(model.weight_file(), &tensor, &expected)?;
        Ok(Some(Data::Tensors {
            file: model.weight_file(),
            tensors: vec![tensor],
            rows,
            shift: 0.0,
        }))
    };
    let vector = |rows: Vec<usize>, change: fn(f32) -> f32| {
        let tensor = folder_tensor(model, entry.role, entry.layer, 0)?;
        check_shape(model.weight_file(), &tensor, &[rows.len()])?;
        let stored = tensor.to_f32();
        let values = rows.into_iter().map(|row| change(stored[row]));
        Ok(Some(Data::Values(values.collect())))
    };
    match (entry.role, files) {
        (Role::DeltaQkv | Role::DeltaZ, DeltaFiles::Fused) => {
            let fused = Fused::new(shape);
            let expected = [fused.qkvz_rows(), hidden];
            let rows = match entry.role {
                Role::DeltaQkv => fused.qkv,
                _ => fused.z,
            };
            matrix(Role::DeltaQkvz, expected, Rows::Listed(rows))
        }
        (Role::DeltaQkv, DeltaFiles::Separate) => {
            let rows = Rows::Listed(heads_of(keys, shape.value_dim));
            matrix(entry.role, [shape.channels(), hidden], rows)
        }
        (Role::DeltaZ, DeltaFiles::Separate) => {
            let rows = Rows::Listed(heads_of(0, shape.value_dim));
            matrix(entry.role, [values, hidden], rows)
        }
        (Role::DeltaBeta | Role::DeltaAlpha, _) => {
            let rows = Rows::Listed(heads_of(0, 1));
            matrix(entry.role, [shape.value_heads, hidden], rows)
        }
        (Role::DeltaOutput, DeltaFiles::Separate) => {
            let columns = Rows::Columns(heads_of(0, shape.value_dim));
            matrix(entry.role, [hidden, values], columns)
        }
        (Role::DeltaConv, _) => {
            let tensor = folder_tensor(model, entry.role, entry.layer, 0)?;
            check_shape(
                model.weight_file(),
                &tensor,
                &[shape.channels(), 1, shape.taps],
            )?;
            let stored = tensor.to_f32();
            let rows = heads_of(keys, shape.value_dim);
            let values = rows
                .into_iter()
                .flat_map(|row| stored[row * shape.taps..(row + 1) * shape.taps].to_vec());
            Ok(Some(Data::Values(values.collect())))
        }
        (Role::DeltaRate, _) => vector(heads_of(0, 1), rate_of_logarithm),
        (Role::DeltaRateBias, _) => vector(heads_of(0, 1), |x| x),
        (Role::DeltaNorm, _) => vector((0..shape.value_dim).collect(), |x| x),
        _ => Ok(None),
    }
}
