//! Calls written as in Python: `[weather(city="Paris", days=2), time()]`, or one without brackets.

use serde_json::{Map, Number, Value};

/// Names and arguments of the calls that `text` is; `None` when it is anything else.
pub(super) fn calls(text: &str) -> Option<Vec<(String, Value)>> {
    let mut reader = Literals { rest: text.trim() };
    let mut calls = Vec::new();
    if reader.take('[') {
        loop {
            calls.push(reader.call()?);
            if !reader.take(',') || reader.peeks(']') {
                break;
            }
        }
        reader.take(']').then_some(())?;
    } else {
        calls.push(reader.call()?);
    }
    reader.rest.is_empty().then_some(calls)
}

/// Reads Python's literals from the front of a text.
struct Literals<'t> {
    rest: &'t str,
}

/// How deep lists and objects may lie in one another.
const DEEPEST: usize = 32;

impl Literals<'_> {
    fn call(&mut self) -> Option<(String, Value)> {
        let name = self.word()?;
        self.take('(').then_some(())?;
        let mut arguments = Map::new();
        while !self.take(')') {
            let key = self.word()?;
            self.take('=').then_some(())?;
            arguments.insert(key, self.value(0)?);
            if !self.take(',') && !self.peeks(')') {
                return None;
            }
        }
        Some((name, Value::Object(arguments)))
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        if depth > DEEPEST {
            return None;
        }
        if self.take('[') {
            return self.list(']', depth);
        }
        if self.take('(') {
            return self.list(')', depth);
        }
        if self.take('{') {
            return self.object(depth);
        }
        if self.peeks('"') || self.peeks('\'') {
            return self.text().map(Value::String);
        }
        let end = self
            .rest
            .find(|c: char| !(c.is_alphanumeric() || matches!(c, '.' | '+' | '-' | '_')))
            .unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        match word {
            "True" | "true" => Some(Value::Bool(true)),
            "False" | "false" => Some(Value::Bool(false)),
            "None" | "null" => Some(Value::Null),
            number => number.parse::<Number>().ok().map(Value::Number),
        }
    }

    fn list(&mut self, close: char, depth: usize) -> Option<Value> {
        let mut items = Vec::new();
        while !self.take(close) {
            items.push(self.value(depth + 1)?);
            if !self.take(',') && !self.peeks(close) {
                return None;
            }
        }
        Some(Value::Array(items))
    }

    fn object(&mut self, depth: usize) -> Option<Value> {
        let mut fields = Map::new();
        while !self.take('}') {
            self.skip();
            let key = self.text()?;
            self.take(':').then_some(())?;
            fields.insert(key, self.value(depth + 1)?);
            if !self.take(',') && !self.peeks('}') {
                return None;
            }
        }
        Some(Value::Object(fields))
    }

    /// A text in quotation marks of either kind.
    fn text(&mut self) -> Option<String> {
        let mut characters = self.rest.chars();
        let mark = characters.next().filter(|c| matches!(c, '"' | '\''))?;
        let mut text = String::new();
        loop {
            match characters.next()? {
                c if c == mark => break,
                '\\' => match characters.next()? {
                    'n' => text.push('\n'),
                    't' => text.push('\t'),
                    'r' => text.push('\r'),
                    c @ ('\\' | '\'' | '"') => text.push(c),
                    other => text.extend(['\\', other]),
                },
                c => text.push(c),
            }
        }
        self.rest = characters.as_str();
        Some(text)
    }

    fn word(&mut self) -> Option<String> {
        self.skip();
        let is_part = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | '-');
        let end = self.rest.find(|c| !is_part(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        (!word.is_empty()).then(|| word.to_owned())
    }

    fn take(&mut self, wanted: char) -> bool {
        self.skip();
        match self.rest.strip_prefix(wanted) {
            Some(rest) => {
                self.rest = rest;
                self.skip();
                true
            }
            None => false,
        }
    }

    fn peeks(&mut self, wanted: char) -> bool {
        self.skip();
        self.rest.starts_with(wanted)
    }

    fn skip(&mut self) {
        self.rest = self.rest.trim_start();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn calls_with_literals_of_every_kind_are_read() {
        let read = calls("[weather(city='Paris', days=2, metric=True), time()]").unwrap();
        assert_eq!(
            read,
            [
                (
                    "weather".to_owned(),
                    json!({"city": "Paris", "days": 2, "metric": true})
                ),
                ("time".to_owned(), json!({}))
            ]
        );
        let read =
            calls(r#" f( a = [1, -2.5e1, "x\"y\n"], b = {'k': None, "l": (1,)}, ) "#).unwrap();
        assert_eq!(
            read[0].1,
            json!({"a": [1, -25.0, "x\"y\n"], "b": {"k": null, "l": [1]}})
        );
    }

    #[test]
    fn anything_else_is_none() {
        for text in [
            "",
            "[",
            "[]",
            "f",
            "f(",
            "f(1)",
            "f(a=)",
            "f(a=1) and more",
            "[f(a=1)",
            "f(a='x)",
            "f(a={1: 2})",
            "[1, 2]",
            "f(a=g(b=1))",
        ] {
            assert_eq!(calls(text), None, "{text}");
        }
        let deep = format!("f(a={}", "[".repeat(100_000));
        assert_eq!(calls(&deep), None);
    }
}
