//! Texts and questions as the token ids that a model reads.

use longview::text::{AskFrame, Moment, Start};
use longview::{ShowSpecials, TemplateOrigin, TextSide, Tokenizer, dates};

use crate::date;
use crate::documents::Documents;
use crate::failure::Failure;

/// The tokens of documents, and the frame that questions about them are put into.
pub(crate) struct DocumentPrompt {
    frame: AskFrame,
    /// The date that the frame may write.
    pub(crate) now: Moment,
    /// Head, documents and what stands between them and the question.
    pub(crate) shared: Vec<u32>,
    /// The first character of the documents, which stands for all of them: what comes before a part
    /// decides only whether the part begins a text.
    opening: String,
}

/// What is known of documents that were read before.
pub(crate) struct Earlier<'a> {
    /// The dates that were written then, as far as they are kept.
    pub(crate) dates: &'a dyn Fn() -> Vec<Moment>,
    /// How many tokens at the beginning of a prompt need not be read again.
    pub(crate) reused: &'a dyn Fn(&[u32]) -> usize,
}

impl DocumentPrompt {
    /// The documents in the model's chat template, which may write the date `now`.
    pub(crate) fn new(
        text: &TextSide,
        now: Moment,
        documents: &Documents,
    ) -> Result<DocumentPrompt, Failure> {
        Ok(DocumentPrompt::tokenised(text, now, documents)?.0)
    }

    /// The documents in the model's chat template with the date on which they were read: one that
    /// wrote today's would make another text of them every day. Documents that nobody has read get
    /// the date of `today`.
    pub(crate) fn as_read(
        text: &TextSide,
        today: Moment,
        documents: &Documents,
        earlier: &Earlier<'_>,
    ) -> Result<DocumentPrompt, Failure> {
        let (mut best, read) = DocumentPrompt::tokenised(text, today, documents)?;
        if !dates::is_dated(text)? {
            return Ok(best);
        }
        let mut most = (earlier.reused)(&best.shared);
        let mut seen = vec![best.frame.clone()];
        for now in date::before(today, (earlier.dates)()) {
            let frame = frame(text, now)?;
            if seen.contains(&frame) || frame.document_lead != best.frame.document_lead {
                continue;
            }
            seen.push(frame.clone());
            let around = text
                .tokenizer()
                .encode_parts(&frame.parts(&best.opening, ""))?;
            let shared = text.with_prefix([&around[0][..], &read, &around[2]].concat());
            let reused = (earlier.reused)(&shared);
            if reused >= most + dates::worth(shared.len()) {
                most = reused;
                best = DocumentPrompt {
                    frame,
                    now,
                    shared,
                    ..best
                };
            }
        }
        Ok(best)
    }

    /// Documents that were read before, `shared` being all tokens up to the question.
    pub(crate) fn kept(
        text: &TextSide,
        now: Moment,
        shared: Vec<u32>,
    ) -> Result<DocumentPrompt, Failure> {
        Ok(DocumentPrompt {
            frame: frame(text, now)?,
            now,
            shared,
            // Any text that is not empty.
            opening: "x".to_owned(),
        })
    }

    /// The tokens from the question on. Documents and question are tokenised apart, so the shared
    /// tokens never depend on the question.
    pub(crate) fn question(&self, text: &TextSide, question: &str) -> Result<Vec<u32>, Failure> {
        let parts = self.frame.parts(&self.opening, question);
        Ok(text.tokenizer().encode_parts(&parts)?[3..].concat())
    }

    /// The prompt, and the tokens of the documents alone.
    fn tokenised(
        text: &TextSide,
        now: Moment,
        documents: &Documents,
    ) -> Result<(DocumentPrompt, Vec<u32>), Failure> {
        let frame = frame(text, now)?;
        let documents = documents.text();
        let mut parts = text
            .tokenizer()
            .encode_parts(&frame.parts(&documents, ""))?;
        let prompt = DocumentPrompt {
            frame,
            now,
            shared: text.with_prefix(parts[..3].concat()),
            opening: documents.chars().take(1).collect(),
        };
        Ok((prompt, parts.swap_remove(1)))
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

/// What to say of a model without a chat template of its own.
pub(crate) fn template_notice(text: &TextSide) -> Option<String> {
    let plain = text.template_origin() == TemplateOrigin::Plain;
    plain.then(|| {
        "the model has no chat template: a plain one is used, which it was not trained for"
            .to_owned()
    })
}

fn frame(text: &TextSide, now: Moment) -> Result<AskFrame, Failure> {
    Ok(AskFrame::new(text.template(), &text.template_vars(now))?)
}
