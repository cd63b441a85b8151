//! How calls are taken out of an answer.
//!
//! Families write calls differently; all of these are read, whichever comes:
//!
//! | family | form |
//! |---|---|
//! | Hermes, Qwen | `<tool_call>{"name": …, "arguments": {…}}</tool_call>` |
//! | Qwen coder | `<tool_call><function=NAME><parameter=KEY>VALUE</parameter></function></tool_call>` |
//! | Mistral | `[TOOL_CALLS][{"name": …, "arguments": {…}}]` or `[TOOL_CALLS]NAME[ARGS]{…}` |
//! | Llama 3 | an answer that is one object `{"name": …, "parameters": {…}}`, after `<|python_tag|>` or not |
//! | Llama 3.2 and later | an answer that is a list of calls as in Python, `[NAME(KEY=VALUE, …), …]` |
//! | Phi 4 mini | `<|tool_call|>[{"name": …, "arguments": {…}}]<|/tool_call|>` |
//! | Gemma 3 | an answer that is an object as Llama's, or a call as in Python, in a fence ```` ```tool_code ```` or ```` ```json ```` |

use serde_json::{Map, Value};

use super::{Call, Piece, pythonic};

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
    /// The inside of a call, up to the closing mark of its opening one.
    Inside(&'static str),
    /// What may be one object or list, up to the end of the answer.
    Whole,
}

const HERMES: &str = "<tool_call>";
const PHI: &str = "<|tool_call|>";
const MISTRAL: &str = "[TOOL_CALLS]";
const PYTHON: &str = "<|python_tag|>";
const MARKS: [&str; 4] = [HERMES, PHI, MISTRAL, PYTHON];

/// Fences that an answer which is a call may stand in.
const FENCES: [&str; 4] = [
    "```json\n",
    "```tool_code\n",
    "```tool_call\n",
    "```python\n",
];

/// What an answer that begins so may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opening {
    Call,
    /// More of it will tell.
    Open,
    Text,
}

impl Reader {
    /// One for functions with these names.
    pub(crate) fn new(names: Vec<String>) -> Reader {
        Reader {
            names,
            held: String::new(),
            state: Reads::Start,
        }
    }

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
            Reads::Inside(mark) => match inside(&held, &self.names) {
                Some(calls) => calls.into_iter().map(Piece::Call).collect(),
                // The answer was cut off in the middle of a call.
                None => vec![Piece::Text(format!("{mark}{held}"))],
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
                self.state = match self.opening(trimmed) {
                    Opening::Open => return false,
                    Opening::Call => Reads::Whole,
                    Opening::Text => Reads::Text,
                };
                true
            }
            Reads::Whole => {
                // Text that only looked like a call is passed on as soon as that is clear.
                if self.opening(self.held.trim_start()) == Opening::Text {
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
                        HERMES | PHI => Reads::Inside(mark),
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
            Reads::Inside(mark) => {
                let close = close(mark);
                let Some(at) = self.held.find(&close) else {
                    return false;
                };
                let rest = self.held.split_off(at + close.len());
                self.held.truncate(at);
                let call = std::mem::replace(&mut self.held, rest);
                match inside(&call, &self.names) {
                    Some(calls) => out.extend(calls.into_iter().map(Piece::Call)),
                    None => out.push(Piece::Text(format!("{mark}{call}{close}"))),
                }
                self.state = Reads::Text;
                true
            }
        }
    }

    /// What an answer may be that begins with `text`, which begins with no space.
    fn opening(&self, text: &str) -> Opening {
        if text.is_empty() {
            return Opening::Open;
        }
        if let Some(first) = FENCES.iter().find_map(|fence| text.strip_prefix(fence)) {
            return self.opening(first.trim_start());
        }
        if [MISTRAL, PYTHON].iter().any(|mark| text.starts_with(mark)) {
            return Opening::Call;
        }
        let longer = FENCES.iter().chain(&[MISTRAL, PYTHON]);
        if longer.into_iter().any(|mark| mark.starts_with(text)) {
            return Opening::Open;
        }
        let inner = text.strip_prefix('[').map_or(text, str::trim_start);
        if inner.starts_with('{') {
            return match may_name(inner) {
                true => Opening::Call,
                false => Opening::Text,
            };
        }
        let mut opening = Opening::Text;
        for name in &self.names {
            let begun = format!("{name}(");
            if inner.starts_with(&begun) {
                return Opening::Call;
            }
            if begun.starts_with(inner) {
                opening = Opening::Open;
            }
        }
        opening
    }
}

