//! Answers as streams of events, in whatever protocol.

use std::collections::VecDeque;
use std::convert::Infallible;

use axum::response::Response;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::stream;
use longview::FinishReason;
use longview::schedule::{Scored, Token};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use crate::app::App;
use crate::error::ApiError;
use crate::input::Ignored;
use crate::outbox::{Inbox, MOST_TOKENS, News};
use crate::reading::Reading;
use crate::report::{Meta, Total};
use crate::run::{Running, timed_out};
use crate::tools::Piece;

/// One message of a stream.
pub(crate) struct Message {
    /// The type in the `event:` line, where the protocol has one.
    pub(crate) event: Option<&'static str>,
    /// The `data:` line.
    pub(crate) data: String,
}

/// How a protocol puts news into messages.
pub(crate) trait Protocol: Send + 'static {
    /// The stream begins.
    fn begin(&mut self, out: &mut Vec<Message>);

    /// Reading has begun; of all prompts begun `reused` tokens were taken over.
    fn started(&mut self, _reused: usize, _out: &mut Vec<Message>) {}

    /// A prompt is read so far; of it `reused` tokens were taken over.
    fn progress(&mut self, _reused: usize, _done: usize, _total: usize, _out: &mut Vec<Message>) {}

    /// How likely the tokens of a prompt are, whose texts count from `first_answer`.
    fn scored(&mut self, _first_answer: usize, _tokens: &[Scored], _out: &mut Vec<Message>) {}

    /// More of a text, and the tokens that were chosen for it where they are wanted.
    fn pieces(
        &mut self,
        answer: usize,
        pieces: Vec<Piece>,
        tokens: &[Token],
        out: &mut Vec<Message>,
    );

    /// A text is complete.
    fn finished(&mut self, answer: usize, end: &End, out: &mut Vec<Message>);

    /// Everything is.
    fn end(&mut self, total: &Total, meta: &Meta, out: &mut Vec<Message>);

    /// Something failed; the stream ends.
    fn failed(&mut self, error: &ApiError, out: &mut Vec<Message>);
}

/// How a text has ended.
pub(crate) struct End {
    pub(crate) reason: FinishReason,
    /// The stop string that ended it.
    pub(crate) stop: Option<String>,
    /// Calls in it.
    pub(crate) calls: usize,
}

impl Message {
    /// A message without a type.
    pub(crate) fn data(value: &Value) -> Message {
        Message {
            event: None,
            data: value.to_string(),
        }
    }

    /// A message of type `event`.
    pub(crate) fn typed(event: &'static str, value: &Value) -> Message {
        Message {
            event: Some(event),
            data: value.to_string(),
        }
    }
}

struct State<P> {
    app: App,
    inbox: Inbox,
    protocol: P,
    /// One a text.
    readings: Vec<Reading>,
    meta: Meta,
    total: Total,
    reused: usize,
    /// Texts that are not complete.
    open: usize,
    error: Option<ApiError>,
    pending: VecDeque<Message>,
    deadline: Option<Instant>,
    over: bool,
}

/// Streams a request's news; each text is read by a reading that `reading` makes. Leaving the stream ends
/// the request; what it has read stays.
pub(crate) fn respond<P: Protocol>(
    app: &App,
    running: Running,
    mut protocol: P,
    reading: impl Fn() -> Reading,
    ignored: &Ignored,
) -> Response {
    let mut first = Vec::new();
    protocol.begin(&mut first);
    let state = State {
        app: app.clone(),
        inbox: running.inbox,
        protocol,
        readings: std::iter::repeat_with(reading)
            .take(running.answers)
            .collect(),
        meta: running.meta,
        total: Total::default(),
        reused: 0,
        open: running.answers,
        error: None,
        pending: first.into(),
        deadline: app
            .options()
            .request_timeout
            .map(|limit| Instant::now() + limit),
        over: false,
    };
    let messages = stream::unfold(state, |mut state| async move {
        let message = state.next().await?;
        let event = Event::default().data(message.data);
        let event = match message.event {
            Some(name) => event.event(name),
            None => event,
        };
        Some((Ok::<_, Infallible>(event), state))
    });
    let alive = KeepAlive::new().interval(app.options().keep_alive);
    let mut response = ignored.on(Sse::new(messages).keep_alive(alive));
    // Proxies that buffer would hold back what is streamed.
    response.headers_mut().insert(
        "x-accel-buffering",
        axum::http::HeaderValue::from_static("no"),
    );
    response
}

