//! Work that a text reports as finished: results of tools, and sub-tasks whose conclusion stands after
//! them.
//!
//! Known forms are the tree that TIM writes, `"subtasks": [ … ]` and `"tool_result": …` in JSON
//! (<https://arxiv.org/abs/2507.16784>), and `<tool_response> … </tool_response>`, which chat templates
//! put around a tool's result.

use std::ops::Range;

/// The insides of pieces of finished work in `text`, in bytes, ascending: all but the `last` that were
/// finished last. What encloses them stays, so that JSON still parses. Work inside finished work counts
/// with it, and work that has not ended does not count.
pub fn finished_work(text: &str, last: usize) -> Vec<Range<usize>> {
    let mut found = Scan {
        text: text.as_bytes(),
        at: 0,
        open: Vec::new(),
        finished: Vec::new(),
    };
    found.run();
    let mut finished = found.finished;
    finished.truncate(finished.len().saturating_sub(last));
    finished.retain(|inside| !inside.is_empty());
    finished.sort_by_key(|inside| inside.start);
    finished
}

/// The keys whose values are work.
const KEYS: [&[u8]; 2] = [b"\"subtasks\"", b"\"tool_result\""];

/// The words around a tool's result.
const TAGS: [&[u8]; 2] = [b"<tool_response>", b"</tool_response>"];

struct Scan<'a> {
    text: &'a [u8],
    at: usize,
    /// Brackets that are open, none of them outside of work.
    open: Vec<Open>,
    /// In the order in which they ended.
    finished: Vec<Range<usize>>,
}

struct Open {
    closing: u8,
    /// Where the work begins that this bracket encloses.
    work: Option<usize>,
}

impl Scan<'_> {
    fn run(&mut self) {
        while self.at < self.text.len() {
            if let Some(value) = self.work_ahead() {
                self.at = value;
                self.begin_work();
            } else if self.open.is_empty() && self.text[self.at..].starts_with(TAGS[0]) {
                self.tagged();
            } else {
                self.step();
            }
        }
    }

    /// Where the value begins, if one of the keys stands here.
    fn work_ahead(&self) -> Option<usize> {
        let rest = &self.text[self.at..];
        let key = KEYS.iter().find(|key| rest.starts_with(key))?;
        // Inside a string of a string the quotation mark is escaped.
        if self.at > 0 && self.text[self.at - 1] == b'\\' {
            return None;
        }
        let mut at = self.skip_spaces(self.at + key.len());
        if self.text.get(at) != Some(&b':') {
            return None;
        }
        at = self.skip_spaces(at + 1);
        (at < self.text.len()).then_some(at)
    }

    fn begin_work(&mut self) {
        match self.text[self.at] {
            bracket @ (b'[' | b'{') => {
                self.open.push(Open {
                    closing: closing(bracket),
                    work: Some(self.at + 1),
                });
                self.at += 1;
            }
            b'"' => {
                if let Some(end) = self.string_end(self.at) {
                    self.finish(self.at + 1..end - 1);
                    self.at = end;
                } else {
                    self.at = self.text.len();
                }
            }
            // A number, true, false or null: nothing worth removing.
            _ => {}
        }
    }

    /// One step over what is no work itself.
    fn step(&mut self) {
        let byte = self.text[self.at];
        self.at += 1;
        if self.open.is_empty() {
            // Words of people: their brackets and quotation marks need not match.
            return;
        }
        match byte {
            b'"' => self.at = self.string_end(self.at - 1).unwrap_or(self.text.len()),
            b'[' | b'{' => self.open.push(Open {
                closing: closing(byte),
                work: None,
            }),
            b']' | b'}' => match self.open.pop() {
                Some(Open { closing, work }) if closing == byte => {
                    if let Some(start) = work {
                        self.finish(start..self.at - 1);
                    }
                }
                // No JSON after all.
                _ => self.open.clear(),
            },
            _ => {}
        }
    }

    fn tagged(&mut self) {
        let start = self.at + TAGS[0].len();
        let rest = &self.text[start..];
        match rest
            .windows(TAGS[1].len())
            .position(|words| words == TAGS[1])
        {
            Some(len) => {
                self.finish(start..start + len);
                self.at = start + len + TAGS[1].len();
            }
            None => self.at = self.text.len(),
        }
    }

    fn finish(&mut self, inside: Range<usize>) {
        // What ended inside it did so just before.
        let within = |earlier: &Range<usize>| earlier.start >= inside.start;
        while self.finished.last().is_some_and(within) {
            self.finished.pop();
        }
        self.finished.push(inside);
    }

    /// Past the closing quotation mark of the string that begins at `at`.
    fn string_end(&self, at: usize) -> Option<usize> {
        let mut at = at + 1;
        loop {
            match self.text.get(at)? {
                b'\\' => at += 2,
                b'"' => return Some(at + 1),
                _ => at += 1,
            }
        }
    }

    fn skip_spaces(&self, at: usize) -> usize {
        let spaces = self.text[at.min(self.text.len())..].iter();
        at + spaces.take_while(|byte| byte.is_ascii_whitespace()).count()
    }
}

fn closing(bracket: u8) -> u8 {
    match bracket {
        b'[' => b']',
        _ => b'}',
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str, last: usize) -> Vec<&str> {
        let spans = finished_work(text, last).into_iter();
        spans.map(|span| &text[span]).collect()
    }

    #[test]
    fn lists_leave_in_the_order_in_which_they_close() {
        let text = r#"{"reasoning": [{"thought": "t", "subtasks": [{"a": 1}], "conclusion": "A"},
            {"subtasks": [{"b": [2]}], "conclusion": "B"}, {"subtasks": [{"c": 3}], "conclusion": "C"}"#;
        assert_eq!(found(text, 2), [r#"{"a": 1}"#]);
        assert_eq!(found(text, 1), [r#"{"a": 1}"#, r#"{"b": [2]}"#]);
        assert_eq!(found(text, 9), [""; 0]);
        assert!(found(text, 0).len() == 3);
    }

    #[test]
    fn inner_work_counts_with_the_outer_and_open_work_not_at_all() {
        let text = r#"{"subtasks": [{"subtasks": [1], "tool_result": "x"}, {"subtasks": [2]}]},
            {"subtasks": [{"tool_result": "done"}, {"thou"#;
        let outer = r#"{"subtasks": [1], "tool_result": "x"}, {"subtasks": [2]}"#;
        assert_eq!(found(text, 0), [outer, "done"]);
    }

    #[test]
    fn strings_hide_brackets_and_prose_hides_nothing() {
        let text = "He said \"it {is\" so. {\"tool_result\": \"a ] \\\" } b\", \"n\": 1} and \
                    <tool_response>\n42 [\n</tool_response> then {\"tool_result\": {\"k\": \"]\"}}.";
        assert_eq!(found(text, 0), ["a ] \\\" } b", "\n42 [\n", "\"k\": \"]\""]);
        // Escaped inside a string, the key is text.
        let quoted = r#"{"tool_result": "{\"subtasks\": [1, 2]}", "x": "\"tool_result\": \"no\""}"#;
        assert_eq!(found(quoted, 0), [r#"{\"subtasks\": [1, 2]}"#]);
        for broken in [
            "\"subtasks\": [}",
            "\"subtasks\"",
            "\"tool_result\": \"open",
            "<tool_response>x",
        ] {
            assert_eq!(found(broken, 0), [""; 0], "{broken}");
        }
    }

    #[test]
    fn what_is_empty_already_is_left_alone() {
        assert_eq!(found(r#"{"subtasks": [], "tool_result": ""}"#, 0), [""; 0]);
    }
}
