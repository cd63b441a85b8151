//! Models to GGUF files: in other formats, from a Hugging Face folder, or made of noise.
//!
//! [`quantize`] takes a model apart by role (`inventory`), asks a [`Recipe`] for the format of each
//! tensor, and streams them to the file one piece at a time (`stream`). Settings become metadata in
//! [`crate::gguf_config`], `tokenizer.json` becomes the file's own vocabulary in `vocabulary`.

mod compatibility;
mod delta;
mod inventory;
mod presplit;
mod random;
mod recipe;
mod stream;
mod synthetic;
mod vocabulary;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use longview_kernels::{Format, Pool};
use longview_weights::{GgufFile, GgufHeader, Tensor, WeightFile};

use crate::arch::{Architecture, GgufRows, NormWeights};
use crate::blueprint::{Blueprint, Mixer};
use crate::config::Config;
use crate::error::ModelError;
use crate::gguf_config;
use crate::load::{check_shape, naming};
use crate::model::ModelFile;
use crate::names::{self, Role};
use inventory::{Entry, Part, inventory};
use random::Noise;
use stream::{Data, Rows};

pub(crate) use inventory::Head;
pub use recipe::Recipe;
pub(crate) use stream::{Planned, write};

/// How far a file is written.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The tensor being written.
    pub tensor: &'a str,
    /// Bytes of tensors written so far, and in all.
    pub done: u64,
    /// Bytes of all tensors.
    pub total: u64,
}

/// Is told how far the work is, and says whether it goes on; a break leaves nothing behind.
pub type OnProgress<'a> = dyn FnMut(Progress<'_>) -> ControlFlow<()> + 'a;

/// What was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Tensors in the file.
    pub tensors: usize,
    /// Bytes of the file.
    pub bytes: u64,
    /// For every format in the file: how many tensors have it, and their bytes.
    pub formats: BTreeMap<Format, (usize, u64)>,
    /// What the file cannot say, or what other programs will not read from it.
    pub notices: Vec<String>,
}

/// Writes `model`, a Hugging Face folder or a GGUF file of floats, as a GGUF file in the formats
/// of `recipe`.
///
/// The file is written under a temporary name and published whole; at most one piece of a tensor
/// is in memory at a time. A GGUF source keeps all its metadata but the type. `on_progress` is
/// called after every piece.
///
/// # Errors
/// When the model has quantised tensors, lacks one or has one of another shape; when its tokenizer
/// or a setting has no form in GGUF files; when a value does not fit the format; when the file
/// cannot be written; [`ModelError::Stopped`] when `on_progress` breaks off.
pub fn quantize(
    model: &ModelFile,
    recipe: Recipe,
    out: &Path,
    pool: &Pool,
    on_progress: &mut OnProgress<'_>,
) -> Result<Report, ModelError> {
    refuse_quantised(model)?;
    let mut header = GgufHeader::new();
    let mut notices = model.notices().to_vec();
    let mut tensors = plan(model, recipe)?;
    match model.weight_file() {
        WeightFile::Gguf(file) => copy_metadata(file, recipe, &mut header),
        WeightFile::HuggingFace(folder) => {
            describe(model, recipe, &mut header)?;
            let rows = model.blueprint().vocab;
            notices.extend(vocabulary::write(folder, rows, &mut header)?);
            notices.extend(compatibility::notices(model));
            tensors.extend(factors(model.blueprint()));
        }
        other => {
            let problem = format!("{}: neither GGUF nor a Hugging Face folder", other.name());
            return Err(ModelError::Unsupported(problem));
        }
    }
    let mut report = write(header, &tensors, out, pool, on_progress)?;
    report.notices = notices;
    Ok(report)
}

impl Report {
    fn count(&mut self, format: Format, bytes: u64) {
        let total = self.formats.entry(format).or_default();
        *total = (total.0 + 1, total.1 + bytes);
    }
}