impl<P: Protocol> State<P> {
    async fn next(&mut self) -> Option<Message> {
        loop {
            if let Some(message) = self.pending.pop_front() {
                return Some(message);
            }
            if self.over {
                return None;
            }
            let news = match self.deadline {
                None => self.inbox.next().await,
                Some(deadline) => match timeout_at(deadline, self.inbox.next()).await {
                    Ok(news) => news,
                    Err(_) => {
                        let limit = self.app.options().request_timeout.unwrap_or_default();
                        self.error = Some(timed_out(limit));
                        None
                    }
                },
            };
            let mut out = Vec::new();
            self.take(news, &mut out);
            self.pending.extend(out);
        }
    }

    fn take(&mut self, news: Option<News>, out: &mut Vec<Message>) {
        match news {
            Some(News::Started { reused }) => {
                self.reused += reused;
                self.protocol.started(self.reused, out);
            }
            Some(News::Read { done, total }) => {
                self.protocol.progress(self.reused, done, total, out);
            }
            Some(News::Scored {
                first_answer,
                tokens,
            }) => self.protocol.scored(first_answer, &tokens, out),
            Some(News::Text {
                answer,
                text,
                tokens,
            }) => {
                let pieces = self.readings[answer].push(&text);
                if !pieces.is_empty() || !tokens.is_empty() {
                    self.protocol.pieces(answer, pieces, &tokens, out);
                }
            }
            Some(News::Finished {
                answer,
                reason,
                stop,
            }) => {
                self.open -= 1;
                if reason == FinishReason::Cancelled {
                    let slow = self.inbox.is_too_slow();
                    self.error.get_or_insert_with(|| match slow {
                        true => too_slow(),
                        false => stopping(),
                    });
                }
                let pieces = self.readings[answer].finish();
                if !pieces.is_empty() {
                    self.protocol.pieces(answer, pieces, &[], out);
                }
                let calls = self.readings[answer].calls;
                let end = End {
                    reason,
                    stop,
                    calls,
                };
                self.protocol.finished(answer, &end, out);
            }
            Some(News::Ended(ended)) => {
                self.total.add(&self.app, &ended);
                if let Some(error) = ended.error {
                    self.error.get_or_insert(error.into());
                }
            }
            None => {
                self.over = true;
                if self.error.is_none() && self.open > 0 {
                    self.error = Some(match self.app.is_stopping() {
                        true => stopping(),
                        false => ApiError::failed("the engine gave up the request; ask again"),
                    });
                }
                match self.error.take() {
                    Some(error) => self.protocol.failed(&error, out),
                    None => self.protocol.end(&self.total, &self.meta, out),
                }
            }
        }
    }
}

/// Dropped before it is over, because the client has left.
impl<P> Drop for State<P> {
    fn drop(&mut self) {
        if !self.over {
            self.app.metrics().cancelled();
        }
    }
}

fn stopping() -> ApiError {
    ApiError::unavailable("the server is shutting down; what was read is kept")
}

fn too_slow() -> ApiError {
    ApiError::timeout(format!(
        "the stream was not read: {MOST_TOKENS} tokens with their probabilities wait for it, and no more are kept; \
         read it while it is written, or ask for fewer"
    ))
    .code("client_too_slow")
}

/// How far a prompt is read, as every protocol says it.
pub(crate) fn progress(reused: usize, done: usize, total: usize) -> Value {
    json!({ "reused_tokens": reused, "done_tokens": done, "total_tokens": total })
}
