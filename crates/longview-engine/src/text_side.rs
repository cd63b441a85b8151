//! The text side of a model: what turns messages and texts into token ids.

use longview_text::{ChatTemplate, Moment, TemplateVars, Tokenizer};

use crate::engine::TemplateOrigin;

/// A model's tokenizer and chat template.
pub struct TextSide {
    tokenizer: Tokenizer,
    template: ChatTemplate,
    template_origin: TemplateOrigin,
}

impl TextSide {
    pub(crate) fn new(
        (tokenizer, template, template_origin): (Tokenizer, ChatTemplate, TemplateOrigin),
    ) -> TextSide {
        TextSide {
            tokenizer,
            template,
            template_origin,
        }
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The chat template; [`ChatTemplate::PLAIN`] where the model has none.
    pub fn template(&self) -> &ChatTemplate {
        &self.template
    }

    /// Whose template that is.
    pub fn template_origin(&self) -> TemplateOrigin {
        self.template_origin
    }

    /// What a template of this model sees beside the messages, with `now` as the date.
    pub fn template_vars(&self, now: Moment) -> TemplateVars {
        let text = |id: Option<u32>| {
            let bytes = id
                .and_then(|id| self.tokenizer.token_bytes(id))
                .unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        TemplateVars::new(text(self.tokenizer.bos()), text(self.tokenizer.eos()), now)
    }

    /// `tokens` with those in front that the model expects before every text, unless they are
    /// there.
    pub fn with_prefix(&self, tokens: Vec<u32>) -> Vec<u32> {
        let prefix = self.tokenizer.prefix_ids();
        if tokens.starts_with(prefix) {
            tokens
        } else {
            [prefix, &tokens].concat()
        }
    }
}
