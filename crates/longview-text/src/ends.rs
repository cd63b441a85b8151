//! Which tokens end an answer.

/// Tokens that end a turn or a text in the chat formats in use. Files often name only one of
/// them as `eos`; a model that writes any of these has finished.
const ENDINGS: &[&str] = &[
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<|end_of_turn|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|end_of_role|>",
    "<end_of_utterance>",
    "<｜end▁of▁sentence｜>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<eos>",
    "</s>",
];

/// Whether `token` is known to end an answer. Some files mark such tokens as ordinary added text;
/// they are structure all the same, or a document could end the turn it stands in.
pub(crate) fn is_ending(token: &str) -> bool {
    ENDINGS.contains(&token)
}

/// The sorted ids that end an answer: those the files `named`, and every known ending that
/// `special_id` finds as a special token.
pub(crate) fn ending_ids(
    named: impl IntoIterator<Item = u32>,
    special_id: impl Fn(&str) -> Option<u32>,
) -> Vec<u32> {
    // In the harmony format `<|end|>` closes one message of an answer that goes on.
    let harmony = special_id("<|return|>").is_some() && special_id("<|call|>").is_some();
    let known = ENDINGS
        .iter()
        .filter(|&&ending| !(harmony && ending == "<|end|>"))
        .filter_map(|ending| special_id(ending));
    let mut ids: Vec<u32> = named.into_iter().chain(known).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_and_known_endings_are_joined_and_harmony_messages_go_on() {
        let table = |tokens: &'static [&'static str]| {
            move |token: &str| tokens.iter().position(|&t| t == token).map(|i| i as u32)
        };
        assert_eq!(
            ending_ids([7, 1], table(&["a", "<|im_end|>", "<|end|>"])),
            [1, 2, 7]
        );
        assert_eq!(
            ending_ids([], table(&["<|end|>", "<|return|>", "<|call|>"])),
            [1, 2]
        );
    }
}
