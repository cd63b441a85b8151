//! A picture of which parts of a context an answer's attention rested on.

use longview_kv::{AttentionMap, BLOCK_TOKENS};
use serde::Serialize;

use crate::engine::Engine;

/// Parts that are told with their text.
const MOST: usize = 5;

/// Characters of such a text at most.
const EXCERPT: usize = 200;

/// How an answer's attention was spread over the text before it, in blocks of tokens, averaged over
/// its tokens, the layers with full attention and their heads.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct AttentionPicture {
    /// Tokens in a block.
    pub block_tokens: usize,
    /// Tokens in the context, the answer's included.
    pub tokens: usize,
    /// The share of the attention that rested on each block; together 1.
    pub mass: Vec<f64>,
    /// The share of the steps, layers and KV heads that read each block: 1 unless a read method chose.
    pub read: Vec<f64>,
    /// The blocks of the prompt that most rested on, most first. The first block is left out: attention
    /// rests there that has nowhere else to go.
    pub most: Vec<PicturePart>,
}

/// A part of a picture.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PicturePart {
    /// Its first token.
    pub first_token: usize,
    /// One past its last.
    pub end_token: usize,
    /// The share of the attention that rested on it.
    pub mass: f64,
    /// Its text.
    pub text: String,
}

impl Engine {
    /// The picture of `map`, observed of an answer in a context of `tokens`, of which the first
    /// `prompt_tokens` are the prompt.
    pub fn picture(
        &self,
        map: &AttentionMap,
        tokens: &[u32],
        prompt_tokens: usize,
    ) -> AttentionPicture {
        let of_prompt = map.mass.len().min(prompt_tokens.div_ceil(BLOCK_TOKENS));
        let mut most: Vec<usize> = (1..of_prompt).collect();
        most.sort_by(|&a, &b| map.mass[b].total_cmp(&map.mass[a]).then(a.cmp(&b)));
        most.truncate(MOST);
        most.retain(|&block| map.mass[block] > 0.0);
        let part = |block: usize| {
            let first_token = block * BLOCK_TOKENS;
            let end_token = (first_token + BLOCK_TOKENS).min(prompt_tokens);
            let text = self.tokenizer().decode(&tokens[first_token..end_token]);
            PicturePart {
                first_token,
                end_token,
                mass: rounded(map.mass[block]),
                text: text.unwrap_or_default().chars().take(EXCERPT).collect(),
            }
        };
        AttentionPicture {
            block_tokens: BLOCK_TOKENS,
            tokens: tokens.len(),
            mass: map.mass.iter().copied().map(rounded).collect(),
            read: map.read.iter().copied().map(rounded).collect(),
            most: most.into_iter().map(part).collect(),
        }
    }
}

/// To six digits after the point: a picture needs no more, and thousands of blocks are sent.
fn rounded(share: f64) -> f64 {
    (share * 1e6).round() / 1e6
}
