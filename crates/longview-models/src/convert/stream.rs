//! Tensors to a file, one piece at a time: never more than a few megabytes are in memory.

use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use longview_kernels::format::{QuantizeError, dequantize, quantize};
use longview_kernels::{Format, Pool};
use longview_weights::{GgufHeader, Tensor, WeightFile};

use super::random::Noise;
use super::{OnProgress, Progress, Report};
use crate::error::ModelError;

/// Elements converted between two writes, and by one task of the pool.
const PIECE: usize = 1 << 22;
const TASK: usize = 1 << 16;

/// A tensor to be written.
pub(crate) struct Planned<'a> {
    pub(crate) name: String,
    pub(crate) format: Format,
    pub(crate) shape: Vec<usize>,
    pub(crate) data: Data<'a>,
}

/// Writes the bytes of a range of elements.
type Fill<'a> = dyn Fn(Range<usize>, &mut [u8]) -> Result<(), ModelError> + Sync + 'a;

/// Where the elements of a tensor come from.
pub(crate) enum Data<'a> {
    /// Tensors of a model, one after another (the experts of a layer, or just one).
    Tensors {
        file: &'a WeightFile,
        tensors: Vec<Tensor<'a>>,
        rows: Rows,
        /// Added to every element.
        shift: f32,
    },
    /// Numbers at hand, written in f32.
    Values(Vec<f32>),
    /// Random blocks.
    Noise(Noise),
}

/// Which row of the source becomes row `r`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Rows {
    /// Row `r`.
    AsTheyAre,
    /// Half-split heads of `head_dim` rows become interleaved ones: row `2i + h` of a head was
    /// row `h · head_dim / 2 + i`.
    Interleaved {
        /// Rows of a head.
        head_dim: usize,
    },
    /// The row in place `r` of this list, which may leave some out.
    Listed(Vec<usize>),
    /// Row `r`, whose element `i` becomes the one in place `i` of this list.
    Columns(Vec<usize>),
}

impl Rows {
    fn source(&self, row: usize) -> usize {
        match self {
            Rows::AsTheyAre | Rows::Columns(_) => row,
            Rows::Listed(rows) => rows[row],
            Rows::Interleaved { head_dim } => {
                let head_dim = *head_dim;
                let (head, channel) = (row / head_dim, row % head_dim);
                head * head_dim + channel % 2 * (head_dim / 2) + channel / 2
            }
        }
    }
}

