//! Functions that a model may call: how it is told of them, and how its calls are read.
//!
//! Families write calls differently; all of these are read, whichever comes:
//!
//! | family | form |
//! |---|---|
//! | Hermes, Qwen | `<tool_call>{"name": …, "arguments": {…}}</tool_call>` |
//! | Qwen coder | `<tool_call><function=NAME><parameter=KEY>VALUE</parameter></function></tool_call>` |
//! | Mistral | `[TOOL_CALLS][{"name": …, "arguments": {…}}]` or `[TOOL_CALLS]NAME[ARGS]{…}` |
//! | Llama 3 | an answer that is one object `{"name": …, "parameters": {…}}`, after `<|python_tag|>` or not |
//!
//! A model whose template shows no tools is told of them in a system message, and to use the first form.

use serde_json::{Map, Value, json};

use crate::app::{App, new_id};
use crate::error::ApiError;
use crate::prompt::{ChatMessage, Content, TemplateExtras};

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
        let of_tool = |tool: &Tool| {
            json!({
                "type": "object",
                "properties": {
                    "name": { "const": tool.name },
                    "arguments": tool.parameters,
                },
                "required": ["name", "arguments"],
                "additionalProperties": false,
            })
        };
        match &self.choice {
            Choice::Auto => None,
            Choice::Required => Some(json!({
                "anyOf": self.tools.iter().map(of_tool).collect::<Vec<_>>()
            })),
            Choice::Named(name) => {
                let tool = self.tools.iter().find(|tool| tool.name == *name)?;
                Some(of_tool(tool))
            }
        }
    }

    /// Reads calls out of an answer.
    pub(crate) fn reader(&self) -> Reader {
        Reader {
            names: self.tools.iter().map(|tool| tool.name.clone()).collect(),
            held: String::new(),
            state: Reads::Start,
        }
    }
}

impl Tool {
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

/// Reads a text that comes in pieces and takes calls out of it.
pub(crate) struct Reader {
    /// Functions that exist: an object that names none of them is text.
    names: Vec<String>,
    held: String,
    state: Reads,
}

enum Reads {
    /// Nothing but spaces so far.
    Start,
    /// Text, which is passed on.
    Text,
    /// The inside of a call, up to its closing mark.
    Inside,
    /// What may be one object or list, up to the end of the answer.
    Whole,
}

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";
const MISTRAL: &str = "[TOOL_CALLS]";
const PYTHON: &str = "<|python_tag|>";
const MARKS: [&str; 3] = [OPEN, MISTRAL, PYTHON];

impl Reader {
    /// Takes the next piece; returns what is certain.
    pub(crate) fn push(&mut self, text: &str) -> Vec<Piece> {
        self.held.push_str(text);
        let mut out = Vec::new();
        while self.advance(&mut out) {}
        out
    }

    /// Ends the text.
    pub(crate) fn finish(&mut self) -> Vec<Piece> {
        let held = std::mem::take(&mut self.held);
        match self.state {
            Reads::Inside => match inside(&held, &self.names) {
                Some(calls) => calls.into_iter().map(Piece::Call).collect(),
                // The answer was cut off in the middle of a call.
                None => vec![Piece::Text(format!("{OPEN}{held}"))],
            },
            Reads::Whole => match whole(&held, &self.names) {
                Some(calls) => calls.into_iter().map(Piece::Call).collect(),
                None => text_piece(held),
            },
            Reads::Start | Reads::Text => text_piece(held),
        }
    }

