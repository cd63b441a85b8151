//! A model: blueprint, packed weights and the forward pass.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use half::f16;
use longview_kernels::memory::give_back_freed;
use longview_kernels::rope::{RotaryRows, RotaryTable};
use longview_kernels::{Exec, Isa, Numerics};
use longview_kv::keep::{AttentionOf, AttentionShape};
use longview_kv::tier::Origin;
use longview_kv::{
    Batch, BlockHash, Context, Identity, KvForms, KvLayout, Ledger, Purpose, Reservation, RopeSet,
    Segment, Store,
};
use longview_weights::{Tensor, WeightFile};
use smallvec::SmallVec;

use crate::arch::{self, Architecture};
use crate::blueprint::{Blueprint, Mixer};
use crate::config::Config;
use crate::decoder;
use crate::decoder::first_token::{self, KnownFirstTokens};
use crate::embedding::{self, EmbeddingPages};
use crate::error::ModelError;
use crate::gguf_config;
use crate::language_part;
use crate::load::{Ahead, Loader, Weights, check_shape, language_tensors, naming, packed_bytes};
use crate::names::{self, Role};
use crate::rope::Rope;
use crate::workspace::Workspace;

/// Hexadecimal digits of a fingerprint: enough to tell models apart, few enough to read.
const FINGERPRINT_DIGITS: usize = 16;

/// A weight file whose settings are understood, before its weights are packed.
pub struct ModelFile {
    file: WeightFile,
    config: Config,
    architecture: &'static Architecture,
    blueprint: Blueprint,
    /// Name of the embedding.
    embedding: String,
    tied: bool,
    /// Whether the keys and values of first tokens are computed by a pass of their own, but in the class f32.
    rounds_first_tokens: bool,
    notices: Vec<String>,
}

/// A model ready to run.
///
/// Shared between threads freely: running it changes contexts and workspaces only.
pub struct Model {
    file: ModelFile,
    pub(crate) weights: Weights,
    layout: Arc<KvLayout>,
    /// For every rotary embedding its short and its long set.
    rotary: Vec<[RotaryTable; 2]>,
    id: u64,
    numerics: Numerics,
    embedding_pages: EmbeddingPages,
    isa: Isa,
    pub(crate) first_tokens: KnownFirstTokens,
    /// Made when it is first asked for.
    fingerprint: OnceLock<String>,
    _held: Reservation,
}

impl ModelFile {
    /// Reads the settings of `file` and checks that its embedding agrees with them.
    ///
    /// # Errors
    /// For unknown architectures, and settings that are missing or make no sense together.
    pub fn new(mut file: WeightFile) -> Result<ModelFile, ModelError> {
        let mut notices = Vec::new();
        let config = match &mut file {
            WeightFile::Gguf(gguf) => gguf_config::translate(gguf)?,
            WeightFile::HuggingFace(folder) => language_part::settings(folder, &mut notices)?,
            other => {
                let problem = format!("{}: neither GGUF nor a Hugging Face folder", other.name());
                return Err(ModelError::Unsupported(problem));
            }
        };
        let model_type = config.opt_str("model_type")?.unwrap_or_default().to_owned();
        let architecture = arch::by_model_type(&file.name(), &model_type)?;
        let blueprint = (architecture.blueprint)(&config)?;
        let name = |role| names::weight(naming(&file), architecture.names, role, 0, 0);
        let embedding = name(Role::TokenEmbedding);
        let tensor = file.tensor(&embedding)?;
        check_shape(&file, &tensor, &[blueprint.vocab, blueprint.hidden])?;
        // A folder may carry a tensor for the logits and still say that the embedding makes them.
        let own = file.find_tensor(&name(Role::Output)).is_some();
        let tied = config.opt_bool("tie_word_embeddings")?.unwrap_or(false) || !own;
        let tensors = language_tensors(&file, blueprint.layers.len());
        let rounds_first_tokens = first_token::are_needed(tensors.map(|tensor| tensor.format));
        Ok(ModelFile {
            rounds_first_tokens,
            file,
            config,
            architecture,
            blueprint,
            embedding,
            tied,
            notices,
        })
    }