/// Writes `header` and `tensors` as the file `out`, which appears whole or not at all.
pub(crate) fn write(
    mut header: GgufHeader,
    tensors: &[Planned<'_>],
    out: &Path,
    pool: &Pool,
    on_progress: &mut OnProgress<'_>,
) -> Result<Report, ModelError> {
    for tensor in tensors {
        header.tensor(&tensor.name, tensor.format, &tensor.shape)?;
    }
    let mut report = Report {
        tensors: tensors.len(),
        bytes: header.file_bytes(),
        ..Report::default()
    };
    let total: u64 = tensors.iter().map(|tensor| tensor.bytes() as u64).sum();
    let mut writer = header.create(out)?;
    let mut done = 0;
    for tensor in tensors {
        tensor.each_piece(pool, &mut |piece| {
            writer.append(&tensor.name, piece)?;
            done += piece.len() as u64;
            let progress = Progress {
                tensor: &tensor.name,
                done,
                total,
            };
            match on_progress(progress) {
                ControlFlow::Continue(()) => Ok(()),
                ControlFlow::Break(()) => Err(ModelError::Stopped),
            }
        })?;
        report.count(tensor.format, tensor.bytes() as u64);
    }
    writer.finish()?;
    Ok(report)
}

impl Planned<'_> {
    /// Bytes in the file.
    fn bytes(&self) -> usize {
        self.format
            .bytes_for(self.elements())
            .expect("the header was built with this tensor, so its rows fill whole blocks")
    }

    fn row_len(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    fn each_piece(
        &self,
        pool: &Pool,
        put: &mut dyn FnMut(&[u8]) -> Result<(), ModelError>,
    ) -> Result<(), ModelError> {
        match &self.data {
            Data::Values(values) => {
                let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                put(&bytes)
            }
            Data::Tensors {
                file,
                tensors,
                rows,
                shift,
            } => {
                let unchanged = *rows == Rows::AsTheyAre && *shift == 0.0;
                for tensor in tensors {
                    if unchanged && tensor.format == self.format {
                        tensor.data.chunks(PIECE).try_for_each(&mut *put)?;
                    } else {
                        self.convert(file, tensor, (rows, *shift), pool, put)?;
                    }
                    file.release(tensor.name, 0..tensor.data.len());
                }
                Ok(())
            }
            Data::Noise(noise) => {
                self.in_pieces(pool, put, self.elements(), self.row_len(), &|at, out| {
                    noise.fill(self.format, at.start, out);
                    Ok(())
                })
            }
        }
    }

    fn convert(
        &self,
        file: &WeightFile,
        tensor: &Tensor<'_>,
        (rows, shift): (&Rows, f32),
        pool: &Pool,
        put: &mut dyn FnMut(&[u8]) -> Result<(), ModelError>,
    ) -> Result<(), ModelError> {
        // A bias is reordered as a matrix with rows of one element.
        let k = match rows {
            Rows::Interleaved { .. } if tensor.shape.len() == 1 => 1,
            _ => tensor.row_len(),
        };
        let row_bytes = k / tensor.format.block_len() * tensor.format.block_bytes();
        let elements = match rows {
            Rows::Listed(rows) => rows.len() * k,
            _ => tensor.elements(),
        };
        self.in_pieces(pool, put, elements, k, &|at, out| {
            let mut values = vec![0.0; at.len()];
            for (row, values) in (at.start / k..).zip(values.chunks_mut(k)) {
                let bytes = &tensor.data[rows.source(row) * row_bytes..][..row_bytes];
                dequantize(tensor.format, bytes, values);
                if let Rows::Columns(columns) = rows {
                    let stored = values.to_vec();
                    let ordered = columns.iter().map(|&column| stored[column]);
                    values
                        .iter_mut()
                        .zip(ordered)
                        .for_each(|(to, from)| *to = from);
                }
            }
            if shift != 0.0 {
                values.iter_mut().for_each(|value| *value += shift);
            }
            let mut blocks = Vec::with_capacity(out.len());
            quantize(self.format, &values, &mut blocks)
                .map_err(|why| refusal(file, tensor.name, &why))?;
            out.copy_from_slice(&blocks);
            Ok(())
        })
    }

    /// Has `fill` make `elements` elements, a range of whole rows of `k` at a time, and hands
    /// their bytes to `put` in order.
    fn in_pieces(
        &self,
        pool: &Pool,
        put: &mut dyn FnMut(&[u8]) -> Result<(), ModelError>,
        elements: usize,
        k: usize,
        fill: &Fill<'_>,
    ) -> Result<(), ModelError> {
        let bytes_of =
            |elements: usize| elements / self.format.block_len() * self.format.block_bytes();
        let task = k * (TASK / k).max(1);
        let piece = task * (PIECE / task).max(1);
        let mut bytes = vec![0; bytes_of(piece.min(elements))];
        let failed = Mutex::new(None);
        for start in (0..elements).step_by(piece) {
            let len = piece.min(elements - start);
            let out = &mut bytes[..bytes_of(len)];
            pool.for_each_chunk(out, bytes_of(task), |index, out, _| {
                let first = start + index * task;
                let last = (first + task).min(start + len);
                if let Err(error) = fill(first..last, out) {
                    let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                    failed.get_or_insert(error);
                }
            });
            let failed = failed.lock().unwrap_or_else(PoisonError::into_inner).take();
            match failed {
                Some(error) => return Err(error),
                None => put(out)?,
            }
        }
        Ok(())
    }

    fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

fn refusal(file: &WeightFile, tensor: &str, why: &QuantizeError) -> ModelError {
    let remedy = match why {
        QuantizeError::OutOfRange { value, .. } if value.is_finite() => "choose bf16 or f32",
        _ => "the model may be damaged, so get it again",
    };
    ModelError::Tensor {
        file: file.name(),
        tensor: tensor.to_owned(),
        problem: format!("{why}; {remedy}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::interleaved_row;

    #[test]
    fn interleaving_undoes_what_loading_does() {
        let rows = Rows::Interleaved { head_dim: 6 };
        for row in 0..18 {
            assert_eq!(rows.source(interleaved_row(row, 6)), row);
        }
    }
}
