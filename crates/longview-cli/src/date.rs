//! The date that chat templates may write: a context keeps the one it was begun with.

use std::time::SystemTime;

use longview::text::Moment;

/// How many days back documents are looked for whose reading nobody has listed, because it was
/// broken off.
const DAYS: i64 = 30;

/// Tokens that are worth an older date, in longer prompts.
const WORTH: usize = 1024;

/// What a context that is begun now keeps: the day and no time, so that what was read an hour ago is
/// found also under a template that writes the time.
pub(crate) fn today() -> Moment {
    let now = SystemTime::UNIX_EPOCH
        .elapsed()
        .map_or(0, |time| time.as_secs());
    Moment::from_unix(i64::try_from(now).unwrap_or(i64::MAX)).days_before(0)
}

/// The dates under which documents may have been read: those that are `kept`, and the last days.
pub(crate) fn before(today: Moment, kept: Vec<Moment>) -> impl Iterator<Item = Moment> {
    let days = (1..=DAYS).map(move |days| today.days_before(days));
    kept.into_iter().chain(days)
}

/// How many tokens of a prompt of `tokens` must be found under an older date for it to be written:
/// other documents may begin alike, and are no reason for it.
pub(crate) fn worth(tokens: usize) -> usize {
    WORTH.min(tokens / 2).max(1)
}

/// What to say of documents whose date is not today's.
pub(crate) fn notice(now: Moment, today: Moment) -> Option<String> {
    (now != today).then(|| {
        format!(
            "the documents were read on {now}, and the model's chat template writes that date: they are \
             not read again for today's (--date gives another)"
        )
    })
}
