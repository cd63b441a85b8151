//! Where documents and a question go inside a chat template.

use crate::TextError;
use crate::template::{ChatTemplate, Message, TemplateVars};
use crate::tokenizer::Specials;

/// Stand-ins that no template contains or changes: private-use characters around a word.
const DOCUMENT: &str = "\u{E0A1}document\u{E0A2}";
const QUESTION: &str = "\u{E0A1}question\u{E0A2}";

/// What stands between the documents and the question where both are in one message.
const BETWEEN: &str = "\n\n";

/// A chat template cut open around documents and a question, so that each is tokenised apart and
/// the tokens of the documents never depend on the question.
///
/// The prompt is `head`, the documents, `between`, the question, `tail`. Where the template puts a
/// space before one of the two, the space belongs to that text and not to the piece before it,
/// because tokens carry their leading space; [`AskFrame::parts`] does so.
///
/// The documents go into the user's message, before the question. One kind of template is treated
/// otherwise: if a system message is rendered bare, with no words or markers of its own, the model
/// was made to read text there (the reference model is), and the documents go there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AskFrame {
    /// What comes before the documents; special tokens are meant.
    pub head: String,
    /// Put directly before the documents: spaces or nothing.
    pub document_lead: String,
    /// What comes between the documents and the question; special tokens are meant.
    pub between: String,
    /// Put directly before the question: spaces or nothing.
    pub question_lead: String,
    /// What comes after the question, ending where the model's answer begins.
    pub tail: String,
}

impl AskFrame {
    /// Cuts `template` open.
    ///
    /// # Errors
    /// What [`ChatTemplate::render`] gives, and [`TextError::TemplateFrame`] for a template that
    /// drops, repeats or reorders what it is given.
    pub fn new(template: &ChatTemplate, vars: &TemplateVars) -> Result<Self, TextError> {
        if let Some(frame) = Self::bare(template, vars) {
            return Ok(frame);
        }
        let both = format!("{DOCUMENT}{BETWEEN}{QUESTION}");
        let text = template.render(&[Message::new("user", both)], vars)?;
        Self::cut(&text)
    }

    /// The pieces of a prompt in order, for [`crate::Tokenizer::encode_parts`]: `documents` (one
    /// text, or several already joined) and `question` as they are to be read.
    pub fn parts(&self, documents: &str, question: &str) -> Vec<(String, Specials)> {
        vec![
            (self.head.clone(), Specials::Parse),
            (
                format!("{}{documents}", self.document_lead),
                Specials::AsText,
            ),
            (self.between.clone(), Specials::Parse),
            (
                format!("{}{question}", self.question_lead),
                Specials::AsText,
            ),
            (self.tail.clone(), Specials::Parse),
        ]
    }

    /// The frame of a template that renders a system message bare: the rendering with it is the
    /// rendering without it, the message put right after the beginning of the sequence.
    fn bare(template: &ChatTemplate, vars: &TemplateVars) -> Option<Self> {
        let user = Message::new("user", QUESTION);
        let alone = template.render(std::slice::from_ref(&user), vars).ok()?;
        let both = template
            .render(&[Message::new("system", DOCUMENT), user], vars)
            .ok()?;
        let turn = alone.strip_prefix(&vars.bos_token)?;
        if both != format!("{}{DOCUMENT}{turn}", vars.bos_token) {
            return None;
        }
        let mut frame = Self::cut(&both).ok()?;
        // Such a model reads every text after the same opening, and a question's shows which.
        frame.document_lead.clone_from(&frame.question_lead);
        Some(frame)
    }

    fn cut(text: &str) -> Result<Self, TextError> {
        let once = |mark: &str| {
            text.split_once(mark)
                .filter(|(_, after)| !after.contains(mark))
        };
        let lost = |name: &str| {
            TextError::TemplateFrame(format!(
                "its rendering does not hold the user's message as it was given ({name}); ask \
                 without a chat template"
            ))
        };
        let (head, rest) = once(DOCUMENT).ok_or_else(|| lost("document"))?;
        let (before, tail) = once(QUESTION).ok_or_else(|| lost("question"))?;
        if before.len() < head.len() {
            return Err(lost("order"));
        }
        let between = rest.split(QUESTION).next().unwrap_or_default();
        let (head, document_lead) = split_spaces(head);
        let (between, question_lead) = split_spaces(between);
        Ok(Self {
            head,
            document_lead,
            between,
            question_lead,
            tail: tail.to_owned(),
        })
    }
}

/// Cuts the spaces at the end of `text` off it.
fn split_spaces(text: &str) -> (String, String) {
    let kept = text.trim_end_matches(' ').len();
    (text[..kept].to_owned(), text[kept..].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Moment;

    fn frame(source: &str) -> Result<AskFrame, TextError> {
        let vars = TemplateVars::new("<s>", "</s>", Moment::from_unix(0));
        AskFrame::new(&ChatTemplate::new(source).unwrap(), &vars)
    }

    fn strings(frame: &AskFrame) -> [&str; 5] {
        let AskFrame {
            head,
            document_lead,
            between,
            question_lead,
            tail,
        } = frame;
        [head, document_lead, between, question_lead, tail]
    }

    #[test]
    fn chat_templates_take_documents_in_the_users_message() {
        let frame = frame(ChatTemplate::PLAIN).unwrap();
        let expected = ["<s>### User:\n", "", "\n\n", "", "\n\n### Assistant:\n"];
        assert_eq!(strings(&frame), expected);
        let spaced = AskFrame::cut(&format!("[INST] {DOCUMENT}\n\n{QUESTION} [/INST]"));
        assert_eq!(
            strings(&spaced.unwrap()),
            ["[INST]", " ", "\n\n", "", " [/INST]"]
        );
    }

    #[test]
    fn a_bare_system_message_is_where_text_is_read() {
        let source = "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}\
            {{ m.content }}{% else %}<|user|> {{ m.content }}{% endif %}{% endfor %}<|assistant|>";
        let frame = frame(source).unwrap();
        assert_eq!(
            strings(&frame),
            ["<s>", " ", "<|user|>", " ", "<|assistant|>"]
        );
        let texts: Vec<String> = frame
            .parts("D", "Q")
            .into_iter()
            .map(|(text, _)| text)
            .collect();
        assert_eq!(texts.concat(), "<s> D<|user|> Q<|assistant|>");
    }

    #[test]
    fn templates_that_lose_or_repeat_the_message_are_refused() {
        for source in [
            "fixed",
            "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}",
        ] {
            assert!(
                matches!(frame(source), Err(TextError::TemplateFrame(_))),
                "{source}"
            );
        }
    }
}
