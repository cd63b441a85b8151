//! Tokenizers, chat templates and the streaming detokenizer: everything between a person's text
//! and a model's token ids.
//!
//! - [`Tokenizer`]: text ↔ ids, from a Hugging Face folder or from a GGUF's own [`Vocabulary`].
//! - [`StreamDecoder`]: ids → text one at a time, never splitting a character.
//! - [`ChatTemplate`]: conversations → prompts, as the models' authors wrote them.
//! - [`AskFrame`]: a template cut open around documents and a question.
//! - [`StopMatcher`]: cuts a streamed text exactly before a stop string.

mod bpe;
mod ends;
mod error;
mod footprint;
mod frame;
mod huggingface;
mod moment;
mod pieces;
mod python;
mod special;
mod spm;
mod stop;
mod stream;
mod template;
mod tokenizer;
mod vocabulary;
mod words;

pub use error::TextError;
pub use frame::AskFrame;
pub use moment::Moment;
pub use stop::{Emit, StopMatcher};
pub use stream::{ShowSpecials, Start, StreamDecoder};
pub use template::{ChatTemplate, GenerationPrompt, Message, TemplateVars};
pub use tokenizer::{Specials, Tokenizer};
pub use vocabulary::{AfterControl, TokenKind, Vocabulary};
