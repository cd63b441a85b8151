//! From a weight file to the layers the forward pass runs, packed for the kernels.

mod ahead;
mod delta;
mod feed_forward;

use longview_kernels::{Format, Packed, Pool};
use longview_weights::{Tensor, WeightFile};
use std::collections::HashSet;
use std::ops::Range;
use std::sync::Mutex;

use crate::arch::{Architecture, GgufRows, NormWeights};
use crate::blueprint::{
    self, AttentionBlueprint, Bias, Blueprint, LayerBlueprint, Norms, OutputGate, Projections,
    QkNorm,
};
use crate::error::ModelError;
use crate::names::{self, Naming, Role};
pub(crate) use ahead::Ahead;
pub(crate) use delta::{Delta, rate_of_logarithm};
pub(crate) use feed_forward::{Gated, Mlp, Shared};

/// The packed weights of a decoder, the embedding excepted: its rows are read where they lie.
pub(crate) struct Weights {
    pub(crate) layers: Vec<Layer>,
    /// `[hidden]`
    pub(crate) output_norm: Vec<f32>,
    /// `[vocab][hidden]`; the embedding again where the two are tied.
    pub(crate) output: Packed,
}

/// One layer's weights.
pub(crate) struct Layer {
    pub(crate) mixer_norm: Vec<f32>,
    pub(crate) mixer: Mixer,
    pub(crate) post_attention_norm: Option<Vec<f32>>,
    pub(crate) ffn_norm: Vec<f32>,
    pub(crate) mlp: Mlp,
    pub(crate) post_ffn_norm: Option<Vec<f32>>,
}

/// The weights of the part in which rows learn of each other.
pub(crate) enum Mixer {
    Attention(Attention),
    GatedDelta(Delta),
}

/// The weights of an attention.
pub(crate) struct Attention {
    pub(crate) query: Linear,
    /// What the heads' results are gated with.
    pub(crate) gate: Option<Linear>,
    pub(crate) key: Linear,
    pub(crate) value: Linear,
    /// `[head_dim]` each.
    pub(crate) head_norms: Option<(Vec<f32>, Vec<f32>)>,
    pub(crate) output: Linear,
}

/// A matrix and the bias added to its products.
pub(crate) struct Linear {
    pub(crate) weight: Packed,
    /// `[n]`
    pub(crate) bias: Option<Vec<f32>>,
}

/// Reads the tensors of one file by role.
pub(crate) struct Loader<'a> {
    pub(crate) file: &'a WeightFile,
    pub(crate) architecture: &'static Architecture,
    pub(crate) pool: &'a Pool,
    /// Whether the embedding also makes the logits.
    pub(crate) tied: bool,
    /// Names of the tensors read so far.
    pub(crate) read: Mutex<HashSet<String>>,
    /// Has the disk read what comes next.
    pub(crate) ahead: &'a Ahead<'a>,
}

/// Where a matrix lies: a role, and inside its tensor the rows wanted.
#[derive(Clone)]
struct Place {
    role: Role,
    layer: usize,
    expert: usize,
    /// All rows of the tensor as the settings have it, of which `rows` are wanted.
    all_rows: usize,
    rows: Range<usize>,
}

