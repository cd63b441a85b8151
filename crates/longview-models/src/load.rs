//! From a weight file to the layers the forward pass runs, packed for the kernels.

use longview_kernels::{Format, Packed, Pool};
use longview_weights::{Tensor, WeightFile};
use std::collections::HashSet;
use std::ops::Range;
use std::sync::Mutex;

use crate::arch::{Architecture, GgufRows, NormWeights};
use crate::blueprint::{Bias, Blueprint, LayerBlueprint, MlpBlueprint, Norms, Projections, QkNorm};
use crate::error::ModelError;
use crate::names::{self, Naming, Role};

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
    pub(crate) attention_norm: Vec<f32>,
    pub(crate) query: Linear,
    pub(crate) key: Linear,
    pub(crate) value: Linear,
    /// `[head_dim]` each.
    pub(crate) head_norms: Option<(Vec<f32>, Vec<f32>)>,
    pub(crate) attention_output: Linear,
    pub(crate) post_attention_norm: Option<Vec<f32>>,
    pub(crate) ffn_norm: Vec<f32>,
    pub(crate) mlp: Mlp,
    pub(crate) post_ffn_norm: Option<Vec<f32>>,
}

/// The weights of a feed-forward part.
pub(crate) enum Mlp {
    Gated(Gated),
    Experts { router: Linear, experts: Vec<Gated> },
}

