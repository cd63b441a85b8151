//! Methods as text.
//!
//! One grammar for every stage:
//!
//! ```text
//! text  = item { "," item }
//! item  = [ key "=" ] value            a method, or one of its arguments
//! key   = word [ number "-" number ]   such as `k`, `window`, `layers 0-1`; or a token id
//! value = number [ unit ] | call | "quoted"
//! call  = word [ "(" [ text ] ")" ]    a word alone is a call without arguments
//! ```
//!
//! Words hold letters, digits, `-`, `_` and `.`; units are letters or `%`.

use std::fmt;
use std::str::FromStr;

use crate::error::MethodError;

/// The longest method text that is read, in bytes.
const MAX_TEXT: usize = 65_536;

/// How deep methods may be nested in each other.
const MAX_DEPTH: usize = 16;

/// A parsed method text: items in the order given. It prints in canonical form, which parses to an
/// equal value.
#[derive(Clone, Debug, PartialEq)]
pub struct MethodText {
    /// At least one item.
    pub items: Vec<Item>,
}

/// A method or an argument, with what it is for.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// What stands before the `=`.
    pub key: Option<Key>,
    /// What stands after it.
    pub value: Value,
    /// Where the item begins, in characters from the start of the text.
    pub place: usize,
}

/// What stands before an `=`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// A parameter, or a part of what is stored such as `k` and `v`.
    Name(String),
    /// A name with a range, such as `layers 0-1`; both ends belong to it.
    Range {
        /// What is counted.
        name: String,
        /// First of the range.
        first: u32,
        /// Last of the range.
        last: u32,
    },
    /// A number, such as a token id.
    Id(u32),
}

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A number with an optional unit.
    Number(Number),
    /// A word, or a method with arguments.
    Call(Call),
    /// Quoted text.
    Text(String),
}

/// A number as it was written, so that no digit is lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Number {
    digits: String,
    /// `%`, `k`, `MiB` or the like; empty for none.
    pub unit: String,
}

/// A name with arguments.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// The method's name.
    pub name: String,
    /// Its arguments, in the order given.
    pub arguments: Vec<Item>,
}

impl Number {
    /// The number without its unit.
    pub fn as_f64(&self) -> f64 {
        self.digits
            .parse()
            .expect("the parser keeps only digits that form a number")
    }

    /// The number without its unit, if it is a whole one below 2⁶⁴.
    pub fn as_u64(&self) -> Option<u64> {
        self.digits
            .strip_prefix('+')
            .unwrap_or(&self.digits)
            .parse()
            .ok()
    }
}

impl Call {
    /// A name without arguments.
    pub fn word(name: &str) -> Call {
        Call {
            name: name.to_owned(),
            arguments: Vec::new(),
        }
    }
}

impl FromStr for MethodText {
    type Err = MethodError;

    fn from_str(text: &str) -> Result<MethodText, MethodError> {
        let mut parser = Parser { text, rest: text };
        if text.len() > MAX_TEXT {
            let shown: String = text.chars().take(40).collect();
            let what = format!("it has {} bytes, more than {MAX_TEXT}", text.len());
            return Err(MethodError::Syntax {
                text: format!("{shown}…"),
                place: 0,
                what,
            });
        }
        let items = parser.items(0)?;
        if !parser.rest.is_empty() {
            return Err(parser.error("expected \",\" or the end"));
        }
        Ok(MethodText { items })
    }
}

impl fmt::Display for MethodText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        list(f, &self.items)
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(key) = &self.key {
            write!(f, "{key}=")?;
        }
        self.value.fmt(f)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Name(name) => f.write_str(name),
            Key::Range { name, first, last } => write!(f, "{name} {first}-{last}"),
            Key::Id(id) => id.fmt(f),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Number(number) => number.fmt(f),
            Value::Call(call) => call.fmt(f),
            Value::Text(text) => {
                write!(f, "\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
            }
        }
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.digits, self.unit)
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if !self.arguments.is_empty() {
            f.write_str("(")?;
            list(f, &self.arguments)?;
            f.write_str(")")?;
        }
        Ok(())
    }
}