impl Loader<'_> {
    /// All weights of `blueprint`; `on_layer(done)` is called after every layer.
    pub(crate) fn load(
        &self,
        blueprint: &Blueprint,
        on_layer: &mut dyn FnMut(usize),
    ) -> Result<Weights, ModelError> {
        let role = if self.tied {
            Role::TokenEmbedding
        } else {
            Role::Output
        };
        let head = Place::whole(role, 0, 0, blueprint.vocab);
        // Where it is the embedding again it comes first in the file, and the disk goes on from there.
        let output = self.matrix(&head, blueprint.hidden, &|row| row)?;
        let mut layers = Vec::with_capacity(blueprint.layers.len());
        for (index, layer) in blueprint.layers.iter().enumerate() {
            layers.push(self.layer(blueprint.hidden, layer, index)?);
            on_layer(index + 1);
        }
        self.check_all_read(blueprint)?;
        Ok(Weights {
            layers,
            output_norm: self.norm(Role::OutputNorm, 0, blueprint.hidden)?,
            output,
        })
    }

    fn weight_name(&self, role: Role, layer: usize, expert: usize) -> String {
        names::weight(self.naming(), self.architecture.names, role, layer, expert)
    }

    /// Whether the file has a weight with this role.
    fn has(&self, role: Role, layer: usize) -> bool {
        let name = self.weight_name(role, layer, 0);
        self.file.find_tensor(&name).is_some()
    }

    /// Refuses a file whose layers hold tensors that the blueprint has no place for: leaving them
    /// out would compute something else than the model.
    fn check_all_read(&self, blueprint: &Blueprint) -> Result<(), ModelError> {
        let prefix = match self.naming() {
            Naming::HuggingFace => "model.layers.",
            Naming::Gguf => "blk.",
        };
        let read = self.read.lock().unwrap_or_else(|error| error.into_inner());
        let layer_of = |name: &str| -> Option<usize> {
            name.strip_prefix(prefix)?.split('.').next()?.parse().ok()
        };
        let unknown = self.file.tensors().find(|tensor| {
            // Rotary frequencies are computed; old checkpoints carry them along.
            layer_of(tensor.name).is_some_and(|layer| layer < blueprint.layers.len())
                && !tensor.name.ends_with("rotary_emb.inv_freq")
                && !read.contains(tensor.name)
        });
        match unknown {
            None => Ok(()),
            Some(tensor) => Err(ModelError::Unread {
                file: self.file.name(),
                tensor: tensor.name.to_owned(),
                architecture: self.architecture.name,
            }),
        }
    }

    /// The tensor with this name, noted as read, which is about to happen.
    fn tensor(&self, name: &str) -> Result<Tensor<'_>, ModelError> {
        let tensor = self.file.tensor(name)?;
        self.ahead.reached(name, 0);
        let mut read = self.read.lock().unwrap_or_else(|error| error.into_inner());
        read.insert(name.to_owned());
        Ok(tensor)
    }

    fn layer(
        &self,
        hidden: usize,
        layer: &LayerBlueprint,
        index: usize,
    ) -> Result<Layer, ModelError> {
        let both = layer.norms == Norms::BeforeAndAfter;
        Ok(Layer {
            mixer_norm: self.norm(Role::AttentionNorm, index, hidden)?,
            mixer: match &layer.mixer {
                blueprint::Mixer::Attention(attention) => {
                    Mixer::Attention(self.attention(hidden, attention, index)?)
                }
                blueprint::Mixer::GatedDelta(shape) => {
                    Mixer::GatedDelta(self.delta(hidden, shape, index)?)
                }
            },
            post_attention_norm: self.norm_if(both, Role::PostAttentionNorm, index, hidden)?,
            ffn_norm: self.norm(Role::FfnNorm, index, hidden)?,
            mlp: self.mlp(hidden, &layer.mlp, index)?,
            post_ffn_norm: self.norm_if(both, Role::PostFfnNorm, index, hidden)?,
        })
    }

    fn attention(
        &self,
        hidden: usize,
        attention: &AttentionBlueprint,
        index: usize,
    ) -> Result<Attention, ModelError> {
        let head_dim = attention.head_dim;
        let (q_rows, kv_rows) = (attention.heads * head_dim, attention.kv_heads * head_dim);
        let places = match attention.projections {
            Projections::Separate => [
                Place::whole(Role::Query, index, 0, q_rows),
                Place::whole(Role::Key, index, 0, kv_rows),
                Place::whole(Role::Value, index, 0, kv_rows),
            ],
            Projections::Fused => {
                let fused = Place::whole(Role::QueryKeyValue, index, 0, q_rows + 2 * kv_rows);
                [
                    fused.part(0..q_rows),
                    fused.part(q_rows..q_rows + kv_rows),
                    fused.part(q_rows + kv_rows..q_rows + 2 * kv_rows),
                ]
            }
        };
        let turned = |row: usize| self.half_split_source(row, head_dim);
        let straight = |row: usize| row;
        let bias = attention.qkv_bias;
        let (query, gate) = match attention.output_gate {
            OutputGate::Absent => (self.linear(&places[0], hidden, bias, &turned)?, None),
            OutputGate::Sigmoid => {
                let both = Place::whole(Role::Query, index, 0, 2 * q_rows);
                let [queries, gates] = [0, head_dim].map(|half| -> Vec<usize> {
                    let of_head = |head: usize| {
                        let start = 2 * head * head_dim + half;
                        start..start + head_dim
                    };
                    (0..attention.heads).flat_map(of_head).collect()
                });
                (
                    self.gathered(&both, hidden, bias, &queries)?,
                    Some(self.gathered(&both, hidden, bias, &gates)?),
                )
            }
        };
        Ok(Attention {
            query,
            gate,
            key: self.linear(&places[1], hidden, bias, &turned)?,
            value: self.linear(&places[2], hidden, bias, &straight)?,
            head_norms: match attention.qk_norm {
                QkNorm::Absent => None,
                QkNorm::PerHead => Some((
                    self.norm(Role::QueryNorm, index, head_dim)?,
                    self.norm(Role::KeyNorm, index, head_dim)?,
                )),
            },
            output: self.linear(
                &Place::whole(Role::AttentionOutput, index, 0, hidden),
                q_rows,
                attention.output_bias,
                &straight,
            )?,
        })
    }

    fn linear(
        &self,
        place: &Place,
        k: usize,
        bias: Bias,
        row_order: &(dyn Fn(usize) -> usize + Sync),
    ) -> Result<Linear, ModelError> {
        let weight = self.matrix(place, k, row_order)?;
        let bias = self.bias(place, bias)?;
        let bias = bias.map(|all| {
            let rows = 0..place.rows.len();
            rows.map(|n| all[place.rows.start + row_order(n)]).collect()
        });
        Ok(Linear { weight, bias })
    }

    /// The matrix of the rows `rows` of the tensor at `place`, in this order, which may be any.
    fn gathered(
        &self,
        place: &Place,
        k: usize,
        bias: Bias,
        rows: &[usize],
    ) -> Result<Linear, ModelError> {
        let name = self.weight_name(place.role, place.layer, place.expert);
        let tensor = self.tensor(&name)?;
        check_shape(self.file, &tensor, &[place.all_rows, k])?;
        let row_bytes = tensor.row_bytes();
        let mut bytes = Vec::with_capacity(rows.len() * row_bytes);
        for row in rows {
            bytes.extend_from_slice(&tensor.data[row * row_bytes..(row + 1) * row_bytes]);
        }
        let packed = Packed::pack(tensor.format, rows.len(), k, &bytes, &|row| row, self.pool);
        let weight = packed.map_err(|source| ModelError::Pack {
            file: self.file.name(),
            tensor: name.clone(),
            source,
        })?;
        self.file.release(&name, 0..tensor.data.len());
        let bias = self.bias(place, bias)?;
        Ok(Linear {
            weight,
            bias: bias.map(|all| rows.iter().map(|&row| all[row]).collect()),
        })
    }

    /// The bias of all rows of the tensor at `place`.
    fn bias(&self, place: &Place, bias: Bias) -> Result<Option<Vec<f32>>, ModelError> {
        if bias == Bias::Absent {
            return Ok(None);
        }
        let names = self.architecture.names;
        let name = names::bias(self.naming(), names, place.role, place.layer, place.expert);
        let tensor = self.tensor(&name)?;
        check_shape(self.file, &tensor, &[place.all_rows])?;
        Ok(Some(tensor.to_f32()))
    }

    fn matrix(
        &self,
        place: &Place,
        k: usize,
        row_order: &(dyn Fn(usize) -> usize + Sync),
    ) -> Result<Packed, ModelError> {
        let name = self.weight_name(place.role, place.layer, place.expert);
        let tensor = self.tensor(&name)?;
        if tensor.shape.len() == 3 {
            // The experts of a layer: [experts][rows][k], one after another.
            self.check_rows(&tensor, place.all_rows, k)?;
        } else {
            check_shape(self.file, &tensor, &[place.all_rows, k])?;
        }
        let row_bytes = tensor.row_bytes();
        let bytes = &tensor.data[place.rows.start * row_bytes..place.rows.end * row_bytes];
        let start = place.rows.start * row_bytes;
        Packed::pack_in_pieces(
            tensor.format,
            place.rows.len(),
            k,
            bytes,
            row_order,
            self.pool,
            &mut |done| {
                let done = start + done.start..start + done.end;
                self.ahead.reached(&name, done.end);
                self.file.release(&name, done);
            },
        )
        .map_err(|source| ModelError::Pack {
            file: self.file.name(),
            tensor: name.clone(),
            source,
        })
    }

    fn norm(&self, role: Role, layer: usize, len: usize) -> Result<Vec<f32>, ModelError> {
        let mut weights = self.vector(role, layer, len)?;
        if self.naming() != Naming::Gguf
            && self.architecture.norm_weights == NormWeights::FactorMinusOne
        {
            weights.iter_mut().for_each(|weight| *weight += 1.0);
        }
        Ok(weights)
    }

    /// A tensor of `len` numbers; it may be stored as a matrix of one row.
    fn vector(&self, role: Role, layer: usize, len: usize) -> Result<Vec<f32>, ModelError> {
        let tensor = self.tensor(&self.weight_name(role, layer, 0))?;
        if tensor.shape != [1, len] {
            check_shape(self.file, &tensor, &[len])?;
        }
        Ok(tensor.to_f32())
    }

    fn norm_if(
        &self,
        present: bool,
        role: Role,
        layer: usize,
        len: usize,
    ) -> Result<Option<Vec<f32>>, ModelError> {
        if present {
            self.norm(role, layer, len).map(Some)
        } else {
            Ok(None)
        }
    }

    /// The row of the file that holds row `row` of a query or key projection in half-split order.
    fn half_split_source(&self, row: usize, head_dim: usize) -> usize {
        if self.naming() != Naming::Gguf || self.architecture.gguf_rows == GgufRows::HalfSplit {
            return row;
        }
        interleaved_row(row, head_dim)
    }

    fn naming(&self) -> Naming {
        naming(self.file)
    }

    fn check_rows(&self, tensor: &Tensor<'_>, rows: usize, k: usize) -> Result<(), ModelError> {
        if tensor.rows() == rows && tensor.row_len() == k {
            return Ok(());
        }
        let expected = vec![tensor.shape[0], rows / tensor.shape[0].max(1), k];
        Err(ModelError::Shape {
            file: self.file.name(),
            tensor: tensor.name.to_owned(),
            found: tensor.shape.to_vec(),
            expected,
        })
    }
}

