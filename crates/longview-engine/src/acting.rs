//! The methods that act on a context while it is read and written, and what memory they take.

use std::sync::Arc;

use longview_kv::keep::Keep;
use longview_kv::pattern::Prefill;
use longview_kv::read::Read;
use longview_kv::{Context, KvForms, KvLayout, largest};

use crate::engine::{Engine, Tenant};
use crate::error::EngineError;
use crate::plan::MemoryPlan;

/// What acts on one context; nothing by default.
#[derive(Clone, Debug, Default)]
pub struct ContextMethods {
    /// What the tokens of a prompt attend to, where it is not everything.
    pub prefill: Option<Arc<Prefill>>,
    /// Which keys and values stay, where not all do.
    pub keep: Option<Arc<Keep>>,
    /// In what form keys and values are held, where it is not the engine's. Such a context lives in
    /// memory alone, and nothing is taken over by it or from it.
    pub store: Option<KvForms>,
    /// What the tokens of an answer read, where it is not everything.
    pub read: Option<Arc<Read>>,
}

impl ContextMethods {
    /// Whether none acts.
    pub fn is_nothing(&self) -> bool {
        self.prefill.is_none() && self.keep.is_none() && self.store.is_none() && self.read.is_none()
    }

    /// Whether what a context reads under them is the same, to the bit, as without: then it takes over
    /// and is taken over from.
    pub(crate) fn reads_alike(&self) -> bool {
        self.prefill.is_none() && self.store.is_none()
    }

    /// Tokens of a prompt of `prompt_tokens` that may be taken over from what was read before: none
    /// under a prefill method, which reads otherwise, or in another form, and a keep method must see some
    /// of them computed.
    pub fn reusable_tokens(&self, prompt_tokens: usize) -> usize {
        if !self.reads_alike() {
            return 0;
        }
        let Some(keep) = &self.keep else {
            return prompt_tokens;
        };
        if self.computes_all().is_some() {
            return 0;
        }
        prompt_tokens.saturating_sub(keep.score.needs().last_queries)
    }

    /// Why a keep method has every token of a prompt computed, whatever a store has of it, and how that can be
    /// helped; `None` where it goes on from what is kept.
    pub fn computes_all(&self) -> Option<&'static str> {
        let keep = self.keep.as_ref()?;
        if keep.score.needs().every_token() {
            Some(
                "it scores by what is gathered of every token while it is computed and is not kept with its \
                 keys and values; a method that looks at keys alone or at the last queries goes on from a \
                 kept context",
            )
        } else if keep.when.block.is_some() {
            Some(
                "it drops pairs while the prompt is read; with block=never, where the method has that, it \
                 goes on from a kept context and decides at the end",
            )
        } else {
            None
        }
    }
}

impl Engine {
    /// An empty context for a prompt of `prompt_tokens` tokens, planned to hold `planned_tokens`, with
    /// `methods` in charge.
    ///
    /// # Errors
    /// As [`Engine::new_context`] and [`Engine::put_in_charge`]; what must fit is what the methods take
    /// at their peak.
    pub fn new_context_with(
        &self,
        methods: &ContextMethods,
        prompt_tokens: usize,
        planned_tokens: usize,
    ) -> Result<Context, EngineError> {
        self.new_context_with_of(&self.tenant(""), methods, prompt_tokens, planned_tokens)
    }

    /// [`Engine::new_context_with`] of a tenant.
    ///
    /// # Errors
    /// As [`Engine::new_context_with`].
    pub fn new_context_with_of(
        &self,
        tenant: &Tenant,
        methods: &ContextMethods,
        prompt_tokens: usize,
        planned_tokens: usize,
    ) -> Result<Context, EngineError> {
        let endless = methods.keep.as_ref().filter(|keep| keep.is_endless());
        let positions = match endless {
            // No distance is larger than what is held.
            Some(_) => planned_tokens.min(self.model().blueprint().max_positions),
            None => planned_tokens,
        };
        let mut context = match methods.store {
            Some(forms) => self.model.new_context_as(positions, forms, &self.ledger)?,
            None => self.unplanned_context(tenant, positions)?,
        };
        self.put_in_charge(&mut context, methods, prompt_tokens)?;
        if let Some(keep) = endless {
            self.check_endless(keep, prompt_tokens)?;
        }
        let plan = self.plan_with(methods, prompt_tokens, planned_tokens)?;
        if !plan.fits() {
            return Err(EngineError::DoesNotFit(Box::new(plan)));
        }
        Ok(context)
    }

    /// Puts all of `methods` but the form in charge of an empty context whose prompt will have `prompt_tokens` tokens. A
    /// read method may be put in charge of a context that has read something, too.
    ///
    /// # Errors
    /// When one of them cannot be used, alone or beside the others.
    pub fn put_in_charge(
        &self,
        context: &mut Context,
        methods: &ContextMethods,
        prompt_tokens: usize,
    ) -> Result<(), EngineError> {
        if let Some(prefill) = &methods.prefill {
            context.attend_by(prefill, prompt_tokens)?;
        }
        if let Some(keep) = &methods.keep {
            self.keep(context, keep, prompt_tokens)?;
        }
        if let Some(read) = &methods.read {
            context.read_by(read)?;
        }
        Ok(())
    }

    /// What a context of `planned_tokens` tokens will need, `prompt_tokens` of them a prompt, with
    /// `methods` in charge.
    ///
    /// # Errors
    /// As [`longview_kv::keep::Keep::bytes`].
    pub fn plan_with(
        &self,
        methods: &ContextMethods,
        prompt_tokens: usize,
        planned_tokens: usize,
    ) -> Result<MemoryPlan, EngineError> {
        let read = methods.read.as_deref();
        if let Some(keep) = &methods.keep {
            return self.plan_keeping(keep, read, methods.store, prompt_tokens, planned_tokens);
        }
        let mut plan = self.plan_in(methods.store, planned_tokens);
        let Some(read) = read else {
            return Ok(plan);
        };
        let with = |mut plan: MemoryPlan| {
            let index = self.index_bytes(read, methods.store, plan.tokens);
            plan.kv += index;
            plan.kv_least += index;
            plan
        };
        let fits = |&tokens: &usize| with(self.plan_in(methods.store, tokens)).fits();
        if plan.limit.is_some() {
            plan.longest_context = largest(plan.longest_context, fits);
        }
        Ok(with(plan))
    }

    /// Bytes that `read` keeps at most beside `kv_bytes` of keys and values that a keep method holds, and of a
    /// fork that is written.
    pub(crate) fn index_bytes_beside(
        &self,
        read: &Read,
        store: Option<KvForms>,
        kv_bytes: u64,
    ) -> u64 {
        let layout = self.layout_in(store);
        read.bytes_beside(&layout, kv_bytes) + read.bytes(&layout, longview_kv::BLOCK_TOKENS)
    }

    /// Bytes that `read` keeps beside the keys and values of a context of `tokens` tokens and of a
    /// fork that is written.
    pub(crate) fn index_bytes(&self, read: &Read, store: Option<KvForms>, tokens: usize) -> u64 {
        let layout = self.layout_in(store);
        read.bytes(&layout, tokens) + read.bytes(&layout, longview_kv::BLOCK_TOKENS)
    }

    /// The layout of contexts in `store`, or in the engine's own form.
    pub(crate) fn layout_in(&self, store: Option<KvForms>) -> Arc<KvLayout> {
        match store {
            Some(forms) => Arc::new(self.model.blueprint().kv_layout(forms)),
            None => Arc::clone(self.model.layout()),
        }
    }
}
