//! From a checked request to the engine and back: what all protocols share.

use std::sync::Arc;

use longview::methods::Stage;
use longview::schedule::{Goal, MovedText, Observe, Request, SCORED_ROWS, Start};
use longview::{ContextMethods, Engine, FinishReason, Reuse};

use crate::app::{App, Tenancy};
use crate::error::ApiError;
use crate::grammar::Grammar;
use crate::outbox::{Collected, Inbox, Text};
use crate::prompt::{self, Truncate};
use crate::report::{Meta, Total, explained};
use crate::settings::{Extras, Settings};
use crate::tools::Toolbox;

/// A prompt ready to be read.
pub(crate) struct Prompt {
    pub(crate) tokens: Vec<u32>,
    /// What it begins with.
    pub(crate) start: Start,
    /// Tokens that were taken out of its middle.
    pub(crate) truncated: usize,
}

/// A request under way.
pub(crate) struct Running {
    pub(crate) inbox: Inbox,
    /// Texts to be written, of all prompts.
    pub(crate) answers: usize,
    pub(crate) meta: Meta,
}

/// Limits a prompt to what the model, the server and the request allow.
pub(crate) fn fitted(
    app: &App,
    tokens: Vec<u32>,
    start: Start,
    truncate: Option<Truncate>,
    settings: &Settings,
) -> Result<Prompt, ApiError> {
    if tokens.is_empty() {
        return Err(ApiError::wrong(
            "the prompt is empty; give some text to continue",
        ));
    }
    let limit = app.engine().model().blueprint().max_positions;
    // One token of the answer at least must have a place.
    let mut most = app
        .options()
        .max_prompt_tokens
        .unwrap_or(limit)
        .min(limit - 1);
    if truncate.is_some() {
        // Cut so far that the answer asked for has room.
        let answer = settings.max_tokens.min(most / 2);
        most = most.min(limit - answer).max(2);
    }
    let (tokens, truncated) = prompt::fit(tokens, most, truncate)?;
    let start = match start {
        start if truncated == 0 => start,
        Start::Made(_) => {
            return Err(ApiError::field(
                "truncate",
                "the context was made under methods of its own and cannot be cut; ask less of it at a time",
            )
            .code("context_length_exceeded"));
        }
        Start::Nothing | Start::Beginning(_) => Start::Nothing,
    };
    Ok(Prompt {
        tokens,
        start,
        truncated,
    })
}

/// Everything that is checked before the engine is asked.
pub(crate) struct Prepared {
    pub(crate) prompts: Vec<Prompt>,
    /// Tokens of the first prompt up to the last cache breakpoint of a conversation.
    pub(crate) cached: usize,
    pub(crate) settings: Settings,
    /// Functions that may be called.
    pub(crate) toolbox: Option<Toolbox>,
    /// What the texts must look like.
    pub(crate) grammar: Option<Grammar>,
    /// What is to be said of how the prompts were made.
    pub(crate) notices: Vec<String>,
}

impl Prepared {
    /// Tokens of all prompts.
    pub(crate) fn prompt_tokens(&self) -> usize {
        self.prompts.iter().map(|prompt| prompt.tokens.len()).sum()
    }
}

/// A request under way, and what its protocol needs to tell of it.
pub(crate) struct Begun<T> {
    pub(crate) running: Running,
    pub(crate) toolbox: Option<Toolbox>,
    /// What was found out beside the prompts while they were made.
    pub(crate) more: T,
}

/// Makes the prompts of a request beside the tasks that serve connections, and hands them to the
/// engine: the way that every protocol goes.
pub(crate) async fn begin<T: Send + 'static>(
    app: &App,
    tenancy: &Arc<Tenancy>,
    extras: Extras,
    prepare: impl FnOnce(&App, &Tenancy, &Extras) -> Result<(Prepared, T), ApiError> + Send + 'static,
) -> Result<Begun<T>, ApiError> {
    let (own, tenancy) = (app.clone(), Arc::clone(tenancy));
    app.prepare(move || {
        let app = own;
        let (prepared, more) = prepare(&app, &tenancy, &extras)?;
        let mut running = start(
            &app,
            &tenancy,
            prepared.prompts,
            &prepared.settings,
            &extras,
            prepared.grammar.as_ref(),
        )?;
        running.meta.notices.extend(prepared.notices);
        Ok(Begun {
            running,
            toolbox: prepared.toolbox,
            more,
        })
    })
    .await
}

