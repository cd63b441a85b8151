//! Texts and questions as the token ids that a model reads.

use std::time::SystemTime;

use longview::text::{AskFrame, Moment, Start, TemplateVars};
use longview::{ShowSpecials, TemplateOrigin, TextSide, Tokenizer};

use crate::documents::Documents;
use crate::failure::Failure;

/// The tokens of documents, and the frame that questions about them are put into.
pub(crate) struct DocumentPrompt {
    frame: AskFrame,
    /// Head, documents and what stands between them and the question.
    pub(crate) shared: Vec<u32>,
    documents: String,
}

impl DocumentPrompt {
    /// The documents in the model's chat template.
    pub(crate) fn new(
        text: &TextSide,
        vars: &TemplateVars,
        documents: &Documents,
    ) -> Result<DocumentPrompt, Failure> {
        let frame = AskFrame::new(text.template(), vars)?;
        let documents = documents.text();
        let parts = text
            .tokenizer()
            .encode_parts(&frame.parts(&documents, ""))?;
        Ok(DocumentPrompt {
            frame,
            shared: text.with_prefix(parts[..3].concat()),
            documents,
        })
    }

    /// Documents that were read before, `shared` being all tokens up to the question.
    pub(crate) fn kept(
        text: &TextSide,
        vars: &TemplateVars,
        shared: Vec<u32>,
    ) -> Result<DocumentPrompt, Failure> {
        Ok(DocumentPrompt {
            frame: AskFrame::new(text.template(), vars)?,
            shared,
            // Any text that is not empty: see below.
            documents: "x".to_owned(),
        })
    }

    /// The tokens from the question on. Documents and question are tokenised apart, so the shared
    /// tokens never depend on the question.
    pub(crate) fn question(&self, text: &TextSide, question: &str) -> Result<Vec<u32>, Failure> {
        // The first character stands for the documents: what comes before a part decides only
        // whether the part begins a text.
        let first = self
            .documents
            .chars()
            .next()
            .map(String::from)
            .unwrap_or_default();
        let parts = self.frame.parts(&first, question);
        Ok(text.tokenizer().encode_parts(&parts)?[3..].concat())
    }
}

/// The text that `tokens` stand for, special tokens by name.
pub(crate) fn shown(tokenizer: &Tokenizer, tokens: &[u32]) -> Result<String, Failure> {
    let mut stream = tokenizer.stream(Start::Continuation, ShowSpecials::Show);
    let mut text = String::new();
    for &id in tokens {
        text.push_str(&stream.push(id)?);
    }
    text.push_str(&stream.finish());
    Ok(text)
}

/// What the chat template sees beside the messages. A model without a template of its own is worth
/// a notice.
pub(crate) fn template_vars(text: &TextSide, notices: &mut Vec<String>) -> TemplateVars {
    if text.template_origin() == TemplateOrigin::Plain {
        notices.push(
            "the model has no chat template: a plain one is used, which it was not trained for"
                .to_owned(),
        );
    }
    // Fixed here, once: a prompt that changes with the clock could never be reused.
    let now = SystemTime::UNIX_EPOCH
        .elapsed()
        .map_or(0, |time| time.as_secs());
    text.template_vars(Moment::from_unix(i64::try_from(now).unwrap_or(i64::MAX)))
}