/// A gated feed-forward part.
pub(crate) struct Gated {
    pub(crate) gate: Linear,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
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
        let mut layers = Vec::with_capacity(blueprint.layers.len());
        for (index, layer) in blueprint.layers.iter().enumerate() {
            layers.push(self.layer(blueprint.hidden, layer, index)?);
            on_layer(index + 1);
        }
        let role = if self.tied {
            Role::TokenEmbedding
        } else {
            Role::Output
        };
        let head = Place::whole(role, 0, 0, blueprint.vocab);
        self.check_all_read(blueprint)?;
        Ok(Weights {
            layers,
            output_norm: self.norm(Role::OutputNorm, 0, blueprint.hidden)?,
            output: self.matrix(&head, blueprint.hidden, &|row| row)?,
        })
    }

    /// The name of the tensor with this role, without its `.weight`.
    pub(crate) fn stem(&self, role: Role, layer: usize, expert: usize) -> String {
        names::stem(self.naming(), self.architecture.names, role, layer, expert)
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

    /// The tensor with this name, noted as read.
    fn tensor(&self, name: &str) -> Result<Tensor<'_>, ModelError> {
        let tensor = self.file.tensor(name)?;
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
        let attention = &layer.attention;
        let (q_rows, kv_rows) = (
            attention.heads * attention.head_dim,
            attention.kv_heads * attention.head_dim,
        );
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
        let head_dim = attention.head_dim;
        let turned = |row: usize| self.half_split_source(row, head_dim);
        let straight = |row: usize| row;
        let bias = attention.qkv_bias;
        let both = layer.norms == Norms::BeforeAndAfter;
        Ok(Layer {
            attention_norm: self.norm(Role::AttentionNorm, index, hidden)?,
            query: self.linear(&places[0], hidden, bias, &turned)?,
            key: self.linear(&places[1], hidden, bias, &turned)?,
            value: self.linear(&places[2], hidden, bias, &straight)?,
            head_norms: match attention.qk_norm {
                QkNorm::Absent => None,
                QkNorm::PerHead => Some((
                    self.norm(Role::QueryNorm, index, head_dim)?,
                    self.norm(Role::KeyNorm, index, head_dim)?,
                )),
            },
            attention_output: self.linear(
                &Place::whole(Role::AttentionOutput, index, 0, hidden),
                q_rows,
                attention.output_bias,
                &straight,
            )?,
            post_attention_norm: self.norm_if(both, Role::PostAttentionNorm, index, hidden)?,
            ffn_norm: self.norm(Role::FfnNorm, index, hidden)?,
            mlp: self.mlp(hidden, &layer.mlp, index)?,
            post_ffn_norm: self.norm_if(both, Role::PostFfnNorm, index, hidden)?,
        })
    }

    fn mlp(&self, hidden: usize, mlp: &MlpBlueprint, layer: usize) -> Result<Mlp, ModelError> {
        let straight = |row: usize| row;
        match *mlp {
            MlpBlueprint::Gated {
                ffn,
                projections,
                bias,
                ..
            } => {
                let [gate, up] = match projections {
                    Projections::Separate => [
                        Place::whole(Role::Gate, layer, 0, ffn),
                        Place::whole(Role::Up, layer, 0, ffn),
                    ],
                    Projections::Fused => {
                        let fused = Place::whole(Role::GateUp, layer, 0, 2 * ffn);
                        [fused.part(0..ffn), fused.part(ffn..2 * ffn)]
                    }
                };
                let down = Place::whole(Role::Down, layer, 0, hidden);
                Ok(Mlp::Gated(Gated {
                    gate: self.linear(&gate, hidden, bias, &straight)?,
                    up: self.linear(&up, hidden, bias, &straight)?,
                    down: self.linear(&down, ffn, bias, &straight)?,
                }))
            }
            MlpBlueprint::Experts { ffn, experts, .. } => {
                let router = Place::whole(Role::Router, layer, 0, experts);
                let matrix = |role, expert, n: usize, k: usize| {
                    let place = match self.naming() {
                        Naming::HuggingFace => Place::whole(role, layer, expert, n),
                        Naming::Gguf => Place::whole(role, layer, 0, experts * n)
                            .part(expert * n..(expert + 1) * n),
                    };
                    self.linear(&place, k, Bias::Absent, &straight)
                };
                let expert = |expert| -> Result<Gated, ModelError> {
                    Ok(Gated {
                        gate: matrix(Role::ExpertGate, expert, ffn, hidden)?,
                        up: matrix(Role::ExpertUp, expert, ffn, hidden)?,
                        down: matrix(Role::ExpertDown, expert, hidden, ffn)?,
                    })
                };
                Ok(Mlp::Experts {
                    router: self.linear(&router, hidden, Bias::Absent, &straight)?,
                    experts: (0..experts).map(expert).collect::<Result<_, _>>()?,
                })
            }
        }
    }

    fn linear(
        &self,
        place: &Place,
        k: usize,
        bias: Bias,
        row_order: &(dyn Fn(usize) -> usize + Sync),
    ) -> Result<Linear, ModelError> {
        let weight = self.matrix(place, k, row_order)?;
        let bias = match bias {
            Bias::Absent => None,
            Bias::Present => {
                let name = format!("{}.bias", self.stem(place.role, place.layer, place.expert));
                let tensor = self.tensor(&name)?;
                check_shape(&self.file.name(), &tensor, &[place.all_rows])?;
                let all = tensor.to_f32();
                Some(
                    (0..place.rows.len())
                        .map(|n| all[place.rows.start + row_order(n)])
                        .collect(),
                )
            }
        };
        Ok(Linear { weight, bias })
    }

    fn matrix(
        &self,
        place: &Place,
        k: usize,
        row_order: &(dyn Fn(usize) -> usize + Sync),
    ) -> Result<Packed, ModelError> {
        let name = format!(
            "{}.weight",
            self.stem(place.role, place.layer, place.expert)
        );
        let tensor = self.tensor(&name)?;
        if tensor.shape.len() == 3 {
            // The experts of a layer: [experts][rows][k], one after another.
            self.check_rows(&tensor, place.all_rows, k)?;
        } else {
            check_shape(&self.file.name(), &tensor, &[place.all_rows, k])?;
        }
        let row_bytes = tensor.row_bytes();
        let bytes = &tensor.data[place.rows.start * row_bytes..place.rows.end * row_bytes];
        let packed = Packed::pack(
            tensor.format,
            place.rows.len(),
            k,
            bytes,
            row_order,
            self.pool,
        )
        .map_err(|source| ModelError::Pack {
            file: self.file.name(),
            tensor: name.clone(),
            source,
        })?;
        if place.rows.end == place.all_rows {
            self.file.release(&name);
        }
        Ok(packed)
    }

    fn norm(&self, role: Role, layer: usize, len: usize) -> Result<Vec<f32>, ModelError> {
        let tensor = self.tensor(&format!("{}.weight", self.stem(role, layer, 0)))?;
        check_shape(&self.file.name(), &tensor, &[len])?;
        let mut weights = tensor.to_f32();
        if self.naming() == Naming::HuggingFace
            && self.architecture.norm_weights == NormWeights::FactorMinusOne
        {
            weights.iter_mut().for_each(|weight| *weight += 1.0);
        }
        Ok(weights)
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
        if self.naming() == Naming::HuggingFace
            || self.architecture.gguf_rows == GgufRows::HalfSplit
        {
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
    file: &str,
    tensor: &Tensor<'_>,
    expected: &[usize],
) -> Result<(), ModelError> {
    if tensor.shape == expected {
        return Ok(());
    }
    Err(ModelError::Shape {
        file: file.to_owned(),
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

/// Bytes that the weights of `file` will hold once packed, without packing them: every matrix
/// packed (the embedding only where it also makes the logits), vectors in f32, and the embedding's
/// rows where they lie.
pub(crate) fn predicted_bytes(file: &WeightFile, embedding: &str, tied: bool) -> u64 {
    let of_tensor = |tensor: Tensor<'_>| {
        let (rows, k) = (tensor.rows(), tensor.row_len());
        let packed = Packed::packed_bytes(tensor.format, rows, k) as u64;
        let is_embedding = tensor.name.strip_suffix(".weight") == Some(embedding);
        match () {
            () if is_embedding && tied => packed + tensor.data.len() as u64,
            () if is_embedding => tensor.data.len() as u64,
            () if tensor.shape.len() < 2 => Format::F32.block_bytes() as u64 * k as u64,
            () => packed,
        }
    };
    file.tensors().map(of_tensor).sum()
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
