//! Functions that a model may call: how it is told of them. How its calls are read is [`reader`]'s
//! affair.
//!
//! A model whose template shows no tools is told of them in a system message, and to use the form of
//! Hermes.

mod pythonic;
mod reader;

use serde_json::{Map, Value, json};

use crate::app::{App, new_id};
use crate::error::ApiError;
use crate::prompt::{ChatMessage, Content, TemplateExtras};

pub(crate) use reader::Reader;

/// The most functions.
const MOST_TOOLS: usize = 128;

/// Functions of a request and which of them may be called.
#[derive(Clone, Debug)]
pub(crate) struct Toolbox {
    tools: Vec<Tool>,
    choice: Choice,
}

#[derive(Clone, Debug)]
struct Tool {
    name: String,
    parameters: Value,
    /// As the client gave it.
    given: Value,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Choice {
    /// The model decides.
    Auto,
    /// One at least is called.
    Required,
    /// This one is.
    Named(String),
}

/// A call.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Call {
    pub(crate) id: String,
    pub(crate) name: String,
    /// A JSON object as text.
    pub(crate) arguments: String,
}

/// A part of an answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Piece {
    Text(String),
    Call(Call),
}

impl Toolbox {
    /// The functions of a request; `None` when there are none or none may be called.
    pub(crate) fn new(
        tools: Option<&[Value]>,
        choice: Option<&Value>,
    ) -> Result<Option<Toolbox>, ApiError> {
        let tools = tools.unwrap_or_default();
        if tools.len() > MOST_TOOLS {
            return Err(ApiError::field(
                "tools",
                format!(
                    "there are {} tools, but at most {MOST_TOOLS} may be",
                    tools.len()
                ),
            ));
        }
        let tools: Vec<Tool> = tools
            .iter()
            .enumerate()
            .map(|(at, tool)| Tool::new(at, tool))
            .collect::<Result<_, _>>()?;
        let choice = match choice {
            None | Some(Value::Null) => Choice::Auto,
            Some(Value::String(word)) => match word.as_str() {
                "none" => return Ok(None),
                "auto" => Choice::Auto,
                "required" | "any" => Choice::Required,
                other => {
                    return Err(ApiError::field(
                        "tool_choice",
                        format!("{other:?} is not none, auto, required, or a function"),
                    ));
                }
            },
            Some(named) => {
                let name = named
                    .pointer("/function/name")
                    .or_else(|| named.get("name"));
                let name = name.and_then(Value::as_str).ok_or_else(|| {
                    ApiError::field(
                        "tool_choice",
                        "a function is chosen as {\"type\": \"function\", \"function\": {\"name\": …}}",
                    )
                })?;
                Choice::Named(name.to_owned())
            }
        };
        let known = |name: &String| tools.iter().any(|tool| tool.name == *name);
        match &choice {
            Choice::Named(name) if !known(name) => Err(ApiError::field(
                "tool_choice",
                format!("there is no function {name:?} among the tools"),
            )),
            Choice::Required if tools.is_empty() => Err(ApiError::field(
                "tool_choice",
                "a call is required, but there are no tools to call",
            )),
            _ if tools.is_empty() => Ok(None),
            _ => Ok(Some(Toolbox { tools, choice })),
        }
    }

    /// Tells the model of the functions, through its template or in a system message.
    pub(crate) fn show(
        &self,
        app: &App,
        messages: &mut Vec<ChatMessage>,
        template: &mut TemplateExtras,
    ) {
        let given: Vec<Value> = self.tools.iter().map(|tool| tool.given.clone()).collect();
        if app.takes_tools() {
            template.tools = Some(given.into());
            return;
        }
        let mut text = String::from(
            "You may call functions. To call one, answer with nothing but\n<tool_call>\n{\"name\": \
             NAME, \"arguments\": {…}}\n</tool_call>\nThe functions are:\n",
        );
        for tool in &given {
            text.push_str(&tool["function"].to_string());
            text.push('\n');
        }
        let system = messages
            .iter_mut()
            .find(|message| matches!(message.role.as_str(), "system" | "developer"));
        match system {
            Some(message) => {
                let said = message.content.take();
                let said = said.and_then(|content| content.text("messages").ok());
                let said = said.unwrap_or_default();
                message.content = Some(Content::Text(format!("{said}\n\n{text}")));
            }
            None => messages.insert(0, ChatMessage::new("system", text)),
        }
    }