fn refuse_quantised(model: &ModelFile) -> Result<(), ModelError> {
    let blocks = |tensor: &Tensor<'_>| !tensor.format.is_float();
    let Some(tensor) = model.weight_file().tensors().find(blocks) else {
        return Ok(());
    };
    Err(ModelError::Tensor {
        file: model.weight_file().name(),
        tensor: tensor.name.to_owned(),
        problem: format!(
            "is already quantised ({}), and quantising twice adds both errors; start from the \
             model in F32, F16 or BF16",
            tensor.format
        ),
    })
}

/// The metadata of a Hugging Face folder that a GGUF file needs, tokenizer aside.
fn describe(model: &ModelFile, recipe: Recipe, header: &mut GgufHeader) -> Result<(), ModelError> {
    refuse_partial_rotation(model)?;
    gguf_config::write(
        model.config(),
        model.architecture(),
        model.blueprint(),
        header,
    )?;
    header.str("general.type", "model");
    header.str("general.name", &name_of(model));
    put_type(recipe, header);
    Ok(())
}

pub(crate) fn put_type(recipe: Recipe, header: &mut GgufHeader) {
    header.u32("general.file_type", recipe.file_type());
    if !recipe.base().is_float() {
        // The version of the block layouts, unchanged since 2023.
        header.u32("general.quantization_version", 2);
    }
}

/// Where rows are interleaved in pairs that turn together, whole heads are: readers know no other
/// form.
fn refuse_partial_rotation(model: &ModelFile) -> Result<(), ModelError> {
    let blueprint = model.blueprint();
    let partial = blueprint
        .attentions()
        .any(|attention| blueprint.ropes[attention.rope].rotary_dim != attention.head_dim);
    if partial && model.architecture().gguf_rows == GgufRows::Interleaved {
        let problem = "heads that turn in part have no form in GGUF files of this architecture";
        return Err(model.config().error("partial_rotary_factor", problem));
    }
    Ok(())
}

/// What the folder calls its model, else the folder's own name.
fn name_of(model: &ModelFile) -> String {
    let file = model.weight_file().name();
    let last = |path: &str| {
        let name = Path::new(path).file_name()?.to_str()?.to_owned();
        (!name.is_empty()).then_some(name)
    };
    let told = model.config().opt_str("_name_or_path").ok().flatten();
    told.and_then(last)
        .or_else(|| last(&file))
        .unwrap_or_else(|| model.architecture().name.to_owned())
}

fn copy_metadata(file: &GgufFile, recipe: Recipe, header: &mut GgufHeader) {
    put_type(recipe, header);
    for (key, value) in file.metadata() {
        header.value(key, value);
    }
}

/// Every tensor of the model with its format and source.
fn plan(model: &ModelFile, recipe: Recipe) -> Result<Vec<Planned<'_>>, ModelError> {
    let file = model.weight_file();
    let blueprint = model.blueprint();
    let head = head(model);
    let overview = overview(blueprint, head);
    let architecture = model.architecture();
    let entries = inventory(blueprint, architecture.delta, head);
    match file {
        WeightFile::Gguf(_) => {
            // Tensors that no layer names (rotary factors) are kept as they are.
            let known: BTreeMap<String, &Entry> = entries
                .iter()
                .map(|entry| (entry.name(architecture), entry))
                .collect();
            for (name, entry) in &known {
                check_shape(model.weight_file(), &file.tensor(name)?, &entry.shape)?;
            }
            let planned = |tensor: Tensor<'_>| match known.get(tensor.name) {
                // Vectors keep the type they have.
                Some(entry) if tensor.shape.len() > 1 => recipe.format(entry, overview),
                _ => tensor.format,
            };
            Ok(file
                .tensors()
                .map(|tensor| Planned {
                    name: tensor.name.to_owned(),
                    format: planned(tensor),
                    shape: tensor.shape.to_vec(),
                    data: Data::Tensors {
                        file,
                        tensors: vec![tensor],
                        rows: Rows::AsTheyAre,
                        shift: 0.0,
                    },
                })
                .collect())
        }
        _ => entries
            .into_iter()
            .map(|entry| {
                Ok(Planned {
                    name: entry.name(architecture),
                    format: recipe.format(&entry, overview),
                    data: from_folder(model, &entry)?,
                    shape: entry.shape,
                })
            })
            .collect(),
    }
}