/// The mark that closes what `open` opens.
fn close(open: &str) -> String {
    match open.strip_prefix("<|") {
        Some(rest) => format!("<|/{rest}"),
        None => open.replacen('<', "</", 1),
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
        return Some(vec![function_tags(rest, names)?]);
    }
    objects(text, names)
}

/// Calls that are all of an answer.
fn whole(text: &str, names: &[String]) -> Option<Vec<Call>> {
    let text = text.trim();
    if let Some(fenced) = FENCES.iter().find_map(|fence| text.strip_prefix(fence)) {
        return whole(fenced.trim_end().strip_suffix("```")?, names);
    }
    if let Some(rest) = text.strip_prefix(MISTRAL) {
        let rest = rest.trim();
        if let Some((name, arguments)) = rest.split_once("[ARGS]") {
            let name = known(name, names)?;
            let arguments: Value = serde_json::from_str(arguments.trim()).ok()?;
            return Some(vec![Call::new(name, &arguments)]);
        }
        return objects(rest, names);
    }
    let text = text.strip_prefix(PYTHON).unwrap_or(text);
    objects(text, names).or_else(|| {
        let calls = pythonic::calls(text)?;
        let known = |(name, _): &(String, Value)| names.contains(name);
        let calls = calls.iter().all(known).then_some(calls)?;
        Some(
            calls
                .iter()
                .map(|(name, arguments)| Call::new(name, arguments))
                .collect(),
        )
    })
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
    let name = known(function.get("name")?.as_str()?, names)?;
    let empty = Value::Object(Map::new());
    let arguments = function
        .get("arguments")
        .or_else(|| function.get("parameters"))
        .unwrap_or(&empty);
    Some(Call::new(name, arguments))
}

/// `NAME><parameter=KEY>VALUE</parameter>…</function>`; values that are JSON are taken as such.
fn function_tags(text: &str, names: &[String]) -> Option<Call> {
    let (name, mut rest) = text.split_once('>')?;
    let name = known(name, names)?;
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
    Some(Call::new(name, &Value::Object(arguments)))
}

/// A name without the spaces around it, where it is one of `names`.
fn known<'a>(name: &'a str, names: &[String]) -> Option<&'a str> {
    let name = name.trim();
    names.iter().any(|known| known == name).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader() -> Reader {
        Reader::new(["weather", "time"].map(str::to_owned).into())
    }

    /// Texts joined, and names with arguments, whatever the pieces were.
    fn read(text: &str, piece: usize) -> (String, Vec<(String, String)>) {
        let mut reading = reader();
        let characters: Vec<char> = text.chars().collect();
        let mut pieces = Vec::new();
        for part in characters.chunks(piece) {
            pieces.extend(reading.push(&part.iter().collect::<String>()));
        }
        pieces.extend(reading.finish());
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
            ("[weather(city='Paris'), time()]", "", vec![paris(), time()]),
            (
                "Well. <|tool_call|>[{\"name\": \"weather\", \"arguments\": {\"city\": \"Paris\"}}]<|/tool_call|>",
                "Well. ",
                vec![paris()],
            ),
            (
                "```tool_code\nweather(city=\"Paris\")\n```",
                "",
                vec![paris()],
            ),
            (
                "```json\n{\"name\": \"time\", \"parameters\": {}}\n```\n",
                "",
                vec![time()],
            ),
            (
                "```python\nprint(1)\n```",
                "```python\nprint(1)\n```",
                vec![],
            ),
            (
                "<tool_call><function=robbery></function></tool_call>",
                "<tool_call><function=robbery></function></tool_call>",
                vec![],
            ),
            (
                "[TOOL_CALLS]robbery[ARGS]{}",
                "[TOOL_CALLS]robbery[ARGS]{}",
                vec![],
            ),
            ("[1] weather is weather", "[1] weather is weather", vec![]),
            ("weather(nobody knows)", "weather(nobody knows)", vec![]),
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
        let mut reading = reader();
        let pieces = reading.push("{\"answer\": 4");
        assert_eq!(pieces, [Piece::Text("{\"answer\": 4".to_owned())]);
    }
}
