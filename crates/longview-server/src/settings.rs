//! What a request says about how text is to be written, checked and put together.

use std::collections::BTreeMap;

use longview::keep::Question;
use longview::methods::{
    Arguments, Decode, MethodError, Methods, Sampling, Stage, fresh_seed, nearest, registry,
};
use longview::schedule::{AnswerOptions, Priority};
use longview::text::Moment;
use longview::{EndOfText, GenerateOptions, ShowSpecials};
use serde::Deserialize;
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::app::App;
use crate::error::ApiError;
use crate::grammar::Grammar;
use crate::outbox::Detail;
use crate::prompt::Truncate;

/// The stages in which a context may have methods of its own.
pub(crate) const CONTEXT_STAGES: [Stage; 4] =
    [Stage::Prefill, Stage::Keep, Stage::Store, Stage::Read];

/// The most texts to one prompt.
const MOST_ANSWERS: usize = 16;

/// The most stop strings.
const MOST_STOPS: usize = 16;

/// The most alternatives reported with each token.
const MOST_ALTERNATIVES: usize = 20;

/// What only this server understands; every field may be left out.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub(crate) struct Extras {
    /// A context to ask: its id or label.
    pub(crate) context: Option<String>,
    /// Which of several requests goes first.
    pub(crate) priority: Option<Rank>,
    /// The date that the model's chat template writes, if it writes one, such as 2026-11-26 or
    /// 2026-11-26T14:30. Left out, a conversation that goes on has the day on which it began, as long as what
    /// was read of it then is known, and any other today's.
    pub(crate) date: Option<String>,
    /// Cut a prompt that is too long instead of refusing it.
    pub(crate) truncate: Option<Truncate>,
    /// Say what was taken over from work done before, and why not more.
    #[serde(default)]
    pub(crate) explain: bool,
    /// Say which parts of the prompt the answer's attention rested on. Takes a second product of queries
    /// and keys at every step.
    #[serde(default)]
    pub(crate) attention: bool,
    /// While the prompt is read, send how far that is (streams only).
    #[serde(default)]
    pub(crate) progress: bool,
    /// Refuse the request when its keys and values would take more than so many bytes.
    pub(crate) memory: Option<u64>,
    /// Which text enters the model.
    pub(crate) prompt: Option<String>,
    /// Which keys a query attends to while a text is read.
    pub(crate) prefill: Option<String>,
    /// Which keys and values stay.
    pub(crate) keep: Option<String>,
    /// In what form keys and values are held.
    pub(crate) store: Option<String>,
    /// Which keys and values a decode step reads.
    pub(crate) read: Option<String>,
    /// What may be taken over from what was read before: `prefix`, which is exact, or `shift`, which also
    /// moves text that stood elsewhere in an earlier version of the prompt and is approximate.
    pub(crate) reuse: Option<String>,
    /// How the next token is chosen, in place of temperature and its like.
    pub(crate) decode: Option<String>,
}

/// What a context is read under; what is left out is what the model defines.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ContextMethods {
    /// Which keys a query attends to while the text is read.
    pub(crate) prefill: Option<String>,
    /// Which keys and values stay: by a method that needs no question.
    pub(crate) keep: Option<String>,
    /// In what form keys and values are held.
    pub(crate) store: Option<String>,
    /// Which keys and values a decode step of its answers reads.
    pub(crate) read: Option<String>,
}

/// Which of several requests goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Rank {
    /// Work that nobody waits for.
    Low,
    /// Everything else.
    Normal,
    /// Before all others.
    High,
}

/// One stop string or several.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Stop {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

/// What the fields of a request say about sampling, whatever protocol they came by.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wishes {
    pub(crate) answers: Option<u32>,
    pub(crate) max_tokens: Option<u64>,
    pub(crate) stop: Option<Stop>,
    pub(crate) temperature: Option<f64>,
    pub(crate) top_p: Option<f64>,
    pub(crate) top_k: Option<u64>,
    pub(crate) min_p: Option<f64>,
    pub(crate) seed: Option<u64>,
    pub(crate) presence_penalty: Option<f64>,
    pub(crate) frequency_penalty: Option<f64>,
    pub(crate) repetition_penalty: Option<f64>,
    pub(crate) logit_bias: Option<BTreeMap<String, f64>>,
    pub(crate) ignore_eos: bool,
    pub(crate) logprobs: bool,
    /// As [`alternatives`] gives them.
    pub(crate) top_logprobs: usize,
    pub(crate) specials: Option<ShowSpecials>,
    /// Whether the prompt stands before the text, so that a text of no tokens says something.
    pub(crate) echo: bool,
}

