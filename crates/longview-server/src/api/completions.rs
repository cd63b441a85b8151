//! `POST /v1/completions`: a text is continued as it is.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::response::Response;
use axum::{Extension, Json};
use longview::FinishReason;
use longview::schedule::{Scored, Start, Token};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::openai::{Frame, Head, StreamOptions, finite};
use crate::app::{App, Guest, Tenancy};
use crate::contexts::Held;
use crate::error::ApiError;
use crate::input::Input;
use crate::prompt::{self, Truncate};
use crate::reading::Reading;
use crate::report::{Meta, Report, Total, Usage};
use crate::run::{self, Begun, Finished, Prepared, Prompt, finish_reason};
use crate::settings::{Extras, Stop, Wishes, alternatives};
use crate::sse::{self, End, Message, Protocol};
use crate::tools::Piece;

/// The most prompts in one request.
const MOST_PROMPTS: usize = 64;

/// The most texts in one request, of all its prompts.
const MOST_TEXTS: usize = 128;

/// The most tokens of prompts whose probabilities are reported in one response.
const MOST_SCORED: usize = 1 << 16;

/// A text to be continued.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub(crate) struct CompletionRequest {
    /// The model's name; left out, it is the one this server runs.
    pub(crate) model: Option<String>,
    /// The text or texts, as they are or as token ids.
    pub(crate) prompt: PromptField,
    pub(crate) stream: Option<bool>,
    pub(crate) stream_options: Option<StreamOptions>,
    /// Texts wanted for each prompt, 1 to 16, and no more than 128 for all prompts together.
    pub(crate) n: Option<u32>,
    /// The most tokens of each text; 16 if it is not said, as the protocol has it. 0 with `echo`.
    pub(crate) max_tokens: Option<u64>,
    pub(crate) stop: Option<Stop>,
    pub(crate) temperature: Option<f64>,
    pub(crate) top_p: Option<f64>,
    pub(crate) top_k: Option<u64>,
    pub(crate) min_p: Option<f64>,
    pub(crate) seed: Option<i64>,
    pub(crate) presence_penalty: Option<f64>,
    pub(crate) frequency_penalty: Option<f64>,
    pub(crate) repetition_penalty: Option<f64>,
    pub(crate) logit_bias: Option<BTreeMap<String, f64>>,
    /// How many alternatives are reported with each token, at most 20; given at all, probabilities are
    /// reported.
    pub(crate) logprobs: Option<usize>,
    /// Whether the prompt stands before the text. With `logprobs` the probabilities of its tokens stand before
    /// those of the text, and it is read anew, whatever is known of it.
    pub(crate) echo: Option<bool>,
    /// Candidates to choose from; only as many as `n` can be had.
    pub(crate) best_of: Option<u32>,
    /// What is to come after the text; cannot be had.
    pub(crate) suffix: Option<String>,
    pub(crate) ignore_eos: Option<bool>,
    /// Cut a prompt that is too long instead of refusing it.
    pub(crate) truncate: Option<Truncate>,
    /// Says who asks; not used.
    #[allow(dead_code, reason = "known to the protocol, and nothing is made of it")]
    pub(crate) user: Option<String>,
    /// What only this server understands.
    pub(crate) longview: Option<Extras>,
}

/// One prompt or several.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum PromptField {
    /// A text.
    Text(String),
    /// Token ids.
    Tokens(Vec<u32>),
    /// Texts.
    Texts(Vec<String>),
    /// Several lists of token ids.
    Lists(Vec<Vec<u32>>),
}

/// The texts.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CompletionResponse {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    system_fingerprint: String,
    choices: Vec<CompletionChoice>,
    usage: Usage,
    /// What was measured.
    longview: Report,
}

/// One text.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CompletionChoice {
    index: usize,
    text: String,
    logprobs: Option<Value>,
    finish_reason: &'static str,
}

