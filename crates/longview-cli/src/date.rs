//! The date that chat templates may write: a context keeps the one it was begun with.

use std::time::SystemTime;

use longview::dates;
use longview::text::Moment;

/// What a context that is begun now keeps: the day and no time, so that what was read an hour ago is
/// found also under a template that writes the time.
pub(crate) fn today() -> Moment {
    let now = SystemTime::UNIX_EPOCH
        .elapsed()
        .map_or(0, |time| time.as_secs());
    Moment::from_unix(i64::try_from(now).unwrap_or(i64::MAX)).days_before(0)
}

/// The dates under which documents may have been read: those that are `kept`, and the last days, for
/// readings that nobody has listed because they were broken off.
pub(crate) fn before(today: Moment, kept: Vec<Moment>) -> impl Iterator<Item = Moment> {
    kept.into_iter().chain(dates::last_days(today))
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