    /// The schema of one call, where one must be made.
    pub(crate) fn forced(&self) -> Option<Value> {
        match &self.choice {
            Choice::Auto => None,
            Choice::Required => Some(json!({ "anyOf": self.calls() })),
            Choice::Named(name) => {
                let tool = self.tools.iter().find(|tool| tool.name == *name)?;
                Some(tool.call())
            }
        }
    }

    /// Schemas of a call of each function.
    pub(crate) fn calls(&self) -> Vec<Value> {
        self.tools.iter().map(Tool::call).collect()
    }

    /// Reads calls out of an answer.
    pub(crate) fn reader(&self) -> Reader {
        Reader::new(self.tools.iter().map(|tool| tool.name.clone()).collect())
    }
}

impl Tool {
    /// The schema of a call, in a form that is read whatever the model's own.
    fn call(&self) -> Value {
        json!({
            "type": "object",
            "properties": {
                "name": { "const": self.name },
                "arguments": self.parameters,
            },
            "required": ["name", "arguments"],
            "additionalProperties": false,
        })
    }

    fn new(at: usize, tool: &Value) -> Result<Tool, ApiError> {
        let wrong = |field: &str, what: &str| {
            ApiError::field(format!("tools[{at}]{field}"), format!("tool {at} {what}"))
                .code("invalid_tool")
        };
        match tool.get("type").and_then(Value::as_str) {
            Some("function") | None => {}
            Some(other) => {
                return Err(wrong(
                    ".type",
                    &format!("is of type {other:?}; only functions can be called here"),
                ));
            }
        }
        // The responses protocol has the fields of the function beside its type.
        let function = tool.get("function").unwrap_or(tool);
        if !function.is_object() {
            return Err(wrong(".function", "has no function"));
        }
        let name = function.get("name").and_then(Value::as_str).unwrap_or("");
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if name.is_empty() || name.len() > 64 || !name.chars().all(is_plain) {
            return Err(wrong(
                ".function.name",
                "needs a name of 1 to 64 letters, digits, and any of _ - .",
            ));
        }
        let parameters = match function
            .get("parameters")
            .or_else(|| function.get("input_schema"))
        {
            None | Some(Value::Null) => json!({ "type": "object", "properties": {} }),
            Some(object @ Value::Object(_)) => object.clone(),
            Some(_) => {
                return Err(wrong(
                    ".function.parameters",
                    "has parameters that are no JSON schema",
                ));
            }
        };
        let mut shown = Map::new();
        shown.insert("name".to_owned(), name.into());
        if let Some(description) = function.get("description") {
            shown.insert("description".to_owned(), description.clone());
        }
        shown.insert("parameters".to_owned(), parameters.clone());
        Ok(Tool {
            name: name.to_owned(),
            parameters,
            given: json!({ "type": "function", "function": shown }),
        })
    }
}

impl Call {
    fn new(name: &str, arguments: &Value) -> Call {
        Call {
            id: new_id("call_"),
            name: name.to_owned(),
            arguments: match arguments {
                Value::String(text) => text.clone(),
                value => value.to_string(),
            },
        }
    }

    /// As OpenAI's clients read it.
    pub(crate) fn openai(&self) -> Value {
        json!({
            "id": self.id,
            "type": "function",
            "function": { "name": self.name, "arguments": self.arguments },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_tools_are_refused_by_number() {
        let refused = |tools: Value, choice: Value| {
            let tools: Vec<Value> = tools.as_array().unwrap().clone();
            let error = Toolbox::new(Some(&tools), Some(&choice)).err().unwrap();
            error.param.unwrap()
        };
        let good = json!({"type": "function", "function": {"name": "f"}});
        assert_eq!(
            refused(json!([good, {"type": "x"}]), Value::Null),
            "tools[1].type"
        );
        assert_eq!(
            refused(json!([{"type": "function"}]), Value::Null),
            "tools[0].function.name"
        );
        let bad = json!({"type": "function", "function": {"name": "f", "parameters": 3}});
        assert_eq!(
            refused(json!([bad]), Value::Null),
            "tools[0].function.parameters"
        );
        assert_eq!(refused(json!([good]), json!("perhaps")), "tool_choice");
        assert_eq!(
            refused(json!([good]), json!({"function": {"name": "g"}})),
            "tool_choice"
        );
        assert_eq!(refused(json!([]), json!("required")), "tool_choice");
        let none = Toolbox::new(Some(&[good]), Some(&json!("none"))).unwrap();
        assert!(none.is_none());
    }
}