/// What the wishes come to.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Texts to each prompt.
    pub(crate) answers: usize,
    /// The most tokens of each.
    pub(crate) max_tokens: usize,
    stop: Vec<String>,
    decode: Decode,
    seed: u64,
    end_of_text: EndOfText,
    specials: ShowSpecials,
    /// How many alternatives are reported with each token, if probabilities are.
    logprobs: Option<usize>,
    /// The same with each token of the prompt.
    pub(crate) prompt_logprobs: Option<usize>,
    /// Whether single tokens are wanted.
    pub(crate) detail: Detail,
    pub(crate) priority: Priority,
    pub(crate) methods: Methods,
    /// Whether the methods are those that the request's context was made under.
    pub(crate) goes_on: bool,
}

impl Extras {
    /// The date that was asked for.
    pub(crate) fn date(&self) -> Result<Option<Moment>, ApiError> {
        let date = self.date.as_ref().map(|date| date.parse());
        date.transpose()
            .map_err(|error: String| ApiError::field("longview.date", error))
    }
}

/// How many alternatives are reported with each token, where `field` of a request asks for `count`.
///
/// # Errors
/// When that is too many, naming the field: protocols call it otherwise.
pub(crate) fn alternatives(field: &str, count: Option<usize>) -> Result<usize, ApiError> {
    match count.unwrap_or(0) {
        count if count > MOST_ALTERNATIVES => Err(ApiError::field(
            field,
            format!(
                "{field} is {count}, but at most {MOST_ALTERNATIVES} alternatives are reported with each token"
            ),
        )),
        count => Ok(count),
    }
}

impl Wishes {
    /// Checks everything and settles what is left open.
    pub(crate) fn settle(self, app: &App, extras: &Extras) -> Result<Settings, ApiError> {
        let answers = self.answers.unwrap_or(1) as usize;
        if !(1..=MOST_ANSWERS).contains(&answers) {
            return Err(ApiError::field(
                "n",
                format!("n is {answers}, but must be from 1 to {MOST_ANSWERS}"),
            ));
        }
        let most = app.options().schedule.most_running;
        if answers > most {
            return Err(ApiError::field(
                "n",
                format!("n is {answers}, but this server writes no more than {most} texts at once"),
            ));
        }
        if self.max_tokens == Some(0) && !self.echo {
            return Err(ApiError::field(
                "max_tokens",
                "max_tokens is 0; an answer needs at least 1 token",
            ));
        }
        let stop = match self.stop.clone() {
            None => Vec::new(),
            Some(Stop::One(stop)) => vec![stop],
            Some(Stop::Many(stops)) => stops,
        };
        if stop.len() > MOST_STOPS {
            return Err(ApiError::field(
                "stop",
                format!(
                    "there are {} stop strings, but at most {MOST_STOPS} may be",
                    stop.len()
                ),
            ));
        }
        let seed = self.seed.unwrap_or_else(fresh_seed);
        let decode = self.decode(app, extras)?;
        Ok(Settings {
            answers,
            max_tokens: match self.max_tokens {
                Some(count) => usize::try_from(count).unwrap_or(usize::MAX),
                None => app.options().usual_answer_tokens,
            },
            stop,
            decode,
            seed,
            end_of_text: if self.ignore_eos {
                EndOfText::Ignored
            } else {
                EndOfText::Ends
            },
            specials: self.specials.unwrap_or(ShowSpecials::Hide),
            logprobs: self.logprobs.then_some(self.top_logprobs),
            prompt_logprobs: (self.logprobs && self.echo).then_some(self.top_logprobs),
            detail: if self.logprobs {
                Detail::Tokens
            } else {
                Detail::Text
            },
            priority: match extras.priority {
                Some(Rank::Low) => Priority::Low,
                Some(Rank::High) => Priority::High,
                Some(Rank::Normal) | None => Priority::Normal,
            },
            methods: methods(app, extras)?,
            goes_on: false,
        })
    }

    fn decode(&self, app: &App, extras: &Extras) -> Result<Decode, ApiError> {
        let decode: Decode = match &extras.decode {
            Some(text) => text
                .parse()
                .map_err(|error| refused("longview.decode", &error))?,
            None => {
                let settled = self.sampling(app)?.decode();
                settled.map_err(|error| refused(self.at_fault(), &error))?
            }
        };
        let vocabulary = app.engine().vocabulary();
        match decode.largest_token() {
            Some(id) if id as usize >= vocabulary => Err(ApiError::field(
                "logit_bias",
                format!(
                    "token {id} is not in the model's vocabulary, whose ids go from 0 to {}",
                    vocabulary - 1
                ),
            )),
            _ => Ok(decode),
        }
    }

