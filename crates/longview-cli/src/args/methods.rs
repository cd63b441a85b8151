//! One flag a stage.

use clap::Args;
use longview::methods::{MethodError, Methods, Stage};

use crate::failure::Failure;

/// The methods asked for; `longview methods` lists what there is.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Methods (longview methods lists them)")]
pub(crate) struct MethodArgs {
    /// Which text enters the model
    #[arg(long, value_name = "METHOD")]
    pub(crate) prompt_method: Option<String>,

    /// Which keys a query attends to while a text is read
    #[arg(long, value_name = "METHOD")]
    pub(crate) prefill: Option<String>,

    /// Which keys and values stay
    #[arg(long, value_name = "METHOD")]
    pub(crate) keep: Option<String>,

    /// In what form keys and values are held
    #[arg(long, value_name = "METHOD")]
    pub(crate) store: Option<String>,

    /// Which keys and values a decode step reads
    #[arg(long, value_name = "METHOD")]
    pub(crate) read: Option<String>,

    /// What may be taken over from what was read before
    #[arg(long, value_name = "METHOD")]
    pub(crate) reuse: Option<String>,
}

impl MethodArgs {
    /// The methods of all stages before decode.
    pub(crate) fn methods(&self) -> Result<Methods, Failure> {
        self.set_by(Methods::set)
    }

    /// The same for a conversation, which has methods that act between its turns.
    pub(crate) fn in_conversation(&self) -> Result<Methods, Failure> {
        self.set_by(Methods::set_in_conversation)
    }

    fn set_by(
        &self,
        set: fn(&mut Methods, Stage, &str) -> Result<(), MethodError>,
    ) -> Result<Methods, Failure> {
        let mut methods = Methods::new();
        for (stage, text) in [
            (Stage::Prompt, &self.prompt_method),
            (Stage::Prefill, &self.prefill),
            (Stage::Keep, &self.keep),
            (Stage::Store, &self.store),
            (Stage::Read, &self.read),
            (Stage::Reuse, &self.reuse),
        ] {
            if let Some(text) = text {
                set(&mut methods, stage, text).map_err(|error| refused(stage, &error))?;
            }
        }
        Ok(methods)
    }
}

/// What is wrong with the text given to a stage's flag, the flag named once.
pub(super) fn refused(stage: Stage, error: &MethodError) -> Failure {
    let message = error.to_string();
    if message.starts_with(stage.flag()) {
        Failure::wrong(message)
    } else {
        Failure::wrong(format!("{}: {message}", stage.flag()))
    }
}
