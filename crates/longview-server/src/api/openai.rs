//! What OpenAI's protocols have in common: what an answer begins with, and the chunks of streams that
//! are not about a text.

use longview::methods::Stage;
use longview::schedule::Token;
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::app::{App, new_id};
use crate::error::ApiError;
use crate::report::{Meta, Total};
use crate::settings::Extras;
use crate::sse::{Message, progress};

/// How a stream is to be.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub(crate) struct StreamOptions {
    /// Whether a last chunk says what was used.
    pub(crate) include_usage: Option<bool>,
}

/// What every answer and every chunk begins with.
#[derive(Clone)]
pub(crate) struct Head {
    pub(crate) id: String,
    pub(crate) created: u64,
    pub(crate) model: String,
    /// What runs, so that a client can tell when answers may change.
    pub(crate) fingerprint: String,
}

/// The frame of a stream of chunks: everything but texts.
pub(crate) struct Frame {
    object: &'static str,
    head: Head,
    include_usage: bool,
    /// Whether what was measured is reported.
    report: bool,
    progress: bool,
}

impl StreamOptions {
    /// Whether a last chunk says what was used.
    pub(crate) fn includes_usage(options: Option<&StreamOptions>) -> bool {
        options
            .and_then(|options| options.include_usage)
            .unwrap_or(false)
    }
}

impl Head {
    /// Of an answer whose id begins with `prefix`.
    pub(crate) fn new(app: &App, prefix: &str) -> Head {
        let engine = app.engine();
        Head {
            id: new_id(prefix),
            created: app.times().seconds(),
            model: app.model().to_owned(),
            fingerprint: format!(
                "longview-{}-{}-{}",
                env!("CARGO_PKG_VERSION"),
                engine.exec().numerics,
                app.options().methods.text(Stage::Store, engine.kv_type())
            ),
        }
    }
}

impl Frame {
    /// Of chunks of type `object`, for a request with these options.
    pub(crate) fn new(
        object: &'static str,
        head: Head,
        options: Option<&StreamOptions>,
        extras: Option<&Extras>,
    ) -> Frame {
        Frame {
            object,
            head,
            include_usage: StreamOptions::includes_usage(options),
            report: extras.is_some(),
            progress: extras.is_some_and(|extras| extras.progress),
        }
    }

    /// A chunk with these choices.
    pub(crate) fn chunk(&self, choices: Value) -> Value {
        json!({
            "id": self.head.id,
            "object": self.object,
            "created": self.head.created,
            "model": self.head.model,
            "system_fingerprint": self.head.fingerprint,
            "choices": choices,
        })
    }

    /// Says how far a prompt is read, where that was asked for.
    pub(crate) fn progress(
        &self,
        reused: usize,
        done: usize,
        total: usize,
        out: &mut Vec<Message>,
    ) {
        if self.progress {
            let mut chunk = self.chunk(json!([]));
            chunk["longview"] = json!({ "progress": progress(reused, done, total) });
            out.push(Message::data(&chunk));
        }
    }

    /// Ends the stream well.
    pub(crate) fn end(&self, total: &Total, meta: &Meta, out: &mut Vec<Message>) {
        // Who has asked for none of it may not expect a chunk without choices.
        if self.include_usage || self.report {
            let mut chunk = self.chunk(json!([]));
            chunk["usage"] = json!(total.usage(meta));
            chunk["longview"] = json!(total.report(meta));
            out.push(Message::data(&chunk));
        }
        out.push(done());
    }

    /// Ends the stream with an error.
    pub(crate) fn failed(&self, error: &ApiError, out: &mut Vec<Message>) {
        out.push(Message::data(&error.openai()));
        out.push(done());
    }
}

/// Probabilities of tokens, as OpenAI writes them.
pub(crate) fn logprobs(app: &App, tokens: &[Token]) -> Vec<Value> {
    let one = |id: u32, logprob: f32| {
        let bytes = app.engine().tokenizer().token_bytes(id).unwrap_or_default();
        json!({
            "token": String::from_utf8_lossy(&bytes),
            "logprob": finite(logprob),
            "bytes": bytes,
        })
    };
    let with_top = |token: &Token| {
        let mut value = one(token.id, token.logprob.unwrap_or(f32::NEG_INFINITY));
        let top = token.top.iter().map(|&(id, logprob)| one(id, logprob));
        value["top_logprobs"] = top.collect();
        value
    };
    tokens.iter().map(with_top).collect()
}

/// JSON knows no infinity; a token that cannot be has −9999, as clients expect.
pub(crate) fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}

fn done() -> Message {
    Message {
        event: None,
        data: "[DONE]".to_owned(),
    }
}