    /// What the model is made of.
    pub fn blueprint(&self) -> &Blueprint {
        &self.blueprint
    }

    /// Its settings, in the words of `config.json`.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Its architecture.
    pub fn architecture(&self) -> &'static Architecture {
        self.architecture
    }

    /// The file itself.
    pub fn weight_file(&self) -> &WeightFile {
        &self.file
    }

    /// What of the file is not used, for the user to know.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// The rotary set of a context planned to hold `planned_tokens` tokens.
    ///
    /// # Errors
    /// [`ModelError::TooLong`] beyond the model's positions.
    pub fn rope_set(&self, planned_tokens: usize) -> Result<RopeSet, ModelError> {
        let limit = self.blueprint.max_positions;
        if planned_tokens > limit {
            return Err(ModelError::TooLong {
                wanted: planned_tokens,
                limit,
            });
        }
        let is_long = |rope: &Rope| rope.set_for(planned_tokens) == RopeSet::Long;
        Ok(match self.blueprint.ropes.iter().any(is_long) {
            true => RopeSet::Long,
            false => RopeSet::Short,
        })
    }

    /// Whether the embedding also makes the logits.
    pub(crate) fn is_tied(&self) -> bool {
        self.tied
    }

    /// Bytes the weights will hold in memory at most: packed, and those of the embedding's rows
    /// that are read from the file.
    pub fn weights_bytes(&self) -> u64 {
        let table = self.file.find_tensor(&self.embedding);
        let rows = match table {
            Some(table) if !self.tied => embedding::resident_bytes(&self.file, &table),
            _ => 0,
        };
        self.packed_bytes() + rows
    }

    /// Bytes of the packed weights.
    pub fn packed_bytes(&self) -> u64 {
        packed_bytes(
            &self.file,
            self.blueprint.layers.len(),
            &self.embedding,
            self.tied,
        )
    }

    /// Bytes that passes of up to `rows` rows, `wanted` of them with logits, need with `threads` threads on
    /// `isa` beside contexts.
    pub fn scratch_bytes(&self, rows: usize, wanted: usize, threads: usize, isa: Isa) -> u64 {
        let blueprint = &self.blueprint;
        let of_pass = Workspace::predicted_bytes(blueprint, rows, wanted, threads, isa);
        match self.rounds_first_tokens {
            true => of_pass + first_token::bytes(blueprint),
            false => of_pass,
        }
    }

    /// Parameters in all.
    pub fn parameters(&self) -> u64 {
        language_tensors(&self.file, self.blueprint.layers.len())
            .map(|tensor| tensor.elements() as u64)
            .sum()
    }

    /// Packs the weights and returns the model ready to run.
    ///
    /// `on_layer(done, total)` is called as layers are packed.
    ///
    /// # Errors
    /// [`longview_kv::KvError::OverLimit`] when the ledger has no room for the weights,
    /// [`longview_kv::KvError::NoSuchLayers`] for forms of layers that the model does not have; errors of
    /// single tensors by name.
    pub fn load(
        self,
        exec: &Exec,
        forms: impl Into<KvForms>,
        ledger: &Ledger,
        on_layer: &mut dyn FnMut(usize, usize),
    ) -> Result<Model, ModelError> {
        let forms: KvForms = forms.into();
        forms.check(self.blueprint.layers.len())?;
        let held = ledger.reserve(Purpose::Weights, self.weights_bytes())?;
        let total = self.blueprint.layers.len();
        let ahead = Ahead::new(&self.file, language_tensors(&self.file, total));
        let loader = Loader {
            file: &self.file,
            architecture: self.architecture,
            pool: &exec.pool,
            tied: self.tied,
            read: Default::default(),
            ahead: &ahead,
        };
        let weights = std::thread::scope(|scope| {
            let _ends = ahead.until_dropped();
            // Without that thread weights are read as they are touched.
            let _ = std::thread::Builder::new().spawn_scoped(scope, || ahead.run());
            loader.load(&self.blueprint, &mut |done| {
                // Pages around tensors, too, and the file's table of them: some 9 MiB of a model of one billion
                // parameters.
                self.file.release_all();
                on_layer(done, total);
            })
        })?;
        self.file.release_all();
        give_back_freed();
        let rotary = self
            .blueprint
            .ropes
            .iter()
            .map(|rope| [rope.table(RopeSet::Short), rope.table(RopeSet::Long)])
            .collect();
        let rounds = self.rounds_first_tokens && exec.numerics == Numerics::Default;
        let first_tokens = KnownFirstTokens::new(rounds);
        static LOADED: AtomicU64 = AtomicU64::new(0);
        Ok(Model {
            layout: Arc::new(self.blueprint.kv_layout(forms)),
            id: LOADED.fetch_add(1, Ordering::Relaxed),
            numerics: exec.numerics,
            isa: exec.isa,
            file: self,
            weights,
            rotary,
            embedding_pages: EmbeddingPages::default(),
            first_tokens,
            fingerprint: OnceLock::new(),
            _held: held,
        })
    }
}