/// Hands prompts to the engine.
fn start(
    app: &App,
    tenancy: &Tenancy,
    prompts: Vec<Prompt>,
    settings: &Settings,
    extras: &Extras,
    grammar: Option<&Grammar>,
) -> Result<Running, ApiError> {
    let engine = app.engine();
    let limit = engine.model().blueprint().max_positions;
    let inbox = Inbox::new();
    let mut meta = Meta {
        truncated: prompts.iter().map(|prompt| prompt.truncated).sum(),
        methods: settings
            .methods
            .texts(engine.kv_type())
            .into_iter()
            .map(|(stage, text)| (stage.name().to_owned(), text.into()))
            .collect(),
        ..Meta::default()
    };
    meta.methods
        .insert("decode".to_owned(), settings.decode_text().into());
    meta.notices = settings.methods.notices();
    if meta.truncated > 0 {
        meta.notices.push(format!(
            "{} tokens were taken out of the middle of the prompt, which was too long",
            meta.truncated
        ));
    }
    let methods = acting(engine, settings, extras, &mut meta)?;
    let observe = observed(extras, &methods)?;
    let reuse = reused(engine, settings, extras, &methods, &mut meta)?;
    let mut requests = Vec::with_capacity(prompts.len());
    let mut answers = 0;
    let all = prompts.iter().map(|prompt| prompt.tokens.len()).sum();
    // One request has one place, however many prompts it has.
    let permit = app.enter(all, settings.priority)?;
    for prompt in prompts {
        let count = prompt.tokens.len();
        let planned = settings.planned(count, limit);
        let mut plan = engine.plan_with(&methods, count, planned)?;
        plan.scratch += engine.logits_bytes(match settings.prompt_logprobs {
            Some(_) => settings.answers.max(SCORED_ROWS),
            None => settings.answers,
        });
        if !plan.fits() {
            return Err(longview::EngineError::DoesNotFit(Box::new(plan)).into());
        }
        if let Some(most) = extras.memory
            && plan.kv > most
        {
            return Err(ApiError::field(
                "longview.memory",
                format!(
                    "the keys and values of {planned} tokens take {} bytes, but longview.memory allows \
                     {most}; shorten the prompt or the answer",
                    plan.kv
                ),
            )
            .code("insufficient_memory"));
        }
        if extras.explain && meta.explanation.is_none() {
            let context = engine.new_context_of(&tenancy.tenant, planned)?;
            let usable = &prompt.tokens[..count - 1];
            let explanation = context
                .explain(usable)
                .map_err(longview::EngineError::from)?;
            meta.explanation = Some(explained(app, &explanation));
        }
        let moved = match reuse {
            Reuse::Prefix => None,
            Reuse::Shift { least_tokens } => Some(MovedText {
                least_tokens,
                earlier: engine.earlier_version(&tenancy.tenant, &prompt.tokens, planned)?,
            }),
        };
        let ear = inbox.ear(settings.detail, answers, Arc::clone(&permit));
        let own = settings.answers(limit - count, grammar);
        answers += own.len();
        requests.push(Request {
            tenant: Arc::clone(&tenancy.tenant),
            prompt: prompt.tokens,
            start: prompt.start,
            planned_tokens: planned,
            goal: Goal::Write(own),
            methods: methods.clone(),
            moved,
            prompt_logprobs: settings.prompt_logprobs,
            observe,
            priority: settings.priority,
            listener: Box::new(ear),
        });
    }
    drop(permit);
    for request in requests {
        app.worker().submit(request)?;
    }
    Ok(Running {
        inbox,
        answers,
        meta,
    })
}

/// What is observed of a request's answers.
fn observed(extras: &Extras, methods: &ContextMethods) -> Result<Observe, ApiError> {
    match (&methods.keep, extras.attention) {
        (_, false) => Ok(Observe::Nothing),
        (None, true) => Ok(Observe::Attention),
        (Some(keep), true) => Err(ApiError::field(
            "longview.attention",
            format!(
                "what attention rests on cannot be shown under keep {}: what it drops is not there to be looked \
                 at; leave one of the two out",
                keep.text
            ),
        )
        .code("method_not_available")),
    }
}

