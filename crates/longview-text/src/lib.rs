//! Tokenizers, chat templates and the streaming detokenizer: everything between a person's text
//! and a model's token ids.
//!
//! - [`Tokenizer`]: text ↔ ids, from a Hugging Face folder or from a GGUF's own [`Vocabulary`].
//! - [`StreamDecoder`]: ids → text one at a time, never splitting a character.
//! - [`StopMatcher`]: cuts a streamed text exactly before a stop string.

mod bpe;
mod ends;
mod error;
mod huggingface;
mod pieces;
mod presplit;
mod special;
mod spm;
mod stop;
mod stream;
mod tokenizer;
mod vocabulary;

pub use error::TextError;
pub use stop::{Emit, StopMatcher};
pub use stream::{ShowSpecials, Start, StreamDecoder};
pub use tokenizer::{Specials, Tokenizer};
pub use vocabulary::{AfterControl, TokenKind, Vocabulary};