impl Model {
    /// What the model is made of.
    pub fn blueprint(&self) -> &Blueprint {
        &self.file.blueprint
    }

    /// The file it came from.
    pub fn file(&self) -> &ModelFile {
        &self.file
    }

    /// How its keys and values are laid out.
    pub fn layout(&self) -> &Arc<KvLayout> {
        &self.layout
    }

    /// An empty context planned to hold `planned_tokens` tokens. Models with longrope fix their
    /// rotary frequencies here, by that length.
    ///
    /// # Errors
    /// [`ModelError::TooLong`] beyond the model's positions.
    pub fn new_context(
        &self,
        planned_tokens: usize,
        ledger: &Ledger,
    ) -> Result<Context, ModelError> {
        let identity = self.planned_identity(planned_tokens)?;
        let layout = Arc::clone(&self.layout);
        Ok(Context::new(layout, ledger.clone(), identity))
    }

    /// The same with keys and values stored in `forms`.
    ///
    /// # Errors
    /// As [`Model::new_context`], and [`longview_kv::KvError::NoSuchLayers`] for forms of layers that the
    /// model does not have.
    pub fn new_context_as(
        &self,
        planned_tokens: usize,
        forms: KvForms,
        ledger: &Ledger,
    ) -> Result<Context, ModelError> {
        forms.check(self.blueprint().layers.len())?;
        let identity = self.planned_identity(planned_tokens)?;
        let layout = Arc::new(self.blueprint().kv_layout(forms));
        Ok(Context::new(layout, ledger.clone(), identity))
    }

    /// The same, in a store, where contexts with the short and the long rotary set are found by
    /// `origins`.
    ///
    /// # Errors
    /// [`ModelError::TooLong`] beyond the model's positions.
    pub fn new_context_in(
        &self,
        planned_tokens: usize,
        store: &Arc<Store>,
        origins: &[Arc<Origin>; 2],
    ) -> Result<Context, ModelError> {
        let identity = self.planned_identity(planned_tokens)?;
        let origin = match identity.rope {
            RopeSet::Short => &origins[0],
            RopeSet::Long => &origins[1],
        };
        let layout = Arc::clone(&self.layout);
        Ok(Context::in_store(
            layout,
            Arc::clone(store),
            Arc::clone(origin),
            identity,
        ))
    }

