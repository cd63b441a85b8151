//! What contexts are called: ids, labels and titles.

use std::collections::BTreeMap;

use super::Contexts;
use super::entry::Entry;
use crate::app::App;
use crate::error::ApiError;

/// The most bytes of a label.
const MOST_LABEL: usize = 200;

/// The most bytes of a title.
const MOST_TITLE: usize = 1000;

impl Contexts {
    /// The id of a context by its id, the beginning of it, or its label.
    pub(super) fn find(&self, app: &App, name: &str) -> Result<String, ApiError> {
        self.let_go(app.times());
        {
            let mut entries = self.lock();
            if let Some((id, entry)) = named(&mut entries, name) {
                self.see(entry);
                return Ok(id.clone());
            }
        }
        self.load(app, name)
    }

    /// Refuses a name that another context has.
    pub(super) fn check_label(
        &self,
        label: Option<&str>,
        own: Option<&str>,
    ) -> Result<(), ApiError> {
        let Some(label) = label else { return Ok(()) };
        let plain = !label.is_empty()
            && label.len() <= MOST_LABEL
            && label.trim() == label
            && !label
                .chars()
                .any(|c| c.is_control() || c == '/' || c == '\\');
        if !plain {
            return Err(ApiError::field(
                "label",
                format!(
                    "a label has 1 to {MOST_LABEL} bytes, none of them a slash or a control character, and no space \
                     at its ends"
                ),
            ));
        }
        check_free(&self.lock(), Some(label), own)?;
        for summary in self.saved_summaries()? {
            let known = self.lock().contains_key(&summary.id);
            if !known && summary.label.as_deref() == Some(label) && own != Some(&summary.id) {
                return Err(taken(label, &summary.id));
            }
        }
        Ok(())
    }
}

/// The open context with this id, this label, or the only one whose id begins so.
fn named<'a>(
    entries: &'a mut BTreeMap<String, Entry>,
    name: &str,
) -> Option<(&'a String, &'a mut Entry)> {
    let labelled =
        |(id, entry): (&String, &Entry)| (entry.label.as_deref() == Some(name)).then(|| id.clone());
    let begun = |entries: &BTreeMap<String, Entry>| {
        let mut begins = entries
            .keys()
            .filter(|id| name.len() >= 4 && id.starts_with(name));
        match (begins.next(), begins.next()) {
            (Some(id), None) => Some(id.clone()),
            _ => None,
        }
    };
    let id = match entries.contains_key(name) {
        true => name.to_owned(),
        false => entries
            .iter()
            .find_map(labelled)
            .or_else(|| begun(entries))?,
    };
    entries.iter_mut().find(|(known, _)| **known == id)
}

/// Refuses a label that another open context has.
pub(super) fn check_free(
    entries: &BTreeMap<String, Entry>,
    label: Option<&str>,
    own: Option<&str>,
) -> Result<(), ApiError> {
    let Some(label) = label else { return Ok(()) };
    let has = |(id, entry): &(&String, &Entry)| {
        entry.label.as_deref() == Some(label) && own != Some(id.as_str())
    };
    match entries.iter().find(has) {
        Some((id, _)) => Err(taken(label, id)),
        None => Ok(()),
    }
}

/// Refuses a title that is no title.
pub(crate) fn check_title(title: Option<&str>) -> Result<(), ApiError> {
    match title.filter(|title| title.len() > MOST_TITLE) {
        None => Ok(()),
        Some(title) => Err(ApiError::field(
            "title",
            format!(
                "a title has at most {MOST_TITLE} bytes, and this one has {}",
                title.len()
            ),
        )),
    }
}

fn taken(label: &str, id: &str) -> ApiError {
    ApiError::conflict(format!(
        "context {id} is labelled {label:?} already; choose another"
    ))
    .code("label_taken")
}

pub(super) fn unknown(name: &str) -> ApiError {
    ApiError::not_found(format!(
        "there is no context {name:?}; GET /v1/contexts lists those there are"
    ))
    .code("context_not_found")
}
