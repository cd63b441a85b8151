//! Turns of Anthropic's protocol in the words that all protocols share.

use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::app::App;
use crate::error::ApiError;
use crate::prompt::{self, ChatMessage, Content, Part, TemplateExtras};

/// One turn.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub(crate) struct Turn {
    pub(super) role: String,
    content: Blocks,
}

/// A text, or blocks.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Blocks {
    /// A text.
    Text(String),
    /// Blocks: `text`, `tool_use`, `tool_result`.
    List(Vec<Value>),
}

impl Turn {
    /// Adds what it says to a conversation: results of calls are messages of their own.
    pub(super) fn add(&self, at: usize, messages: &mut Vec<ChatMessage>) -> Result<(), ApiError> {
        let param = format!("messages[{at}]");
        if !matches!(self.role.as_str(), "user" | "assistant") {
            return Err(ApiError::field(
                format!("{param}.role"),
                format!(
                    "{:?} is not a role; known are user and assistant",
                    self.role
                ),
            ));
        }
        let blocks = match &self.content {
            Blocks::Text(text) => {
                messages.push(ChatMessage::new(&self.role, text));
                return Ok(());
            }
            Blocks::List(blocks) => blocks,
        };
        let (mut parts, mut calls) = (Vec::new(), Vec::new());
        for (block_at, block) in blocks.iter().enumerate() {
            let param = format!("{param}.content[{block_at}]");
            let field = |name: &str| block.get(name).and_then(Value::as_str);
            match field("type") {
                Some("tool_use") => calls.push(json!({
                    "id": field("id"),
                    "type": "function",
                    "function": {
                        "name": field("name"),
                        "arguments": block.get("input").cloned().unwrap_or_else(|| json!({})),
                    },
                })),
                Some("tool_result") => {
                    let text = match block.get("content") {
                        None | Some(Value::Null) => String::new(),
                        Some(Value::String(text)) => text.clone(),
                        Some(Value::Array(list)) => {
                            let parts = parts_of(list, &format!("{param}.content"))?;
                            Content::Parts(parts).text(&param)?
                        }
                        Some(_) => {
                            return Err(ApiError::field(
                                format!("{param}.content"),
                                "a tool's result is a text or blocks of text",
                            ));
                        }
                    };
                    messages.push(ChatMessage {
                        tool_call_id: field("tool_use_id").map(str::to_owned),
                        ..ChatMessage::new("tool", text)
                    });
                }
                // What the model thought is no part of what is said again.
                Some("thinking" | "redacted_thinking") => {}
                _ => parts.extend(parts_of(std::slice::from_ref(block), &param)?),
            }
        }
        if !parts.is_empty() || !calls.is_empty() {
            messages.push(ChatMessage {
                content: Some(Content::Parts(parts)),
                tool_calls: Some(calls).filter(|calls| !calls.is_empty()),
                ..ChatMessage::new(&self.role, "")
            });
        }
        Ok(())
    }
}

impl Blocks {
    /// Its parts, where it is the field `param`.
    pub(super) fn parts(&self, param: &str) -> Result<Vec<Part>, ApiError> {
        match self {
            Blocks::Text(text) => Ok(vec![Part {
                kind: "text".to_owned(),
                text: Some(text.clone()),
                cache_control: None,
            }]),
            Blocks::List(blocks) => parts_of(blocks, param),
        }
    }
}

fn parts_of(blocks: &[Value], param: &str) -> Result<Vec<Part>, ApiError> {
    let part = |(at, block): (usize, &Value)| {
        serde_json::from_value(block.clone()).map_err(|error| {
            ApiError::field(
                format!("{param}[{at}]"),
                format!("this is no block: {error}"),
            )
        })
    };
    blocks.iter().enumerate().map(part).collect()
}

/// Messages up to the one with the last `cache_control` breakpoint.
pub(super) fn marked(messages: &[ChatMessage]) -> Vec<ChatMessage> {
    let marked = |message: &ChatMessage| match &message.content {
        Some(Content::Parts(parts)) => parts.iter().any(|part| part.cache_control.is_some()),
        _ => false,
    };
    let count = messages.iter().rposition(marked).map_or(0, |last| last + 1);
    messages[..count].to_vec()
}

/// How many of a prompt's `tokens` are those of its first messages, `marked`.
pub(super) fn breakpoint(app: &App, marked: &[ChatMessage], tokens: &[u32]) -> usize {
    if marked.is_empty() {
        return 0;
    }
    // A template that refuses half a conversation tells nothing; then nothing is counted.
    let extras = TemplateExtras::default();
    let head = prompt::chat(app.engine(), app.specials(), marked, &extras, None);
    let head = head.unwrap_or_default();
    let common = head.iter().zip(tokens).take_while(|(a, b)| a == b);
    common.count()
}