/// Continues texts.
#[utoipa::path(
    post, path = "/v1/completions", tag = "OpenAI", request_body = CompletionRequest,
    responses(
        (status = 200, description = "The texts, or a stream of `text/event-stream` chunks", body = CompletionResponse),
        (status = 400, description = "The request is wrong; the message says what to do"),
        (status = 429, description = "Too many requests wait; `Retry-After` says for how long")
    )
)]
pub(crate) async fn create(
    State(app): State<App>,
    Extension(Guest(tenancy)): Extension<Guest>,
    Input { value, ignored, .. }: Input<CompletionRequest>,
) -> Result<Response, ApiError> {
    app.check_model(value.model.as_deref())?;
    let extras = value.longview.clone().unwrap_or_default();
    let request = value.clone();
    let Begun {
        running,
        more: Layout { per_prompt, echoed },
        ..
    } = run::begin(&app, &tenancy, extras, move |app, tenancy, extras| {
        prepare(app, tenancy, &request, extras)
    })
    .await?;
    let head = Head::new(&app, "cmpl-");
    let logprobs = value.logprobs.is_some();
    if value.stream.unwrap_or(false) {
        let (options, extras) = (value.stream_options.as_ref(), value.longview.as_ref());
        let protocol = Chunks {
            frame: Frame::new("text_completion", head, options, extras),
            logprobs,
            offsets: vec![0; running.answers],
            per_prompt,
            echoed,
            app: app.clone(),
        };
        return Ok(sse::respond(
            &app,
            running,
            protocol,
            Reading::as_is,
            &ignored,
        ));
    }
    let Finished { texts, total, meta } = running.finish(&app).await?;
    let choices = texts.iter().enumerate().map(|(index, text)| {
        let prompt = index / per_prompt;
        let lead = echoed.get(prompt);
        let scored = texts[prompt * per_prompt].prompt.iter();
        let told = scored
            .map(Told::from)
            .chain(text.tokens.iter().map(Told::from));
        CompletionChoice {
            index,
            logprobs: logprobs.then(|| legacy_logprobs(&app, told, &mut 0)),
            text: lead.cloned().unwrap_or_default() + &text.text,
            finish_reason: finish_reason(text.reason.unwrap_or(FinishReason::Length)),
        }
    });
    let response = CompletionResponse {
        id: head.id,
        object: "text_completion",
        created: head.created,
        model: head.model,
        system_fingerprint: head.fingerprint,
        choices: choices.collect(),
        usage: total.usage(&meta),
        longview: total.report(&meta),
    };
    Ok(ignored.on(Json(response)))
}

/// Which texts belong to which prompt.
struct Layout {
    /// Texts to each prompt.
    per_prompt: usize,
    /// The prompts as text, where they are to stand before the texts.
    echoed: Vec<String>,
}

