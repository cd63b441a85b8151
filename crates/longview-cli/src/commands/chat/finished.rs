//! What of a conversation's messages is finished work.

use std::ops::Range;

use longview::finished_work;
use longview::text::Message;

/// Empties finished work in `messages`, all but the `last` pieces that were finished last, and returns how
/// many pieces that were: results of tools that an answer has followed, and what answers report as
/// finished (see [`finished_work`]). Messages stay, so that whose turn it was can still be read.
pub(super) fn leave(messages: &mut [Message], last: usize) -> usize {
    let answered = messages
        .iter()
        .rposition(|message| message.role == "assistant");
    let mut pieces: Vec<(usize, Range<usize>)> = Vec::new();
    for (index, message) in messages
        .iter()
        .enumerate()
        .take(answered.map_or(0, |at| at + 1))
    {
        let text = content(message);
        match message.role.as_str() {
            "tool" if !text.is_empty() => pieces.push((index, 0..text.len())),
            "assistant" => {
                let spans = finished_work(text, 0).into_iter();
                pieces.extend(spans.map(|span| (index, span)));
            }
            _ => {}
        }
    }
    pieces.truncate(pieces.len().saturating_sub(last));
    // From the back, so that places before stay what they are.
    for (index, span) in pieces.iter().rev() {
        let mut text = content(&messages[*index]).to_owned();
        text.replace_range(span.clone(), "");
        messages[*index].content = Some(text.into());
    }
    pieces.len()
}

/// `text` without the insides of its finished work, all but the `last` pieces that were finished last.
pub(super) fn emptied(mut text: String, last: usize) -> String {
    for span in finished_work(&text, last).into_iter().rev() {
        text.replace_range(span, "");
    }
    text
}

fn content(message: &Message) -> &str {
    let content = message.content.as_ref();
    content
        .and_then(|content| content.as_str())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(messages: &[Message]) -> Vec<&str> {
        messages.iter().map(content).collect()
    }

    #[test]
    fn results_leave_once_an_answer_has_followed_and_the_last_ones_stay() {
        let mut messages: Vec<Message> = [
            ("user", "look it up"),
            ("assistant", "{\"subtasks\": [1, [2]], \"conclusion\": 3}"),
            ("tool", "a long page"),
            ("assistant", "so far"),
            ("tool", "another page"),
            ("assistant", "it is 4"),
            ("tool", "nobody has read this"),
        ]
        .map(|(role, text)| Message::new(role, text))
        .into();
        assert_eq!(leave(&mut messages, 3), 0);
        assert_eq!(leave(&mut messages, 1), 2);
        let wanted = [
            "look it up",
            "{\"subtasks\": [], \"conclusion\": 3}",
            "",
            "so far",
            "another page",
            "it is 4",
            "nobody has read this",
        ];
        assert_eq!(texts(&messages), wanted);
        // What is empty is no work any more.
        assert_eq!(leave(&mut messages, 1), 0);
        assert_eq!(leave(&mut messages, 0), 1);
        assert_eq!(texts(&messages)[4], "");
        assert_eq!(leave(&mut [Message::new("tool", "x")], 0), 0);
        // What left while an answer was written is no piece any more.
        let text = "{\"subtasks\": [1], \"subtasks\": [2]}".to_owned();
        let text = emptied(text, 1);
        assert_eq!(text, "{\"subtasks\": [], \"subtasks\": [2]}");
        assert_eq!(leave(&mut [Message::new("assistant", text.as_str())], 1), 0);
    }
}