pub(crate) fn overview(blueprint: &Blueprint, head: Head) -> recipe::Model {
    recipe::Model {
        layers: blueprint.layers.len(),
        experts: inventory::experts(blueprint),
        tied: head == Head::Tied,
    }
}

/// Whether the model's logits are made by a tensor of their own. A folder may carry such a tensor
/// and still say that it is to be the embedding; then it is left out.
fn head(model: &ModelFile) -> Head {
    if model.is_tied() {
        Head::Tied
    } else {
        Head::Own
    }
}

/// The tensor or tensors of a Hugging Face folder that make `entry`.
fn from_folder<'a>(model: &'a ModelFile, entry: &Entry) -> Result<Data<'a>, ModelError> {
    let file = model.weight_file();
    let architecture = model.architecture();
    let layer = &model.blueprint().layers[entry.layer];
    if let (Some(files), Mixer::GatedDelta(shape)) = (architecture.delta, &layer.mixer)
        && let Some(data) = delta::from_folder(model, files, shape, entry)?
    {
        return Ok(data);
    }
    if let Some(data) = from_all_experts(model, entry)? {
        return Ok(data);
    }
    let of_expert = |expert: usize| {
        let (naming, own) = (naming(file), architecture.names);
        let name = entry
            .part
            .name(naming, own, entry.role, entry.layer, expert);
        let tensor = file.tensor(&name)?;
        let shape = match entry.shape[..] {
            [_, rows, k] => &[rows, k][..],
            _ => &entry.shape,
        };
        // Folders have a router of one row.
        if entry.role != Role::SharedRouter || tensor.shape != [1, shape[0]] {
            check_shape(model.weight_file(), &tensor, shape)?;
        }
        Ok(tensor)
    };
    let experts = match entry.shape[..] {
        [experts, _, _] => experts,
        _ => 1,
    };
    let turns = matches!(entry.role, Role::Query | Role::Key)
        && architecture.gguf_rows == GgufRows::Interleaved;
    let baked = is_norm(entry.role) && architecture.norm_weights == NormWeights::FactorMinusOne;
    Ok(Data::Tensors {
        file,
        tensors: (0..experts)
            .map(of_expert)
            .collect::<Result<_, ModelError>>()?,
        rows: match layer.attention() {
            Some(attention) if turns => Rows::Interleaved {
                head_dim: attention.head_dim,
            },
            _ => Rows::AsTheyAre,
        },
        shift: if baked { 1.0 } else { 0.0 },
    })
}

/// The experts of a layer where the folder has them in one tensor; `None` where it has not.
fn from_all_experts<'a>(
    model: &'a ModelFile,
    entry: &Entry,
) -> Result<Option<Data<'a>>, ModelError> {
    let half = match entry.role {
        Role::ExpertGate => Some(0),
        Role::ExpertUp => Some(1),
        Role::ExpertDown => None,
        _ => return Ok(None),
    };
    let [experts, rows, k] = entry.shape[..] else {
        return Ok(None);
    };
    let (role, all) = match half {
        Some(_) => (Role::AllExpertsGateUp, 2 * rows),
        None => (Role::AllExpertsDown, rows),
    };
    let Ok(tensor) = folder_tensor(model, role, entry.layer, 0) else {
        return Ok(None);
    };
    check_shape(model.weight_file(), &tensor, &[experts, all, k])?;
    let listed = |half: usize| {
        let of_expert = |expert: usize| {
            let start = (2 * expert + half) * rows;
            start..start + rows
        };
        Rows::Listed((0..experts).flat_map(of_expert).collect())
    };
    Ok(Some(Data::Tensors {
        file: model.weight_file(),
        tensors: vec![tensor],
        rows: half.map_or(Rows::AsTheyAre, listed),
        shift: 0.0,
    }))
}

