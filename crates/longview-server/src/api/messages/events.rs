//! Answers of Anthropic's protocol as events.

use longview::FinishReason;
use longview::schedule::Token;
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::report::{Meta, Total};
use crate::sse::{End, Message, Protocol, progress};
use crate::tools::Piece;

/// The stream of events.
pub(super) struct Events {
    id: String,
    model: String,
    counts: Counts,
    block: Block,
    index: usize,
    /// Whether the message has begun.
    begun: bool,
    /// Why the text ended, and the stop string that ended it.
    ended: (&'static str, Option<String>),
    progress: bool,
}

/// Tokens of a prompt.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counts {
    pub(super) prompt: usize,
    /// Those up to the last cache breakpoint.
    pub(super) breakpoint: usize,
}

/// The content block that is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Block {
    None,
    Text,
}

impl Events {
    /// Of the answer `id`.
    pub(super) fn new(id: String, model: String, counts: Counts, progress: bool) -> Events {
        Events {
            id,
            model,
            counts,
            block: Block::None,
            index: 0,
            begun: false,
            ended: (stop_reason(FinishReason::Length, 0), None),
            progress,
        }
    }

    /// Begins the message, as soon as it is known how much of its prompt was taken over.
    fn start_message(&mut self, reused: usize, out: &mut Vec<Message>) {
        if std::mem::replace(&mut self.begun, true) {
            return;
        }
        let start = json!({
            "type": "message_start",
            "message": {
                "id": self.id,
                "type": "message",
                "role": "assistant",
                "model": self.model,
                "content": [],
                "stop_reason": null,
                "stop_sequence": null,
                "usage": self.counts.usage(reused, 0),
            },
        });
        out.push(Message::typed("message_start", &start));
        out.push(Message::typed("ping", &json!({ "type": "ping" })));
    }

    fn close(&mut self, out: &mut Vec<Message>) {
        if self.block == Block::Text {
            let stop = json!({ "type": "content_block_stop", "index": self.index });
            out.push(Message::typed("content_block_stop", &stop));
            self.block = Block::None;
            self.index += 1;
        }
    }

    fn start(&self, block: &Value, out: &mut Vec<Message>) {
        let start = json!({
            "type": "content_block_start", "index": self.index, "content_block": block
        });
        out.push(Message::typed("content_block_start", &start));
    }

    fn delta(&self, delta: &Value, out: &mut Vec<Message>) {
        let delta = json!({ "type": "content_block_delta", "index": self.index, "delta": delta });
        out.push(Message::typed("content_block_delta", &delta));
    }
}

impl Protocol for Events {
    fn begin(&mut self, _out: &mut Vec<Message>) {}

    fn started(&mut self, reused: usize, out: &mut Vec<Message>) {
        self.start_message(reused, out);
    }

    fn progress(&mut self, reused: usize, done: usize, total: usize, out: &mut Vec<Message>) {
        if self.progress {
            let ping = json!({
                "type": "ping",
                "longview": { "progress": progress(reused, done, total) },
            });
            out.push(Message::typed("ping", &ping));
        }
    }

    fn pieces(
        &mut self,
        _answer: usize,
        pieces: Vec<Piece>,
        _tokens: &[Token],
        out: &mut Vec<Message>,
    ) {
        for piece in pieces {
            match piece {
                Piece::Text(text) => {
                    if self.block == Block::None {
                        self.start(&json!({ "type": "text", "text": "" }), out);
                        self.block = Block::Text;
                    }
                    self.delta(&json!({ "type": "text_delta", "text": text }), out);
                }
                Piece::Call(call) => {
                    self.close(out);
                    let block = json!({
                        "type": "tool_use", "id": call.id, "name": call.name, "input": {}
                    });
                    self.start(&block, out);
                    let delta = json!({
                        "type": "input_json_delta", "partial_json": call.arguments
                    });
                    self.delta(&delta, out);
                    self.block = Block::Text;
                    self.close(out);
                }
            }
        }
    }

    fn finished(&mut self, _answer: usize, end: &End, out: &mut Vec<Message>) {
        self.close(out);
        self.ended = (stop_reason(end.reason, end.calls), end.stop.clone());
    }

    fn end(&mut self, total: &Total, meta: &Meta, out: &mut Vec<Message>) {
        self.start_message(total.sum.reused_tokens, out);
        let (reason, stop) = &self.ended;
        let delta = json!({
            "type": "message_delta",
            "delta": {
                "stop_reason": reason,
                "stop_sequence": stop,
            },
            "usage": usage(total, &self.counts, meta),
            "longview": total.report(meta),
        });
        out.push(Message::typed("message_delta", &delta));
        let stop = json!({ "type": "message_stop" });
        out.push(Message::typed("message_stop", &stop));
    }

    fn failed(&mut self, error: &ApiError, out: &mut Vec<Message>) {
        out.push(Message::typed("error", &error.anthropic()));
    }
}

/// Why an answer ended.
pub(super) fn stop_reason(reason: FinishReason, calls: usize) -> &'static str {
    match reason {
        _ if calls > 0 => "tool_use",
        FinishReason::Stop => "stop_sequence",
        FinishReason::Length | FinishReason::ContextFull => "max_tokens",
        FinishReason::EndOfText | FinishReason::Cancelled => "end_turn",
    }
}

impl Counts {
    /// Tokens as Anthropic counts: those read from the cache and those written up to a breakpoint apart
    /// from the rest.
    fn usage(&self, reused: usize, written: usize) -> Value {
        let created = self.breakpoint.saturating_sub(reused);
        json!({
            "input_tokens": self.prompt.saturating_sub(reused + created),
            "cache_creation_input_tokens": created,
            "cache_read_input_tokens": reused,
            "output_tokens": written,
        })
    }
}

/// The same of an answer that is complete.
pub(super) fn usage(total: &Total, counts: &Counts, meta: &Meta) -> Value {
    let mut usage = counts.usage(total.sum.reused_tokens, total.sum.generated_tokens);
    if meta.truncated > 0 {
        usage["truncated_tokens"] = meta.truncated.into();
    }
    usage
}
