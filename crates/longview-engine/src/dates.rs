//! The date that a chat template may write: what was read under one is found under no other, so it keeps it.

use longview_text::{AskFrame, Moment, TextError};

use crate::text_side::TextSide;

/// How many days back a text is looked for whose date nobody has noted.
const DAYS: i64 = 30;

/// Tokens that are worth an older date, in longer prompts.
const WORTH: usize = 1024;

/// The days before `today` on which a text may have been begun, the last of them first.
pub fn last_days(today: Moment) -> impl Iterator<Item = Moment> {
    (1..=DAYS).map(move |days| today.days_before(days))
}

/// How many tokens more of a prompt of `tokens` must be found under an older date than under today's for it
/// to be written: other texts may begin alike, and are no reason for it.
pub fn worth(tokens: usize) -> usize {
    WORTH.min(tokens / 2).max(1)
}

/// Whether the model's chat template writes a date or a time.
///
/// # Errors
/// When the template fails.
pub fn is_dated(text: &TextSide) -> Result<bool, TextError> {
    // Two that have no part in common: neither a day's name nor its number, nor month, year or time.
    let [one, other] = [0, 989_415_462].map(|seconds| {
        let vars = text.template_vars(Moment::from_unix(seconds));
        AskFrame::new(text.template(), &vars)
    });
    Ok(one? != other?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_month_is_looked_at_and_little_is_worth_no_date() {
        let today = Moment::from_unix(1_795_712_331).days_before(0);
        let days: Vec<String> = last_days(today).map(|day| day.to_string()).collect();
        assert_eq!(days.len(), 30);
        assert_eq!((&*days[0], &*days[29]), ("2026-11-25", "2026-10-27"));
        assert_eq!([0, 100, 5000].map(worth), [1, 50, 1024]);
    }
}
