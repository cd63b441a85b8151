//! A vocabulary for models of random weights: right in size and form, and without meaning.
//!
//! The 256 bytes come first, then tokens that mark begin and end of a text, then a few frequent
//! pairs of letters with their merges, then unused places up to the size of the embedding. Any text
//! can be written in it; it takes more tokens than a trained vocabulary would.

use longview_weights::GgufHeader;
use longview_weights::spelling::byte_to_char;

use super::vocabulary::Kind;

/// Joined by merging, in this order.
const PAIRS: [(&str, &str); 12] = [
    ("t", "h"),
    ("i", "n"),
    ("e", "r"),
    ("a", "n"),
    ("Ġ", "t"),
    ("Ġ", "a"),
    ("o", "n"),
    ("r", "e"),
    ("th", "e"),
    ("Ġ", "the"),
    ("in", "g"),
    ("an", "d"),
];

/// The fewest rows of embedding that it fits.
pub(super) const LEAST: usize = 256 + 2 + PAIRS.len();

/// Writes a vocabulary of `rows` tokens, at least [`LEAST`].
pub(super) fn write(rows: usize, header: &mut GgufHeader) {
    let mut tokens: Vec<String> = (0..=255)
        .map(|byte| byte_to_char(byte).to_string())
        .collect();
    let mut kinds = vec![Kind::Normal as i32; tokens.len()];
    let bos = tokens.len() as u32;
    for special in ["<|begin_of_text|>", "<|end_of_text|>"] {
        tokens.push(special.to_owned());
        kinds.push(Kind::Control as i32);
    }
    for (left, right) in PAIRS {
        tokens.push(format!("{left}{right}"));
        kinds.push(Kind::Normal as i32);
    }
    for id in tokens.len()..rows {
        tokens.push(format!("<|unused_{id}|>"));
        kinds.push(Kind::Unused as i32);
    }
    let merges = PAIRS.map(|(left, right)| format!("{left} {right}"));
    header.str("tokenizer.ggml.model", "gpt2");
    header.str("tokenizer.ggml.pre", "gpt-2");
    header.strings("tokenizer.ggml.tokens", &tokens);
    header.i32s("tokenizer.ggml.token_type", &kinds);
    header.strings("tokenizer.ggml.merges", &merges);
    header.u32("tokenizer.ggml.bos_token_id", bos);
    header.u32("tokenizer.ggml.eos_token_id", bos + 1);
    header.bool("tokenizer.ggml.add_bos_token", true);
    header.bool("tokenizer.ggml.add_eos_token", false);
}
