//! Turns of Anthropic's protocol in the words that all protocols share.

use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::error::ApiError;
use crate::prompt::{ChatMessage, Content, Part};

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
    /// Adds what it says to a conversation: results of calls are messages of their own. Returns whether the
    /// last breakpoint in it is a call, which has no place in a message's text.
    pub(super) fn add(&self, at: usize, messages: &mut Vec<ChatMessage>) -> Result<bool, ApiError> {
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
                return Ok(false);
            }
            Blocks::List(blocks) => blocks,
        };
        let (mut parts, mut calls) = (Vec::new(), Vec::new());
        let mut ends_in_call = false;
        for (block_at, block) in blocks.iter().enumerate() {
            let param = format!("{param}.content[{block_at}]");
            let field = |name: &str| block.get(name).and_then(Value::as_str);
            if is_breakpoint(block) {
                ends_in_call = field("type") == Some("tool_use");
            }
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
                    let is_breakpoint = is_breakpoint(block);
                    messages.push(ChatMessage {
                        tool_call_id: field("tool_use_id").map(str::to_owned),
                        cut: is_breakpoint.then(|| cut_behind(&text)).flatten(),
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
                cut: cut_in(&parts),
                content: Some(Content::Parts(parts)),
                tool_calls: Some(calls).filter(|calls| !calls.is_empty()),
                ..ChatMessage::new(&self.role, "")
            });
        }
        Ok(ends_in_call)
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

/// Whether a block, or the definition of a tool, is a breakpoint.
pub(super) fn is_breakpoint(block: &Value) -> bool {
    block
        .get("cache_control")
        .is_some_and(|control| !control.is_null())
}

/// Where in the joined text of `parts` the last breakpoint is, at its end or before the spaces there, which
/// templates cut off.
pub(super) fn cut_in(parts: &[Part]) -> Option<usize> {
    let last = parts
        .iter()
        .rposition(|part| part.cache_control.is_some())?;
    let texts = parts[..=last]
        .iter()
        .filter_map(|part| part.text.as_deref());
    cut_behind(&texts.collect::<String>())
}

fn cut_behind(text: &str) -> Option<usize> {
    // What is empty must stay so for the template.
    Some(text.trim_end().len()).filter(|&end| end > 0)
}

/// Where a message begins: the cut of what stands before it, where that has no text of its own.
pub(super) fn cut_before(message: &ChatMessage) -> Option<usize> {
    let text = message.content.as_ref()?.text("").ok()?;
    let start = text.len() - text.trim_start().len();
    (start < text.len()).then_some(start)
}