/// What may be taken over from what was read before. Text moves only where nothing else acts on it.
fn reused(
    engine: &Engine,
    settings: &Settings,
    extras: &Extras,
    methods: &ContextMethods,
    meta: &mut Meta,
) -> Result<Reuse, ApiError> {
    let reuse = settings.methods.reuse();
    if reuse == Reuse::Prefix || methods.is_nothing() && !settings.goes_on {
        return Ok(reuse);
    }
    let text = |stage| settings.methods.text(stage, engine.kv_type());
    let acts = |stage: &Stage| match stage {
        Stage::Prefill => methods.prefill.is_some(),
        Stage::Keep => methods.keep.is_some(),
        Stage::Store => methods.store.is_some(),
        Stage::Read => methods.read.is_some(),
        Stage::Prompt | Stage::Reuse | Stage::Decode => false,
    };
    let others = Stage::ALL.into_iter().filter(acts);
    let others: Vec<String> = others
        .map(|stage| format!("{stage} {}", text(stage)))
        .collect();
    let why = format!(
        "text cannot be moved in a context that {} acts on",
        others.join(", ")
    );
    if extras.reuse.is_some() {
        return Err(ApiError::field(
            "longview.reuse",
            format!("{why}; leave one of the two out, or ask for reuse prefix"),
        )
        .code("method_not_available"));
    }
    meta.methods.insert("reuse".to_owned(), "prefix".into());
    meta.notices.push(format!(
        "{why}: only what the prompt begins with is taken over"
    ));
    Ok(Reuse::Prefix)
}

/// The methods that act on the context of a request. A context that it names was read already.
fn acting(
    engine: &Engine,
    settings: &Settings,
    extras: &Extras,
    meta: &mut Meta,
) -> Result<ContextMethods, ApiError> {
    let mut methods = settings.methods.acting();
    let forms = settings.methods.kv_forms();
    methods.store = forms.filter(|&forms| forms != engine.kv_forms());
    if settings.goes_on {
        return Ok(methods);
    }
    let Some(name) = extras.context.as_ref() else {
        return Ok(methods);
    };
    if methods.store.is_some() {
        meta.notices.push(format!(
            "the context {name:?} is read anew, for this request alone: it is held in another form"
        ));
        return Ok(methods);
    }
    let Some(prefill) = methods.prefill.take() else {
        return Ok(methods);
    };
    if extras.prefill.is_some() {
        return Err(ApiError::field(
            "longview.prefill",
            format!(
                "the context {name:?} was read already, so {} cannot say how; leave one of the two out",
                prefill.text
            ),
        )
        .code("method_not_available"));
    }
    meta.methods.insert("prefill".to_owned(), "dense".into());
    meta.notices.push(format!(
        "the context was read before, exactly: prefill {} does not act on it",
        prefill.text
    ));
    Ok(methods)
}

impl Running {
    /// Waits for all texts.
    pub(crate) async fn finish(self, app: &App) -> Result<Finished, ApiError> {
        let guard = CancelGuard(Some(app));
        let collected = self.inbox.collect(self.answers);
        let collected = match app.options().request_timeout {
            None => collected.await,
            Some(limit) => tokio::time::timeout(limit, collected)
                .await
                .map_err(|_| timed_out(limit))?,
        };
        guard.done();
        let Collected { texts, ended } = collected;
        let mut total = Total::default();
        for ended in ended {
            total.add(app, &ended);
            if let Some(error) = ended.error {
                return Err(error.into());
            }
        }
        if texts.iter().any(|text| text.reason.is_none()) {
            return Err(if app.is_stopping() {
                ApiError::unavailable("the server is shutting down; what was read is kept")
            } else {
                ApiError::failed("the engine gave up the request; ask again")
            });
        }
        if texts
            .iter()
            .any(|text| text.reason == Some(FinishReason::Cancelled))
        {
            return Err(ApiError::unavailable(
                "the server is shutting down; what was read is kept",
            ));
        }
        Ok(Finished {
            texts,
            total,
            meta: self.meta,
        })
    }
}

/// What came of a request.
pub(crate) struct Finished {
    pub(crate) texts: Vec<Text>,
    pub(crate) total: Total,
    pub(crate) meta: Meta,
}

/// Counts a client that leaves.
pub(crate) struct CancelGuard<'a>(pub(crate) Option<&'a App>);

impl CancelGuard<'_> {
    pub(crate) fn done(mut self) {
        self.0 = None;
    }
}

impl Drop for CancelGuard<'_> {
    fn drop(&mut self) {
        if let Some(app) = self.0 {
            app.metrics().cancelled();
        }
    }
}

pub(crate) fn timed_out(limit: std::time::Duration) -> ApiError {
    ApiError::timeout(format!(
        "the request took longer than the {} s that this server allows; what was read is kept, so ask \
         again to go on from there",
        limit.as_secs()
    ))
}

/// Why a text ended, in OpenAI's words.
pub(crate) fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::EndOfText | FinishReason::Stop => "stop",
        FinishReason::Length | FinishReason::ContextFull => "length",
        FinishReason::Cancelled => "cancelled",
    }
}