fn list(f: &mut fmt::Formatter<'_>, items: &[Item]) -> fmt::Result {
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            f.write_str(", ")?;
        }
        write!(f, "{item}")?;
    }
    Ok(())
}

struct Parser<'a> {
    text: &'a str,
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn items(&mut self, depth: usize) -> Result<Vec<Item>, MethodError> {
        if depth > MAX_DEPTH {
            return Err(self.error(&format!("nested more than {MAX_DEPTH} deep")));
        }
        let mut items = vec![self.item(depth)?];
        while self.take(',') {
            items.push(self.item(depth)?);
        }
        Ok(items)
    }

    fn item(&mut self, depth: usize) -> Result<Item, MethodError> {
        self.skip_space();
        let place = self.place();
        let before = self.rest;
        if let Some(key) = self.key()
            && self.take('=')
        {
            return Ok(Item {
                key: Some(key),
                value: self.value(depth)?,
                place,
            });
        }
        self.rest = before;
        Ok(Item {
            key: None,
            value: self.value(depth)?,
            place,
        })
    }

    /// A key, if one stands here; what was read is given back by the caller when no `=` follows.
    fn key(&mut self) -> Option<Key> {
        let word = self.word();
        if word.is_empty() {
            return None;
        }
        if let Ok(id) = word.parse() {
            return Some(Key::Id(id));
        }
        let name = word.to_owned();
        self.skip_space();
        let range = self.word();
        if range.is_empty() {
            return Some(Key::Name(name));
        }
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.parse().ok()?, last.parse().ok()?);
        Some(Key::Range { name, first, last })
    }

    fn value(&mut self, depth: usize) -> Result<Value, MethodError> {
        self.skip_space();
        if self.rest.starts_with('"') {
            return self.quoted().map(Value::Text);
        }
        if let Some(number) = self.number()? {
            return Ok(Value::Number(number));
        }
        let name = self.word();
        if name.is_empty() {
            return Err(self.error(match self.rest.is_empty() {
                true => "it ends where a name or a number should stand",
                false => "expected a name, a number or a \"quoted\" text",
            }));
        }
        let name = name.to_owned();
        let mut arguments = Vec::new();
        if self.take('(') && !self.take(')') {
            arguments = self.items(depth + 1)?;
            if !self.take(')') {
                return Err(self.error("expected \",\" or \")\""));
            }
        }
        Ok(Value::Call(Call { name, arguments }))
    }

    /// Digits with an optional sign, point, exponent and unit; nothing when a name stands here.
    fn number(&mut self) -> Result<Option<Number>, MethodError> {
        let sign = usize::from(self.rest.starts_with(['+', '-']));
        let body = &self.rest[sign..];
        let infinite = sign == 1 && body.starts_with("inf");
        if !infinite && !body.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
            return Ok(None);
        }
        let mut length = if infinite { 3 } else { digits(body) };
        if body[length..].starts_with('.') {
            length += 1 + digits(&body[length + 1..]);
        }
        if body[length..].starts_with(['e', 'E']) {
            let exponent = &body[length + 1..];
            let sign = usize::from(exponent.starts_with(['+', '-']));
            match digits(&exponent[sign..]) {
                0 => {}
                count => length += 1 + sign + count,
            }
        }
        let (number, rest) = self.rest.split_at(sign + length);
        if number.parse::<f64>().is_err() {
            return Err(self.error("not a number"));
        }
        let unit = rest
            .find(|c: char| !c.is_ascii_alphabetic() && c != '%')
            .unwrap_or(rest.len());
        let (unit, rest) = rest.split_at(unit);
        if rest.starts_with(is_word) {
            return Err(self.error("a name cannot begin with a digit"));
        }
        self.rest = rest;
        Ok(Some(Number {
            digits: number.to_owned(),
            unit: unit.to_owned(),
        }))
    }

    fn quoted(&mut self) -> Result<String, MethodError> {
        let mut text = String::new();
        let mut characters = self.rest.char_indices().skip(1);
        while let Some((index, c)) = characters.next() {
            match c {
                '"' => {
                    self.rest = &self.rest[index + 1..];
                    return Ok(text);
                }
                '\\' => text.extend(characters.next().map(|(_, escaped)| escaped)),
                _ => text.push(c),
            }
        }
        Err(self.error("the closing \" is missing"))
    }

    /// The word that stands here, perhaps empty.
    fn word(&mut self) -> &'a str {
        let end = self.rest.find(|c| !is_word(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    fn take(&mut self, wanted: char) -> bool {
        self.skip_space();
        let taken = self.rest.strip_prefix(wanted);
        self.rest = taken.unwrap_or(self.rest);
        taken.is_some()
    }

    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn place(&self) -> usize {
        self.text[..self.text.len() - self.rest.len()]
            .chars()
            .count()
    }

    fn error(&self, what: &str) -> MethodError {
        MethodError::Syntax {
            text: self.text.to_owned(),
            place: self.place() + 1,
            what: what.to_owned(),
        }
    }
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')
}

fn digits(text: &str) -> usize {
    text.bytes().take_while(u8::is_ascii_digit).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(text: &str) -> String {
        let parsed: MethodText = text.parse().unwrap();
        let printed = parsed.to_string();
        let again: MethodText = printed.parse().unwrap();
        assert_eq!(again.to_string(), printed);
        printed
    }

    #[test]
    fn every_form_prints_in_canonical_form() {
        for (text, want) in [
            ("greedy", "greedy"),
            (" greedy( ) ", "greedy"),
            (
                "temperature(0.7),top-p(p = 0.95)",
                "temperature(0.7), top-p(p=0.95)",
            ),
            (
                "snapkv(window=32, budget=4096, alloc=adakv(floor=0.2), merge=d2o)",
                "snapkv(window=32, budget=4096, alloc=adakv(floor=0.2), merge=d2o)",
            ),
            (
                "k=kivi(bits=4), v=q8,layers 0-1=f16",
                "k=kivi(bits=4), v=q8, layers 0-1=f16",
            ),
            ("layers 3=f16", "layers 3-3=f16"),
            ("retroinfer(touch=2%)", "retroinfer(touch=2%)"),
            (
                "h2o(budget=1.5e3, from=512MiB)",
                "h2o(budget=1.5e3, from=512MiB)",
            ),
            (
                "logit-bias(12=-5, 13=+inf, 14=-inf)",
                "logit-bias(12=-5, 13=+inf, 14=-inf)",
            ),
        ] {
            assert_eq!(canonical(text), want);
        }
        assert_eq!(canonical(r#"f("a \"b\" \\ c")"#), r#"f("a \"b\" \\ c")"#);
    }

    #[test]
    fn numbers_keep_every_digit() {
        let parsed: MethodText = "draw(18446744073709551615)".parse().unwrap();
        let Value::Call(call) = &parsed.items[0].value else {
            panic!("{parsed}")
        };
        let Value::Number(number) = &call.arguments[0].value else {
            panic!("{parsed}")
        };
        assert_eq!(number.as_u64(), Some(u64::MAX));
        assert_eq!(call.arguments[0].place, 5);
    }

    #[test]
    fn mistakes_are_shown_where_they_are() {
        for (text, place, what) in [
            ("", 1, "it ends"),
            ("top-k(", 7, "it ends"),
            ("top-k(4", 8, "expected \",\" or \")\""),
            ("top-k(4))", 9, "the end"),
            ("a,,b", 3, "expected a name"),
            ("a=", 3, "it ends"),
            ("f(\"x", 3, "closing"),
            ("4bit_x", 1, "begin with a digit"),
            ("größe", 3, "the end"),
            (".", 1, "not a number"),
        ] {
            match text.parse::<MethodText>() {
                Err(MethodError::Syntax {
                    place: at,
                    what: said,
                    ..
                }) => {
                    assert_eq!(at, place, "{text}: {said}");
                    assert!(said.contains(what), "{text}: {said}");
                }
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    #[test]
    fn hostile_texts_are_refused() {
        let deep = "a(".repeat(2_000);
        assert!(
            deep.parse::<MethodText>()
                .unwrap_err()
                .to_string()
                .contains("nested")
        );
        let long = "a,".repeat(MAX_TEXT);
        let message = long.parse::<MethodText>().unwrap_err().to_string();
        assert!(
            message.contains("bytes") && message.len() < 200,
            "{message}"
        );
    }
}