fn prepare(
    app: &App,
    tenancy: &Tenancy,
    request: &CompletionRequest,
    extras: &Extras,
) -> Result<(Prepared, Layout), ApiError> {
    if request
        .suffix
        .as_ref()
        .is_some_and(|suffix| !suffix.is_empty())
    {
        return Err(ApiError::field(
            "suffix",
            "this model continues texts only and cannot fill a gap before a suffix; leave it out",
        ));
    }
    if request
        .best_of
        .is_some_and(|best| Some(best) != request.n && best != 1)
    {
        return Err(ApiError::field(
            "best_of",
            "best_of can only be what n is; ask for n texts and choose yourself",
        ));
    }
    let settings = Wishes {
        answers: request.n,
        max_tokens: request.max_tokens.or(Some(16)),
        stop: request.stop.clone(),
        temperature: request.temperature,
        top_p: request.top_p,
        top_k: request.top_k,
        min_p: request.min_p,
        seed: request.seed.map(i64::cast_unsigned),
        presence_penalty: request.presence_penalty,
        frequency_penalty: request.frequency_penalty,
        repetition_penalty: request.repetition_penalty,
        logit_bias: request.logit_bias.clone(),
        ignore_eos: request.ignore_eos.unwrap_or(false),
        logprobs: request.logprobs.is_some(),
        top_logprobs: alternatives("logprobs", request.logprobs)?,
        specials: None,
        echo: request.echo.unwrap_or(false),
    }
    .settle(app, extras)?;
    check_count(&request.prompt, settings.answers)?;
    let held = match &extras.context {
        None => None,
        Some(name) => Some(tenancy.contexts.for_request(app, name)?),
    };
    let made = held.as_ref().and_then(|held| held.methods.as_deref());
    let settings = settings.going_on(app, made, extras)?;
    if settings.goes_on && settings.prompt_logprobs.is_some() {
        return Err(ApiError::field(
            "logprobs",
            "the context was read under methods of its own and cannot be read again for the probabilities of its \
             tokens: leave out \"echo\" or \"logprobs\", or ask a context that was read whole",
        )
        .code("method_not_available"));
    }
    let engine = app.engine();
    let vocabulary = engine.model().blueprint().vocab;
    let of_text = |text: &String| match &held {
        None => prompt::plain(engine, text),
        Some(held) => Ok([&held.tokens[..], &prompt::continued(engine, text)?].concat()),
    };
    let of_tokens = |tokens: &Vec<u32>| {
        if let Some(id) = tokens.iter().find(|&&id| id as usize >= vocabulary) {
            return Err(ApiError::field(
                "prompt",
                format!(
                    "token {id} is not in the model's vocabulary, whose ids go from 0 to {}",
                    vocabulary - 1
                ),
            ));
        }
        Ok(match &held {
            None => tokens.clone(),
            Some(held) => [&held.tokens[..], tokens].concat(),
        })
    };
    let lists: Result<Vec<Vec<u32>>, ApiError> = match &request.prompt {
        PromptField::Text(text) => of_text(text).map(|tokens| vec![tokens]),
        PromptField::Tokens(tokens) => of_tokens(tokens).map(|tokens| vec![tokens]),
        PromptField::Texts(texts) => texts.iter().map(of_text).collect(),
        PromptField::Lists(lists) => lists.iter().map(of_tokens).collect(),
    };
    let lists = lists?;
    if lists.iter().any(Vec::is_empty) {
        return Err(ApiError::field(
            "prompt",
            "the prompt is empty; give some text to continue",
        ));
    }
    let truncate = request.truncate.or(extras.truncate);
    let prompts = lists.into_iter().map(|tokens| {
        let start = held.as_ref().map_or(Start::Nothing, Held::start);
        run::fitted(app, tokens, start, truncate, &settings)
    });
    let prompts: Vec<Prompt> = prompts.collect::<Result<_, _>>()?;
    let tokens: usize = prompts.iter().map(|prompt| prompt.tokens.len()).sum();
    if settings.prompt_logprobs.is_some() && tokens > MOST_SCORED {
        return Err(ApiError::field(
            "logprobs",
            format!(
                "the prompts have {tokens} tokens, but probabilities of at most {MOST_SCORED} are reported in one \
                 response: leave out \"echo\" or \"logprobs\", or ask in several"
            ),
        )
        .code("context_length_exceeded"));
    }
    let text = |prompt: &Prompt| {
        engine
            .tokenizer()
            .decode(&prompt.tokens)
            .unwrap_or_default()
    };
    let layout = Layout {
        per_prompt: settings.answers,
        echoed: match request.echo.unwrap_or(false) {
            false => Vec::new(),
            true => prompts.iter().map(text).collect(),
        },
    };
    let prepared = Prepared {
        cached: 0,
        prompts,
        settings,
        toolbox: None,
        grammar: None,
        notices: Vec::new(),
    };
    Ok((prepared, layout))
}

/// Refuses more prompts, or `answers` texts to each, than one request may have.
fn check_count(prompts: &PromptField, answers: usize) -> Result<(), ApiError> {
    let count = match prompts {
        PromptField::Text(_) | PromptField::Tokens(_) => 1,
        PromptField::Texts(texts) => texts.len(),
        PromptField::Lists(lists) => lists.len(),
    };
    if !(1..=MOST_PROMPTS).contains(&count) {
        return Err(ApiError::field(
            "prompt",
            format!("there are {count} prompts; give from 1 to {MOST_PROMPTS}"),
        ));
    }
    if count * answers > MOST_TEXTS {
        return Err(ApiError::field(
            "n",
            format!(
                "{count} prompts with n {answers} are {} texts, but one request has at most {MOST_TEXTS}; ask in \
                 several",
                count * answers
            ),
        ));
    }
    Ok(())
}

/// A token whose probability is reported: of a prompt or of a text.
struct Told<'a> {
    id: u32,
    logprob: Option<f32>,
    top: &'a [(u32, f32)],
}

impl<'a> From<&'a Scored> for Told<'a> {
    fn from(token: &'a Scored) -> Told<'a> {
        Told {
            id: token.id,
            logprob: token.logprob,
            top: &token.top,
        }
    }
}