    /// The field that cannot be followed: the first that is refused alone.
    fn at_fault(&self) -> &'static str {
        let usual = Sampling::default;
        let (temperature, top_k, top_p) = (self.temperature, self.top_k, self.top_p);
        let (min_p, repeat_penalty) = (self.min_p, self.repetition_penalty);
        let (presence_penalty, frequency_penalty) = (self.presence_penalty, self.frequency_penalty);
        #[rustfmt::skip]
        let alone = [
            ("temperature", Sampling { temperature, ..usual() }),
            ("top_k", Sampling { top_k, ..usual() }),
            ("top_p", Sampling { top_p, ..usual() }),
            ("min_p", Sampling { min_p, ..usual() }),
            ("repetition_penalty", Sampling { repeat_penalty, ..usual() }),
            ("presence_penalty", Sampling { presence_penalty, ..usual() }),
            ("frequency_penalty", Sampling { frequency_penalty, ..usual() }),
        ];
        let mut wrong = alone
            .into_iter()
            .filter(|(_, one)| one.clone().decode().is_err());
        wrong.next().map_or("temperature", |(field, _)| field)
    }

    fn sampling(&self, app: &App) -> Result<Sampling, ApiError> {
        let mut logit_bias = Vec::new();
        for (id, bias) in self.logit_bias.iter().flatten() {
            let number = id
                .parse()
                .map_err(|_| ApiError::field("logit_bias", format!("{id:?} is not a token id")))?;
            if !(-100.0..=100.0).contains(bias) {
                return Err(ApiError::field(
                    "logit_bias",
                    format!("the bias of token {id} is {bias}, but must be from -100 to 100"),
                ));
            }
            logit_bias.push((number, *bias));
        }
        let asked = Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            repeat_penalty: self.repetition_penalty,
            logit_bias,
            ..Sampling::default()
        };
        // A model whose answers are the most likely ones draws when it is told how.
        let cut = asked.top_k.is_some() || asked.top_p.is_some() || asked.min_p.is_some();
        Ok(match &app.options().sampling {
            Some(usual) if usual.temperature == Some(0.0) && cut => asked,
            Some(usual) => asked.or(usual.clone()),
            None => asked.or(Sampling::usual()),
        })
    }
}

impl Settings {
    /// The settings of each text to one prompt, with room for `room` tokens. Texts differ by their
    /// seeds, which count up from the one asked for.
    pub(crate) fn answers(&self, room: usize, grammar: Option<&Grammar>) -> Vec<AnswerOptions> {
        let one = |answer: usize| {
            let seed = self.seed.wrapping_add(answer as u64);
            let mut chain = self.decode.clone().with_open_seed(seed).chain();
            if let Some(grammar) = grammar {
                chain = chain.after(grammar.sampler());
            }
            AnswerOptions {
                generate: GenerateOptions {
                    chain,
                    max_tokens: self.max_tokens.min(room.max(1)),
                    stop: self.stop.clone(),
                    end_of_text: self.end_of_text,
                    specials: self.specials,
                },
                logprobs: self.logprobs,
            }
        };
        (0..self.answers).map(one).collect()
    }

    /// Tokens a context is planned for with a prompt of `prompt` tokens, of at most `limit`.
    pub(crate) fn planned(&self, prompt: usize, limit: usize) -> usize {
        prompt.saturating_add(self.max_tokens).min(limit)
    }

    /// The same for a prompt that begins with a context that was made under `made`: what acted on it
    /// acts on, and a request may only choose what its own answer reads.
    ///
    /// # Errors
    /// When the request chooses more.
    pub(crate) fn going_on(
        mut self,
        app: &App,
        made: Option<&Methods>,
        extras: &Extras,
    ) -> Result<Settings, ApiError> {
        let Some(made) = made else { return Ok(self) };
        let kv_type = app.engine().kv_type();
        for stage in CONTEXT_STAGES {
            let asked = extras.method(stage).is_some();
            if asked && stage == Stage::Read {
                continue;
            }
            let field = format!("longview.{stage}");
            if asked {
                return Err(ApiError::field(
                    field,
                    format!(
                        "the context was made under {stage} {}, which goes on; leave the field out, or ask a \
                         context that was read whole",
                        made.text(stage, kv_type)
                    ),
                )
                .code("method_not_available"));
            }
            let text = made.text(stage, kv_type);
            let set = self.methods.set(stage, &text);
            set.map_err(|error| refused(&field, &error))?;
        }
        self.goes_on = true;
        Ok(self)
    }

    /// The canonical text of the decode stage.
    pub(crate) fn decode_text(&self) -> String {
        self.decode.clone().with_open_seed(self.seed).to_string()
    }
}

/// Refuses a field that [`Extras`] does not have, with the nearest that it has.
pub(crate) fn unknown_extra(name: &str) -> ApiError {
    let known = match Extras::schema() {
        RefOr::T(Schema::Object(object)) => object.properties.into_keys().collect(),
        _ => Vec::new(),
    };
    let names = || known.iter().map(String::as_str);
    let hint = nearest(name, names())
        .map_or_else(String::new, |near| format!(" (did you mean {near:?}?)"));
    ApiError::field(
        format!("longview.{name}"),
        format!(
            "longview has no field {name:?}{hint}; known: {}",
            names().collect::<Vec<_>>().join(", ")
        ),
    )
    .code("unknown_field")
}