    /// One step; whether there may be another.
    fn advance(&mut self, out: &mut Vec<Piece>) -> bool {
        match self.state {
            Reads::Start => {
                let trimmed = self.held.trim_start();
                if trimmed.is_empty() {
                    return false;
                }
                let opens = trimmed.starts_with('{')
                    || trimmed.starts_with(MISTRAL)
                    || trimmed.starts_with(PYTHON);
                let may = [MISTRAL, PYTHON]
                    .iter()
                    .any(|mark| mark.starts_with(trimmed));
                self.state = if opens {
                    Reads::Whole
                } else if may {
                    return false;
                } else {
                    Reads::Text
                };
                true
            }
            Reads::Whole => {
                // Text that only looked like a call is passed on as soon as that is clear.
                let text = self.held.trim_start();
                if text.starts_with('{') && !may_name(text) {
                    self.state = Reads::Text;
                    return true;
                }
                false
            }
            Reads::Text => {
                let first = MARKS
                    .iter()
                    .filter_map(|mark| Some((self.held.find(mark)?, *mark)))
                    .min();
                if let Some((at, mark)) = first {
                    let rest = self.held.split_off(at + mark.len());
                    self.held.truncate(at);
                    let before = std::mem::replace(&mut self.held, rest);
                    out.extend(text_piece(before));
                    self.state = match mark {
                        OPEN => Reads::Inside,
                        _ => {
                            self.held.insert_str(0, mark);
                            Reads::Whole
                        }
                    };
                    return true;
                }
                let certain = self.held.len() - partial(&self.held);
                let rest = self.held.split_off(certain);
                let text = std::mem::replace(&mut self.held, rest);
                out.extend(text_piece(text));
                false
            }
            Reads::Inside => {
                let Some(at) = self.held.find(CLOSE) else {
                    return false;
                };
                let rest = self.held.split_off(at + CLOSE.len());
                self.held.truncate(at);
                let call = std::mem::replace(&mut self.held, rest);
                match inside(&call, &self.names) {
                    Some(calls) => out.extend(calls.into_iter().map(Piece::Call)),
                    None => out.push(Piece::Text(format!("{OPEN}{call}{CLOSE}"))),
                }
                self.state = Reads::Text;
                true
            }
        }
    }
}

fn text_piece(text: String) -> Vec<Piece> {
    match text.is_empty() {
        true => Vec::new(),
        false => vec![Piece::Text(text)],
    }
}

/// Bytes at the end of `text` that may be the beginning of a mark.
fn partial(text: &str) -> usize {
    let of_mark = |mark: &&str| {
        (1..mark.len())
            .rev()
            .find(|&len| text.as_bytes().ends_with(&mark.as_bytes()[..len]))
            .unwrap_or(0)
    };
    MARKS.iter().map(of_mark).max().unwrap_or(0)
}

/// Whether an object that begins so may be a call: its first field is one of a call's.
fn may_name(text: &str) -> bool {
    let compact: String = text
        .chars()
        .filter(|c| !c.is_whitespace())
        .take(16)
        .collect();
    [
        "{\"name\":",
        "{\"type\":",
        "{\"function\":",
        "{\"parameters\":",
        "{\"arguments\":",
    ]
    .iter()
    .any(|begin| compact.starts_with(begin) || begin.starts_with(compact.as_str()))
}

/// Calls between `<tool_call>` and its end.
fn inside(text: &str, names: &[String]) -> Option<Vec<Call>> {
    let text = text.trim();
    if let Some(rest) = text.strip_prefix("<function=") {
        return Some(vec![function_tags(rest)?]);
    }
    objects(text, names)
}

/// Calls that are all of an answer.
fn whole(text: &str, names: &[String]) -> Option<Vec<Call>> {
    let text = text.trim();
    if let Some(rest) = text.strip_prefix(MISTRAL) {
        let rest = rest.trim();
        if let Some((name, arguments)) = rest.split_once("[ARGS]") {
            let arguments: Value = serde_json::from_str(arguments.trim()).ok()?;
            return Some(vec![Call::new(name.trim(), &arguments)]);
        }
        return objects(rest, names);
    }
    objects(text.strip_prefix(PYTHON).unwrap_or(text), names)
}

/// One object, several one after another or apart by `;`, or a list of them.
fn objects(text: &str, names: &[String]) -> Option<Vec<Call>> {
    let mut calls = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
        let value = values.next()?.ok()?;
        rest = rest[values.byte_offset()..]
            .trim_start_matches(|c: char| c == ';' || c.is_whitespace());
        match value {
            Value::Array(items) => {
                for item in &items {
                    calls.push(object(item, names)?);
                }
            }
            value => calls.push(object(&value, names)?),
        }
    }
    (!calls.is_empty()).then_some(calls)
}

fn object(value: &Value, names: &[String]) -> Option<Call> {
    let function = match value.get("function") {
        Some(inner @ Value::Object(_)) => inner,
        _ => value,
    };
    let name = function.get("name")?.as_str()?;
    if !names.iter().any(|known| known == name) {
        return None;
    }
    let empty = Value::Object(Map::new());
    let arguments = function
        .get("arguments")
        .or_else(|| function.get("parameters"))
        .unwrap_or(&empty);
    Some(Call::new(name, arguments))
}

