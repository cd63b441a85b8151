//! Items of a conversation as messages.

use serde_json::{Value, json};

use crate::error::ApiError;
use crate::prompt::{ChatMessage, Content, Part};

/// Adds what an item says to a conversation. `place` is where it stands in the request.
pub(super) fn add(
    place: &str,
    item: &Value,
    messages: &mut Vec<ChatMessage>,
) -> Result<(), ApiError> {
    let param = |name: &str| format!("{place}.{name}");
    let field = |name: &str| item.get(name).and_then(Value::as_str).map(str::to_owned);
    match field("type").as_deref() {
        None | Some("message") => {
            let role = field("role")
                .ok_or_else(|| ApiError::field(param("role"), "a message needs a role"))?;
            let content = item.get("content").cloned().unwrap_or_default();
            let content: Content = serde_json::from_value(content).map_err(|_| {
                ApiError::field(
                    param("content"),
                    "a message's content is a text or a list of parts",
                )
            })?;
            messages.push(ChatMessage {
                content: Some(content),
                ..ChatMessage::new(&role, "")
            });
        }
        Some("function_call") => {
            let call = json!({
                "id": field("call_id"),
                "type": "function",
                "function": { "name": field("name"), "arguments": field("arguments") },
            });
            // Calls one after another, and what was said before them, are one turn.
            match messages.last_mut() {
                Some(last) if last.role == "assistant" => {
                    last.tool_calls.get_or_insert_default().push(call);
                }
                _ => messages.push(ChatMessage {
                    content: None,
                    tool_calls: Some(vec![call]),
                    ..ChatMessage::new("assistant", "")
                }),
            }
        }
        Some("function_call_output") => {
            let output = match item.get("output") {
                Some(Value::String(text)) => text.clone(),
                Some(Value::Array(parts)) => {
                    let parts: Vec<Part> =
                        serde_json::from_value(parts.clone().into()).map_err(|_| {
                            ApiError::field(
                                param("output"),
                                "an output is a text or a list of parts",
                            )
                        })?;
                    Content::Parts(parts).text(&param("output"))?
                }
                _ => {
                    return Err(ApiError::field(
                        param("output"),
                        "an output is a text or a list of parts",
                    ));
                }
            };
            messages.push(ChatMessage {
                tool_call_id: field("call_id"),
                ..ChatMessage::new("tool", output)
            });
        }
        // What the model thought is no part of what is said again.
        Some("reasoning") => {}
        Some(other) => {
            return Err(ApiError::field(
                param("type"),
                format!("items of type {other:?} cannot be read here"),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn added(items: &Value) -> Result<Vec<ChatMessage>, ApiError> {
        let mut messages = Vec::new();
        for (at, item) in items.as_array().unwrap().iter().enumerate() {
            add(&format!("input[{at}]"), item, &mut messages)?;
        }
        Ok(messages)
    }

    #[test]
    fn items_become_turns() {
        let call = |id: &str| json!({"type": "function_call", "call_id": id, "name": "f", "arguments": "{}"});
        let messages = added(&json!([
            {"role": "user", "content": "a"},
            {"type": "reasoning", "summary": []},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "b"}]},
            call("1"),
            call("2"),
            {"type": "function_call_output", "call_id": "1", "output": "x"},
            {"type": "function_call_output", "call_id": "2", "output": [{"type": "input_text", "text": "y"}]},
        ]))
        .unwrap();
        let roles: Vec<&str> = messages
            .iter()
            .map(|message| message.role.as_str())
            .collect();
        assert_eq!(roles, ["user", "assistant", "tool", "tool"]);
        assert_eq!(messages[1].tool_calls.as_ref().unwrap().len(), 2);
        assert_eq!(messages[3].tool_call_id.as_deref(), Some("2"));
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_its_place() {
        let param = |item: Value| added(&json!([item])).err().unwrap().param.unwrap();
        assert_eq!(param(json!({"type": "message"})), "input[0].role");
        assert_eq!(
            param(json!({"role": "user", "content": 3})),
            "input[0].content"
        );
        assert_eq!(
            param(json!({"type": "function_call_output"})),
            "input[0].output"
        );
        assert_eq!(
            param(json!({"type": "item_reference", "id": "x"})),
            "input[0].type"
        );
        assert_eq!(param(json!(7)), "input[0].role");
    }
}