impl Extras {
    /// What it says of a stage.
    fn method(&self, stage: Stage) -> Option<&str> {
        let text = match stage {
            Stage::Prompt => &self.prompt,
            Stage::Prefill => &self.prefill,
            Stage::Keep => &self.keep,
            Stage::Store => &self.store,
            Stage::Read => &self.read,
            Stage::Reuse => &self.reuse,
            Stage::Decode => &self.decode,
        };
        text.as_deref()
    }
}

impl ContextMethods {
    /// The methods they are; `None` when they come to what the model defines.
    ///
    /// # Errors
    /// For unknown methods, those that read a file, and those that must know a question.
    pub(crate) fn settle(&self, app: &App) -> Result<Option<Methods>, ApiError> {
        let mut methods = Methods::new();
        let engine = app.engine();
        let kv_type = engine.kv_type();
        let mut is_own = false;
        for (stage, text) in
            CONTEXT_STAGES
                .into_iter()
                .zip([&self.prefill, &self.keep, &self.store, &self.read])
        {
            let Some(text) = text else { continue };
            let field = format!("methods.{stage}");
            check_reads_no_file(app, stage, text, &field)?;
            let usual = methods.text(stage, kv_type);
            let mut chosen = methods.clone();
            let set = chosen.set(stage, text);
            set.map_err(|error| refused(&field, &error))?;
            let is_usual = match stage {
                Stage::Store => chosen.kv_forms() == Some(engine.kv_forms()),
                stage => chosen.text(stage, kv_type) == usual,
            };
            if is_usual {
                continue;
            }
            if let Some(keep) = chosen.keep().filter(|keep| keep.question == Question::Seen) {
                return Err(ApiError::field(
                    field,
                    format!(
                        "keep {} looks at the question to say what stays, and a context is read before there is \
                         one; give it with each request as longview.keep",
                        keep.text
                    ),
                )
                .code("method_not_available"));
            }
            is_own = true;
            methods = chosen;
        }
        Ok(is_own.then_some(methods))
    }
}

/// The methods of a request: the server's, and for every stage that the registry knows what it says
/// itself.
fn methods(app: &App, extras: &Extras) -> Result<Methods, ApiError> {
    let mut methods = app.options().methods.clone();
    let kv_type = app.engine().kv_type();
    for stage in Stage::ALL {
        let Some(text) = extras.method(stage) else {
            continue;
        };
        let field = format!("longview.{stage}");
        check_reads_no_file(app, stage, text, &field)?;
        methods
            .set(stage, text)
            .map_err(|error| refused(&field, &error))?;
        let (asked, held) = (
            methods.text(stage, kv_type),
            app.options().methods.text(stage, kv_type),
        );
        if asked != held && !is_a_requests_own(stage) {
            return Err(ApiError::field(
                field,
                format!(
                    "{stage} {asked} cannot be chosen for one request; this server runs {stage} {held} \
                     for all"
                ),
            )
            .code("method_not_available"));
        }
    }
    Ok(methods)
}

/// Refuses a method that would read a file.
fn check_reads_no_file(app: &App, stage: Stage, text: &str, field: &str) -> Result<(), ApiError> {
    if !reads_a_file(app, stage, text) {
        return Ok(());
    }
    Err(ApiError::field(
        field,
        format!(
            "{text:?} names a file, and requests do not choose which files this server reads; start it with {} \
             for all requests",
            stage.flag()
        ),
    )
    .code("method_not_available"))
}

/// Whether a method would read a file that is not the server's own choice. It is asked before the method
/// is made.
fn reads_a_file(app: &App, stage: Stage, text: &str) -> bool {
    // What is wrong with a text is told where it is set.
    let Ok(resolved) = registry::resolve(stage, text) else {
        return false;
    };
    let held = app.options().methods.text(stage, app.engine().kv_type());
    let reads =
        |(_, arguments): &(_, Arguments)| arguments.names_a_file() && arguments.to_string() != held;
    resolved.iter().any(reads)
}

/// Whether each request chooses for itself. What becomes of a text before it is read is the server's affair.
fn is_a_requests_own(stage: Stage) -> bool {
    match stage {
        Stage::Prefill
        | Stage::Keep
        | Stage::Store
        | Stage::Read
        | Stage::Reuse
        | Stage::Decode => true,
        Stage::Prompt => false,
    }
}

fn refused(field: &str, error: &MethodError) -> ApiError {
    ApiError::field(field, error.in_field(field)).code("invalid_method")
}