impl Place {
    fn whole(role: Role, layer: usize, expert: usize, rows: usize) -> Place {
        Place {
            role,
            layer,
            expert,
            all_rows: rows,
            rows: 0..rows,
        }
    }

    fn part(&self, rows: Range<usize>) -> Place {
        Place {
            rows,
            ..self.clone()
        }
    }
}

/// Checks a tensor of `file` against the shape that the settings ask for.
pub(crate) fn check_shape(
    file: &WeightFile,
    tensor: &Tensor<'_>,
    expected: &[usize],
) -> Result<(), ModelError> {
    if tensor.shape == expected {
        return Ok(());
    }
    Err(ModelError::Shape {
        file: file.name(),
        tensor: tensor.name.to_owned(),
        found: tensor.shape.to_vec(),
        expected: expected.to_vec(),
    })
}

/// The naming that a file follows.
pub(crate) fn naming(file: &WeightFile) -> Naming {
    match file {
        WeightFile::Gguf(_) => Naming::Gguf,
        _ => Naming::HuggingFace,
    }
}

/// Where GGUF's interleaved order keeps row `row` of a projection in half-split order: channel
/// `i` of either half of a head becomes channel `2i` or `2i + 1`.
pub(crate) fn interleaved_row(row: usize, head_dim: usize) -> usize {
    let (head, channel) = (row / head_dim, row % head_dim);
    let half = head_dim / 2;
    head * head_dim + 2 * (channel % half) + channel / half
}