impl<'a> From<&'a Token> for Told<'a> {
    fn from(token: &'a Token) -> Told<'a> {
        Told {
            id: token.id,
            logprob: token.logprob,
            top: &token.top,
        }
    }
}

/// Probabilities of tokens as this protocol writes them. `offset` counts characters of the text.
fn legacy_logprobs<'a>(
    app: &App,
    tokens: impl Iterator<Item = Told<'a>>,
    offset: &mut usize,
) -> Value {
    let tokenizer = app.engine().tokenizer();
    let text = |id: u32| {
        let bytes = tokenizer.token_bytes(id).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let (mut names, mut logprobs) = (Vec::new(), Vec::new());
    let (mut alternatives, mut offsets) = (Vec::new(), Vec::new());
    for Told { id, logprob, top } in tokens {
        let name = text(id);
        offsets.push(*offset);
        // Special tokens are not shown.
        if !tokenizer.is_special(id) {
            *offset += name.chars().count();
        }
        logprobs.push(logprob.map(finite));
        // The first token of all has nothing before it, and so no alternatives.
        alternatives.push(logprob.map(|logprob| {
            // The token itself is told of as well, likely or not.
            let own = (id, logprob);
            let others = top.iter().filter(|(other, _)| *other != id);
            let all = [&own].into_iter().chain(others);
            let entries = all.map(|&(id, logprob)| (text(id), finite(logprob).into()));
            Value::Object(entries.collect::<Map<String, Value>>())
        }));
        names.push(name);
    }
    json!({
        "tokens": names,
        "token_logprobs": logprobs,
        "top_logprobs": alternatives,
        "text_offset": offsets,
    })
}

/// The stream of chunks.
struct Chunks {
    frame: Frame,
    logprobs: bool,
    /// Characters of each text so far.
    offsets: Vec<usize>,
    per_prompt: usize,
    echoed: Vec<String>,
    app: App,
}

impl Chunks {
    fn choice(
        &self,
        index: usize,
        text: &str,
        logprobs: Option<Value>,
        reason: Option<&str>,
    ) -> Message {
        Message::data(&self.frame.chunk(json!([{
            "index": index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": reason,
        }])))
    }
}

impl Protocol for Chunks {
    fn begin(&mut self, out: &mut Vec<Message>) {
        if self.logprobs {
            // The prompt comes with its probabilities.
            return;
        }
        for answer in 0..self.offsets.len() {
            if let Some(lead) = self.echoed.get(answer / self.per_prompt) {
                out.push(self.choice(answer, lead, None, None));
            }
        }
    }

    fn progress(&mut self, reused: usize, done: usize, total: usize, out: &mut Vec<Message>) {
        self.frame.progress(reused, done, total, out);
    }

    fn scored(&mut self, first_answer: usize, tokens: &[Scored], out: &mut Vec<Message>) {
        let lead = self.echoed.get(first_answer / self.per_prompt);
        let lead = lead.cloned().unwrap_or_default();
        for answer in first_answer..first_answer + self.per_prompt {
            let told = tokens.iter().map(Told::from);
            let logprobs = legacy_logprobs(&self.app, told, &mut self.offsets[answer]);
            out.push(self.choice(answer, &lead, Some(logprobs), None));
        }
    }

    fn pieces(
        &mut self,
        answer: usize,
        pieces: Vec<Piece>,
        tokens: &[Token],
        out: &mut Vec<Message>,
    ) {
        let texts = pieces.into_iter().filter_map(|piece| match piece {
            Piece::Text(text) => Some(text),
            // Nobody was told of functions.
            Piece::Call(_) => None,
        });
        let text: String = texts.collect();
        let logprobs = match self.logprobs {
            true => Some(legacy_logprobs(
                &self.app,
                tokens.iter().map(Told::from),
                &mut self.offsets[answer],
            )),
            false => None,
        };
        out.push(self.choice(answer, &text, logprobs, None));
    }

    fn finished(&mut self, answer: usize, end: &End, out: &mut Vec<Message>) {
        out.push(self.choice(answer, "", None, Some(finish_reason(end.reason))));
    }

    fn end(&mut self, total: &Total, meta: &Meta, out: &mut Vec<Message>) {
        self.frame.end(total, meta, out);
    }

    fn failed(&mut self, error: &ApiError, out: &mut Vec<Message>) {
        self.frame.failed(error, out);
    }
}