/// `NAME><parameter=KEY>VALUE</parameter>…</function>`; values that are JSON are taken as such.
fn function_tags(text: &str) -> Option<Call> {
    let (name, mut rest) = text.split_once('>')?;
    let mut arguments = Map::new();
    while let Some((_, after)) = rest.split_once("<parameter=") {
        let (key, after) = after.split_once('>')?;
        let (value, after) = after.split_once("</parameter>")?;
        let value = value.strip_prefix('\n').unwrap_or(value);
        let value = value.strip_suffix('\n').unwrap_or(value);
        let parsed = serde_json::from_str(value).unwrap_or_else(|_| value.into());
        arguments.insert(key.trim().to_owned(), parsed);
        rest = after;
    }
    Some(Call::new(name.trim(), &Value::Object(arguments)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toolbox() -> Toolbox {
        let tools = [
            json!({"type": "function", "function": {"name": "weather", "parameters": {
                "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]
            }}}),
            json!({"type": "function", "function": {"name": "time"}}),
        ];
        Toolbox::new(Some(&tools), None).unwrap().unwrap()
    }

    /// Texts joined, and names with arguments, whatever the pieces were.
    fn read(text: &str, piece: usize) -> (String, Vec<(String, String)>) {
        let mut reader = toolbox().reader();
        let characters: Vec<char> = text.chars().collect();
        let mut pieces = Vec::new();
        for part in characters.chunks(piece) {
            pieces.extend(reader.push(&part.iter().collect::<String>()));
        }
        pieces.extend(reader.finish());
        let (mut said, mut calls) = (String::new(), Vec::new());
        for piece in pieces {
            match piece {
                Piece::Text(text) => said.push_str(&text),
                Piece::Call(call) => calls.push((call.name, call.arguments)),
            }
        }
        (said, calls)
    }

    #[test]
    fn every_familys_calls_are_read_in_pieces_of_any_size() {
        let paris = || ("weather".to_owned(), "{\"city\":\"Paris\"}".to_owned());
        let time = || ("time".to_owned(), "{}".to_owned());
        let cases = [
            (
                "Let me see. <tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Paris\"}}\n</tool_call>",
                "Let me see. ",
                vec![paris()],
            ),
            (
                "<tool_call>{\"name\": \"weather\", \"arguments\": {\"city\": \"Paris\"}}</tool_call>\n<tool_call>{\"name\": \"time\", \"arguments\": {}}</tool_call>",
                "\n",
                vec![paris(), time()],
            ),
            (
                "<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>",
                "",
                vec![paris()],
            ),
            (
                "[TOOL_CALLS] [{\"name\": \"weather\", \"arguments\": {\"city\": \"Paris\"}}, {\"name\": \"time\"}]",
                "",
                vec![paris(), time()],
            ),
            (
                "[TOOL_CALLS]weather[ARGS]{\"city\": \"Paris\"}",
                "",
                vec![paris()],
            ),
            (
                " {\"name\": \"weather\", \"parameters\": {\"city\": \"Paris\"}}",
                "",
                vec![paris()],
            ),
            (
                "<|python_tag|>{\"type\": \"function\", \"name\": \"weather\", \"parameters\": {\"city\": \"Paris\"}}; {\"name\": \"time\"}",
                "",
                vec![paris(), time()],
            ),
            (
                "No call, {not: one}, a < b.",
                "No call, {not: one}, a < b.",
                vec![],
            ),
            ("{\"answer\": 42}", "{\"answer\": 42}", vec![]),
            (
                "{\"name\": \"nobody\", \"parameters\": {}}",
                "{\"name\": \"nobody\", \"parameters\": {}}",
                vec![],
            ),
            (
                "<tool_call>{\"name\": \"wea",
                "<tool_call>{\"name\": \"wea",
                vec![],
            ),
        ];
        for (text, said, calls) in cases {
            for piece in [1, 3, 1000] {
                let (heard, made) = read(text, piece);
                assert_eq!(
                    (heard.trim(), &made),
                    (said.trim(), &calls),
                    "{text} by {piece}"
                );
            }
        }
    }

    #[test]
    fn an_ordinary_object_is_not_held_back() {
        let mut reader = toolbox().reader();
        let pieces = reader.push("{\"answer\": 4");
        assert_eq!(pieces, [Piece::Text("{\"answer\": 4".to_owned())]);
    }

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
