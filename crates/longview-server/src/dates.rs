//! The date that a chat template writes into a conversation: one that goes on keeps the day on which it began.
//!
//! Clients send a conversation whole. Under the date of the day it would be another text after every
//! midnight, from the date on, and all of it read again.

use longview::dates;
use longview::text::Moment;

use crate::app::{App, Tenancy};
use crate::error::ApiError;
use crate::prompt::{ChatMessage, Content, Conversed, TemplateExtras, chat};

/// So many bytes of a conversation's beginning tell whether any like it was read under a date.
const HEAD_BYTES: usize = 2048;

/// What a date is chosen for.
pub(crate) struct Written<'a> {
    pub(crate) app: &'a App,
    pub(crate) tenancy: &'a Tenancy,
    pub(crate) messages: &'a [ChatMessage],
    pub(crate) template: &'a TemplateExtras,
}

impl Written<'_> {
    /// The conversation under the date of the day, or under that of one of the last days where it began on
    /// that day: where so much more of it was read then that this is no chance. With the date, if it is not
    /// today's.
    pub(crate) fn as_begun(&self) -> Result<(Conversed, Option<Moment>), ApiError> {
        let today = self.app.today();
        let mut best = (self.under(self.messages, today)?, None);
        let goes_on = self.messages.iter().any(|one| one.role == "assistant");
        if !goes_on || !self.app.is_dated() {
            return Ok(best);
        }
        let count = best.0.tokens.len();
        let worth = dates::worth(count);
        let mut most = self.found(&best.0.tokens)?;
        if most + worth > count {
            return Ok(best);
        }
        let head = self.head();
        // A beginning that the template cannot show alone tells nothing.
        let of_head = |now| {
            let head = self.under(&head, now);
            let found = head.and_then(|head| self.found(&head.tokens));
            found.unwrap_or(0)
        };
        let usual = of_head(today);
        for now in dates::last_days(today) {
            if of_head(now) <= usual {
                continue;
            }
            let other = self.under(self.messages, now)?;
            let found = self.found(&other.tokens)?;
            if found >= most + worth {
                most = found;
                best = (other, Some(now));
            }
        }
        Ok(best)
    }

    fn under(&self, messages: &[ChatMessage], now: Moment) -> Result<Conversed, ApiError> {
        let app = self.app;
        chat(
            app.engine(),
            app.specials(),
            messages,
            self.template,
            None,
            now,
        )
    }

    /// How many tokens of a prompt would be taken over.
    fn found(&self, tokens: &[u32]) -> Result<usize, ApiError> {
        let engine = self.app.engine();
        let context = engine.new_context_of(&self.tenancy.tenant, tokens.len())?;
        let found = context.explain(tokens);
        Ok(found.map_err(longview::EngineError::from)?.reused_tokens)
    }

    /// The first messages, the last of them cut: a text that begins like the conversation.
    fn head(&self) -> Vec<ChatMessage> {
        let mut left = HEAD_BYTES;
        let mut head = Vec::new();
        for message in self.messages {
            let mut message = message.clone();
            let text = message.content.map(|content| content.text("messages"));
            let cut = text.and_then(Result::ok).map(|mut text| {
                let fits = |&at: &usize| text.is_char_boundary(at);
                let end = (0..=left.min(text.len())).rev().find(fits);
                text.truncate(end.unwrap_or(0));
                text
            });
            left -= cut.as_ref().map_or(0, String::len);
            message.content = cut.map(Content::Text);
            head.push(message);
            // Less than a letter of another alphabet.
            if left < 4 {
                break;
            }
        }
        head
    }
}

/// What to say of a conversation under an older date.
pub(crate) fn notice(date: Moment) -> String {
    format!(
        "the conversation began on {date}, and the model's chat template writes that date: it is not read again \
         for today's (longview.date gives another)"
    )
}