/// The folder's weight with this role.
fn folder_tensor(
    model: &ModelFile,
    role: Role,
    layer: usize,
    expert: usize,
) -> Result<Tensor<'_>, ModelError> {
    let file = model.weight_file();
    let name = names::weight(
        naming(file),
        model.architecture().names,
        role,
        layer,
        expert,
    );
    Ok(file.tensor(&name)?)
}

/// The rotary factors that GGUF files hold as tensors.
pub(crate) fn factors<'a>(blueprint: &Blueprint) -> impl Iterator<Item = Planned<'a>> {
    let tensors = gguf_config::factor_tensors(blueprint).into_iter();
    tensors.map(|(name, values)| Planned {
        name: name.to_owned(),
        format: Format::F32,
        shape: vec![values.len()],
        data: Data::Values(values),
    })
}

/// Random tensors for a whole model. Activations keep their size through any number of layers:
/// rows have length 1 on average, and what a layer adds to the residual stream shrinks with depth.
pub(crate) fn random_tensors<'a>(
    architecture: &Architecture,
    blueprint: &Blueprint,
    head: Head,
    recipe: Recipe,
    seed: u64,
) -> Vec<Planned<'a>> {
    let overview = overview(blueprint, head);
    let branches = (2 * blueprint.layers.len()) as f32;
    let planned = |(number, entry): (usize, Entry)| {
        let k = *entry.shape.last().unwrap_or(&1) as f32;
        let adds = matches!(
            entry.role,
            Role::Down
                | Role::ExpertDown
                | Role::SharedDown
                | Role::AttentionOutput
                | Role::DeltaOutput
        );
        let data = match entry.role {
            role if is_norm(role) => Data::Values(vec![1.0; entry.shape[0]]),
            Role::DeltaNorm | Role::DeltaRateBias => Data::Values(vec![1.0; entry.shape[0]]),
            // From states that forget at once to those that keep for thousands of tokens.
            Role::DeltaRate => {
                let heads = entry.shape[0];
                let rate = |head: usize| -16.0 * 1e-4f32.powf(head as f32 / heads as f32);
                Data::Values((0..heads).map(rate).collect())
            }
            _ => Data::Noise(Noise {
                seed,
                tensor: number as u64,
                deviation: match entry.part {
                    Part::Bias => 0.02,
                    Part::Weight if adds => 1.0 / (k * branches).sqrt(),
                    Part::Weight => 1.0 / k.sqrt(),
                },
            }),
        };
        Planned {
            name: entry.name(architecture),
            format: recipe.format(&entry, overview),
            shape: entry.shape,
            data,
        }
    };
    let entries = inventory(blueprint, architecture.delta, head);
    let entries = entries.into_iter().enumerate();
    entries.map(planned).chain(factors(blueprint)).collect()
}

/// A vocabulary without meaning for the settings `config`.
pub(crate) fn put_synthetic_vocabulary(
    config: &Config,
    rows: usize,
    header: &mut GgufHeader,
) -> Result<(), ModelError> {
    if rows < synthetic::LEAST {
        let problem = format!(
            "{rows} tokens cannot hold the {} of the smallest vocabulary",
            synthetic::LEAST
        );
        return Err(config.error("vocab_size", problem));
    }
    synthetic::write(rows, header);
    Ok(())
}

fn is_norm(role: Role) -> bool {
    matches!(
        role,
        Role::OutputNorm
            | Role::AttentionNorm
            | Role::QueryNorm
            | Role::KeyNorm
            | Role::PostAttentionNorm
            | Role::FfnNorm
            | Role::PostFfnNorm
    )
}