/// The tensors of `file` that make a model of `layers` layers: others guess several tokens at once.
pub(crate) fn language_tensors(
    file: &WeightFile,
    layers: usize,
) -> impl Iterator<Item = Tensor<'_>> {
    let naming = naming(file);
    let belongs = move |name: &str| match naming {
        Naming::HuggingFace => !name.starts_with("mtp."),
        Naming::Gguf => match name
            .strip_prefix("blk.")
            .and_then(|rest| rest.split_once('.'))
        {
            Some((layer, _)) => layer.parse().is_ok_and(|layer: usize| layer < layers),
            None => true,
        },
    };
    file.tensors().filter(move |tensor| belongs(tensor.name))
}

/// Bytes that the weights of `file` will hold once packed, without packing them: every matrix
/// packed (the embedding only where it also makes the logits), and vectors in f32.
pub(crate) fn packed_bytes(file: &WeightFile, layers: usize, embedding: &str, tied: bool) -> u64 {
    let of_tensor = |tensor: Tensor<'_>| {
        let (rows, k) = (tensor.rows(), tensor.row_len());
        let packed = Packed::packed_bytes(tensor.format, rows, k) as u64;
        let is_embedding = tensor.name == embedding;
        match () {
            () if is_embedding && !tied => 0,
            () if tensor.shape.len() < 2 => Format::F32.block_bytes() as u64 * k as u64,
            () => packed,
        }
    };
    language_tensors(file, layers).map(of_tensor).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaved_rows_are_a_permutation_of_each_head() {
        let order: Vec<usize> = (0..8).map(|row| interleaved_row(row, 4)).collect();
        assert_eq!(order, [0, 2, 1, 3, 4, 6, 5, 7]);
    }
}
