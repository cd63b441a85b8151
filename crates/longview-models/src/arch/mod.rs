//! The architectures, one file each. To add one: a file, a `mod` line and a line in [`ALL`].

mod gemma2;
mod gemma3;
mod llama;
mod mistral;
mod mixtral;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3_5;
mod qwen3_moe;
mod qwen3_next;

use crate::blueprint::Blueprint;
use crate::config::Config;
use crate::delta_rows::DeltaFiles;
use crate::error::ModelError;
use crate::names::NameTable;

/// Everything that tells one architecture from another.
pub struct Architecture {
    /// Its name in messages and lists.
    pub name: &'static str,
    /// `model_type` in `config.json`.
    pub model_types: &'static [&'static str],
    /// `general.architecture` in a GGUF file.
    pub gguf: &'static str,
    /// From settings to blueprint.
    pub(crate) blueprint: fn(&Config) -> Result<Blueprint, ModelError>,
    /// Names of tensors that differ from the common ones.
    pub(crate) names: Names,
    /// How the rows of query and key projections lie in a GGUF file.
    pub(crate) gguf_rows: GgufRows,
    /// What a Hugging Face folder stores as norm weights.
    pub(crate) norm_weights: NormWeights,
    /// How gated delta layers lie in files, where there are any.
    pub(crate) delta: Option<DeltaFiles>,
}

impl Architecture {
    /// What a model with these settings is made of.
    ///
    /// # Errors
    /// When settings are missing or make no sense together.
    pub fn blueprint(&self, config: &Config) -> Result<Blueprint, ModelError> {
        (self.blueprint)(config)
    }
}

/// Names that an architecture gives to some roles, before those common to all.
#[derive(Clone, Copy)]
pub(crate) struct Names {
    /// In Hugging Face folders.
    pub(crate) hugging_face: NameTable,
    /// In GGUF files.
    pub(crate) gguf: NameTable,
}

impl Names {
    /// None but the common ones.
    pub(crate) const COMMON: Names = Names::hugging_face(&[]);

    /// Own names in Hugging Face folders only.
    pub(crate) const fn hugging_face(own: NameTable) -> Names {
        Names {
            hugging_face: own,
            gguf: &[],
        }
    }
}

/// How the rows of query and key projections lie in a GGUF file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GgufRows {
    /// As in the Hugging Face folder: channel `i` turns with channel `i + rotary_dim / 2`.
    HalfSplit,
    /// Reordered so that channel `2i` turns with channel `2i + 1`.
    Interleaved,
}

/// What a Hugging Face folder stores as norm weights; a GGUF file always has the factor itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NormWeights {
    /// The factor.
    Factor,
    /// The factor minus one.
    FactorMinusOne,
}

/// Every architecture Longview runs.
pub static ALL: [&Architecture; 12] = [
    &llama::LLAMA,
    &mistral::MISTRAL,
    &mixtral::MIXTRAL,
    &qwen2::QWEN2,
    &qwen3::QWEN3,
    &qwen3_moe::QWEN3_MOE,
    &gemma2::GEMMA2,
    &gemma3::GEMMA3,
    &phi3::PHI3,
    &qwen3_next::QWEN3_NEXT,
    &qwen3_5::QWEN3_5,
    &qwen3_5::QWEN3_5_MOE,
];

/// The architecture with this `model_type`.
///
/// # Errors
/// [`ModelError::UnknownArchitecture`], which lists the known ones.
pub fn by_model_type(file: &str, model_type: &str) -> Result<&'static Architecture, ModelError> {
    ALL.into_iter()
        .find(|known| known.model_types.contains(&model_type))
        .ok_or_else(|| ModelError::UnknownArchitecture {
            file: file.to_owned(),
            name: model_type.to_owned(),
            known: known_names(),
        })
}

/// The names of all architectures, comma-separated.
pub fn known_names() -> String {
    ALL.map(|architecture| architecture.name).join(", ")
}
