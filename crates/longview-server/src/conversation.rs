//! A conversation to be gone on with, whatever protocol it came by: checked, and made into a prompt.

use longview::ShowSpecials;
use longview::schedule::Start;
use serde_json::{Map, Value};

use crate::app::{App, Tenancy};
use crate::dates::{self, Written};
use crate::error::ApiError;
use crate::grammar;
use crate::prompt::{ChatMessage, Conversed, TemplateExtras, Truncate, chat};
use crate::run::{self, Prepared};
use crate::settings::{Extras, Wishes};
use crate::tools::Toolbox;

/// What every protocol says about a conversation, in one set of words.
#[derive(Debug, Default)]
pub(crate) struct Conversation {
    /// The conversation so far.
    pub(crate) messages: Vec<ChatMessage>,
    /// How the answer is to be written.
    pub(crate) wishes: Wishes,
    /// Functions that the model may call.
    pub(crate) tools: Option<Vec<Value>>,
    /// Which of them it must or must not call.
    pub(crate) tool_choice: Option<Value>,
    /// What the answer looks like: `text`, `json_object` or `json_schema`.
    pub(crate) format: Option<Value>,
    /// Further variables for the chat template.
    pub(crate) variables: Map<String, Value>,
    /// What becomes of a prompt that is too long.
    pub(crate) truncate: Option<Truncate>,
}

impl Conversation {
    /// Checks everything and makes the prompt. Takes a while for a long conversation.
    pub(crate) fn prepare(
        mut self,
        app: &App,
        tenancy: &Tenancy,
        extras: &Extras,
    ) -> Result<Prepared, ApiError> {
        let toolbox = Toolbox::new(self.tools.as_deref(), self.tool_choice.as_ref())?;
        let grammar = grammar::of_request(app, self.format.as_ref(), toolbox.as_ref())?;
        // Some models mark calls with special tokens.
        self.wishes.specials = toolbox.as_ref().map(|_| ShowSpecials::Show);
        let settings = self.wishes.settle(app, extras)?;
        let mut template = TemplateExtras {
            tools: None,
            variables: self.variables,
        };
        if let Some(toolbox) = &toolbox {
            toolbox.show(app, &mut self.messages, &mut template);
        }
        let held = match &extras.context {
            None => None,
            Some(name) => Some(tenancy.contexts.for_request(app, name)?),
        };
        let made = held.as_ref().and_then(|held| held.methods.as_deref());
        let settings = settings.going_on(app, made, extras)?;
        let under = |now| {
            let held = held.as_ref().map(|held| held.tokens.as_slice());
            let engine = app.engine();
            chat(engine, app.specials(), &self.messages, &template, held, now)
        };
        let (conversed, older) = match (extras.date()?, &held) {
            (Some(date), _) => (under(date)?, None),
            (None, Some(_)) => (under(app.today())?, None),
            (None, None) => Written {
                app,
                tenancy,
                messages: &self.messages,
                template: &template,
            }
            .as_begun()?,
        };
        let Conversed { tokens, cached } = conversed;
        let start = held.map_or(Start::Nothing, |held| held.start());
        let truncate = self.truncate.or(extras.truncate);
        let prompt = run::fitted(app, tokens, start, truncate, &settings)?;
        Ok(Prepared {
            // Of a prompt that was cut nothing is where it was.
            cached: match prompt.truncated {
                0 => cached,
                _ => 0,
            },
            prompts: vec![prompt],
            settings,
            toolbox,
            grammar,
            notices: older.map(dates::notice).into_iter().collect(),
        })
    }
}
