//! Looking into a store for a model without loading its weights.

use std::sync::Arc;

use longview_kernels::{Exec, Isa};
use longview_kv::tier::Origin;
use longview_kv::{Context, Explanation, Identity, KvLayout, Ledger, RopeSet, Store};
use longview_models::ModelFile;

use crate::engine::{EngineOptions, Kept};
use crate::error::EngineError;
use crate::inspect::{ModelDescription, describe, open_file, text_side};
use crate::text_side::TextSide;

/// What a store has for a model, found without the model's weights in memory.
///
/// A file of weights that was never seen is read once to know its hash.
pub struct Lookup {
    text: TextSide,
    file: ModelFile,
    layout: Arc<KvLayout>,
    numerics: longview_kernels::Numerics,
    kept: Kept,
    about: ModelDescription,
}

impl Lookup {
    /// Opens a model's files and the store in `options`; `None` without a store.
    ///
    /// # Errors
    /// When one of them cannot be read or understood.
    pub fn open(options: &EngineOptions) -> Result<Option<Lookup>, EngineError> {
        let Some(store) = &options.store else {
            return Ok(None);
        };
        let file = open_file(&options.model)?;
        let name = file.name();
        let text = TextSide::new(text_side(&file).map_err(|error| error.in_file(&name))?);
        let file = ModelFile::new(file)?;
        // Contexts of different instruction sets do not answer for each other.
        let exec = Exec::new(1, Isa::from_environment()?, options.numerics);
        let kv_forms = options.kv_forms();
        let ledger = Ledger::with_limit(u64::MAX);
        let kept = Kept::open(store, &file, kv_forms, &exec, &ledger)?;
        Ok(Some(Lookup {
            text,
            layout: Arc::new(file.blueprint().kv_layout(kv_forms)),
            numerics: options.numerics,
            about: describe(&file, kv_forms),
            file,
            kept,
        }))
    }

    /// The tokenizer and the chat template.
    pub fn text(&self) -> &TextSide {
        &self.text
    }

    /// What is known of the model.
    pub fn describe(&self) -> &ModelDescription {
        &self.about
    }

    /// The store.
    pub fn store(&self) -> &Arc<Store> {
        &self.kept.store
    }

    /// What contexts planned for `planned_tokens` tokens are found by.
    ///
    /// # Errors
    /// When the model cannot read so many.
    pub fn origin(&self, planned_tokens: usize) -> Result<&Arc<Origin>, EngineError> {
        Ok(self.kept.origin(self.file.rope_set(planned_tokens)?))
    }

    /// What contexts are found by: those of longrope models with the rotary frequencies of short ones and
    /// with those of long ones.
    pub fn origins(&self) -> &[Arc<Origin>] {
        self.kept.origins()
    }

    /// What the store has of `tokens` for a context planned to hold `planned_tokens`, from where, and
    /// where and why that ends. The last token is always computed.
    ///
    /// # Errors
    /// When the model cannot read so many.
    pub fn explain(
        &self,
        tokens: &[u32],
        planned_tokens: usize,
    ) -> Result<Explanation, EngineError> {
        let context = self.empty(planned_tokens.max(tokens.len()))?;
        Ok(context.explain(&tokens[..tokens.len().saturating_sub(1)])?)
    }

    /// A context of what the store has of `tokens`, planned to hold `planned_tokens`. Nothing can be
    /// computed with it.
    ///
    /// # Errors
    /// When the model cannot read so many.
    pub fn find(&self, tokens: &[u32], planned_tokens: usize) -> Result<Context, EngineError> {
        let mut context = self.empty(planned_tokens.max(tokens.len()))?;
        context.attach(tokens)?;
        Ok(context)
    }

    fn empty(&self, planned_tokens: usize) -> Result<Context, EngineError> {
        let rope: RopeSet = self.file.rope_set(planned_tokens)?;
        Ok(Context::in_store(
            Arc::clone(&self.layout),
            Arc::clone(&self.kept.store),
            Arc::clone(self.kept.origin(rope)),
            // No model will ever compute with it.
            Identity {
                model: u64::MAX,
                rope,
                numerics: self.numerics,
            },
        ))
    }
}