    /// Computes the tokens of `segments` in one pass and appends them to their contexts. Logits
    /// of the rows wanted are in `workspace` afterwards.
    ///
    /// # Errors
    /// [`ModelError::TooLong`] beyond the model's positions, [`ModelError::TokenOutOfRange`], and
    /// the store's refusals. On an error no context has changed.
    pub fn forward<'a>(
        &self,
        exec: &Exec,
        segments: impl IntoIterator<Item = Segment<'a>>,
        workspace: &mut Workspace,
    ) -> Result<(), ModelError> {
        let segments: SmallVec<[Segment<'a>; 1]> = segments.into_iter().collect();
        for segment in &segments {
            let limit = self.positions_of(segment.context);
            let wanted = segment.context.len() + segment.tokens.len();
            if wanted > limit {
                return Err(ModelError::TooLong { wanted, limit });
            }
        }
        let mut batch = Batch::new(segments, self.identity())?;
        decoder::forward(self, exec, &mut batch, workspace)?;
        batch.commit();
        Ok(())
    }

    /// Positions that `context` may grow to: the model's, or for a longrope model's context that
    /// was planned short those its rotary factors were made for.
    ///
    /// There is no such limit where a keep method counts positions by what is held.
    pub fn positions_of(&self, context: &Context) -> usize {
        if context.keep_method().is_some_and(|keep| keep.is_endless()) {
            return usize::MAX;
        }
        let set = context.identity().rope;
        let of_rope = |rope: &Rope| rope.positions(set).unwrap_or(usize::MAX);
        let ropes = self
            .blueprint()
            .ropes
            .iter()
            .map(of_rope)
            .min()
            .unwrap_or(usize::MAX);
        self.blueprint().max_positions.min(ropes)
    }

    /// What tells the model from others: a hash of the norms of its layers, which no format quantises,
    /// rounded to f16. So a file of the same model in another format has the same, and what was
    /// measured on one holds for the other.
    pub fn fingerprint(&self) -> &str {
        self.fingerprint.get_or_init(|| {
            let layers = self.weights.layers.iter();
            let norms = layers.flat_map(|layer| layer.mixer_norm.iter().chain(&layer.ffn_norm));
            let rounded = norms.chain(&self.weights.output_norm);
            let bytes: Vec<u8> = rounded
                .flat_map(|&x| f16::from_f32(x).to_le_bytes())
                .collect();
            let hash = BlockHash::seed(&[("norms", bytes.as_slice())]).to_string();
            hash[..FINGERPRINT_DIGITS].to_owned()
        })
    }

    pub(crate) fn weights(&self) -> &Weights {
        &self.weights
    }

    pub(crate) fn embedding(&self) -> Result<Tensor<'_>, ModelError> {
        // Looked up in every pass: the error, with what it is made of, only where there is one.
        match self.file.file.find_tensor(&self.file.embedding) {
            Some(tensor) => Ok(tensor),
            None => Ok(self.file.file.tensor(&self.file.embedding)?),
        }
    }

    /// Says that `rows` rows of the embedding `table` were read.
    pub(crate) fn embedding_read(&self, table: &Tensor<'_>, rows: usize) {
        self.embedding_pages.read(&self.file.file, table, rows);
    }

    pub(crate) fn rotary_table(&self, index: usize, set: RopeSet) -> &RotaryTable {
        match set {
            RopeSet::Short => &self.rotary[index][0],
            RopeSet::Long => &self.rotary[index][1],
        }
    }

    fn planned_identity(&self, planned_tokens: usize) -> Result<Identity, ModelError> {
        Ok(Identity {
            rope: self.file.rope_set(planned_tokens)?,
            ..self.identity()
        })
    }

    pub(crate) fn identity(&self) -> Identity {
        Identity {
            model: self.id,
            rope: RopeSet::Short,
            numerics: self.numerics,
        }
    }
}

impl AttentionOf for Model {
    fn shape(&self, layer: usize) -> AttentionShape {
        match &self.blueprint().layers[layer].mixer {
            Mixer::Attention(plan) => AttentionShape {
                heads: plan.heads,
                scale: plan.scale,
                softcap: plan.softcap,
            },
            Mixer::GatedDelta(_) => AttentionShape::default(),
        }
    }

    fn rotate(&self, layer: usize, set: RopeSet, positions: isize, vectors: &mut [f32]) {
        let Mixer::Attention(plan) = &self.blueprint().layers[layer].mixer else {
            return;
        };
        let mut turn = RotaryRows::new();
        turn.set_turn(self.rotary_table(plan.rope, set), positions);
        for vector in vectors.chunks_exact_mut(plan.head_dim) {
            turn.rotate(self.isa, 0, 1, plan.head_dim, vector);
        }
    }

    fn fingerprint(&self) -> Option<&str> {
        Some(Model::fingerprint(self))
    }
}
