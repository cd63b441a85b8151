//! Contexts under a name: saved, claimed, found again and gone on with.

use std::sync::Arc;

use longview::Context;
use longview::methods::Stage;
use longview::records::Record;
use longview::tier::Origin;

use super::Session;
use crate::failure::Failure;
use crate::saved::Entry;
use crate::size::human_count;

impl Session {
    /// Saves the record of a context, where contexts are kept; what stands in the way is a notice.
    /// Returns the record's id.
    pub(crate) fn save(
        &mut self,
        context: &Context,
        id: Option<&str>,
        mut entry: Entry,
    ) -> Option<String> {
        if let Some(report) = context.keep_report().filter(|_| context.is_compressed()) {
            self.saved.as_ref()?;
            let left = match entry.label {
                Some(_) => context
                    .fork()
                    .save_kept()
                    .map_err(|error| error.to_string()),
                None => Err(format!(
                    "{} has dropped pairs of it; what is left is kept under a name: --label",
                    report.method
                )),
            };
            match left {
                Ok(left) => entry.left = Some(left),
                Err(why) => {
                    let notice = format!("the context is not kept: {why}");
                    // A conversation is saved after every answer.
                    if self.not_kept.replace(why.clone()) != Some(why) {
                        self.notices.push(notice);
                    }
                    return None;
                }
            }
            entry.methods = report.method;
        } else if !context.is_exact() {
            let approximate = match context.approximate_from() {
                Some(_) => Stage::Read,
                None => Stage::Reuse,
            };
            entry.methods = self.methods.text(approximate, self.engine.kv_type());
        }
        match self.saved.as_ref()?.save(context, id, entry) {
            Ok(id) => id,
            Err(failure) => {
                let why = failure.message().unwrap_or_default();
                self.notices
                    .push(format!("the context is not listed: {why}"));
                None
            }
        }
    }

    /// What contexts are found by: those of longrope models with the rotary frequencies of short ones and
    /// with those of long ones. None where nothing is kept.
    pub(crate) fn origins(&self) -> Vec<Arc<Origin>> {
        let own = self.engine.tenant("");
        own.origins().map(|both| both.to_vec()).unwrap_or_default()
    }

    /// The saved context in whose place `context` will be saved under `label`, as [`Saved::claim`]
    /// finds it: before the work, not after it.
    ///
    /// # Errors
    /// When another context has the label, none can have it, or nothing is kept.
    pub(crate) fn claim(
        &self,
        context: &Context,
        label: Option<&str>,
        may_go_on: impl FnOnce(&Record) -> bool,
    ) -> Result<Option<Record>, Failure> {
        let Some(label) = label else {
            return Ok(None);
        };
        match (&self.saved, context.origin()) {
            (Some(saved), Some(_)) => saved.claim(label, &self.origins(), may_go_on),
            (Some(_), None) => Err(Failure::wrong(format!(
                "no context can be called {label:?} here: under {} what is read is approximate from the \
                 start, and not kept",
                Stage::Prefill.flag()
            ))),
            (None, _) => Err(Failure::wrong(format!(
                "no context can be called {label:?}: nothing is kept (see --cache-dir and --cache-max)"
            ))),
        }
    }

    /// The saved context called `name`.
    ///
    /// # Errors
    /// When there is none, or nothing is kept.
    pub(crate) fn find_saved(&self, name: &str) -> Result<Record, Failure> {
        match &self.saved {
            Some(saved) => saved.find(name),
            None => Err(Failure::wrong(format!(
                "there is no context {name:?}: nothing is kept (see --cache-dir and --cache-max)"
            ))),
        }
    }

    /// Puts the keep method in charge that has left `record`, where pairs of that were dropped: it is gone on
    /// with as it is. Nothing changes where it is whole.
    ///
    /// # Errors
    /// When another keep method was `asked` for, or this program does not know that one.
    pub(crate) fn adopt(&mut self, record: &Record, asked: Option<&str>) -> Result<(), Failure> {
        if record.left().is_none() {
            return Ok(());
        }
        if let Some(saved) = &self.saved {
            saved.check(record, &self.origins())?;
        }
        let summary = &record.summary;
        self.goes_on = true;
        match self.methods.keep() {
            Some(keep) if keep.text == summary.methods => Ok(()),
            other if other.is_some() || asked.is_some() => Err(Failure::wrong(format!(
                "of context {} is left what --keep {:?} has kept: leave --keep out, or read the text anew with \
                 another",
                summary.id, summary.methods
            ))),
            _ => {
                let adopted = self.methods.set(Stage::Keep, &summary.methods);
                adopted.map_err(|error| Failure::wrong(error.to_string()))?;
                self.notices.push(format!(
                    "context {} is what {} has left of {} tokens: answers are approximate",
                    summary.id,
                    summary.methods,
                    human_count(record.tokens.len())
                ));
                Ok(())
            }
        }
    }

    /// Checks that a saved context may be gone on with in `context`; one that was approximate is read
    /// anew, with a notice, where it was not restored.
    ///
    /// # Errors
    /// When it is of another model or other settings.
    pub(crate) fn check_saved(
        &mut self,
        record: &Record,
        context: &Context,
    ) -> Result<(), Failure> {
        if let (Some(saved), Some(origin)) = (&self.saved, context.origin()) {
            saved.check(record, &self.origins())?;
            if record.summary.check_origin(origin).is_err() {
                self.notices.push(format!(
                    "context {} was read with the rotary frequencies of contexts of another length than \
                     this one is planned for, and is read anew with its own",
                    record.summary.id
                ));
            }
        }
        if !record.summary.methods.is_empty() && !context.is_compressed() {
            self.notices.push(format!(
                "context {} was approximate ({}) and is read anew, exactly",
                record.summary.id, record.summary.methods
            ));
        }
        Ok(())
    }
}
