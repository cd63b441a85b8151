//! Signs of life on standard error while a long text is read; silent when it is no terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::size::human_count;

/// A bar with tokens done, speed and time left.
pub(crate) struct Progress {
    bar: ProgressBar,
    /// Tokens that need not be read.
    held: usize,
    /// Tokens in all.
    total: usize,
}

impl Progress {
    /// A bar for `total` tokens, `held` of which were taken over; `what` says what is done with the
    /// others.
    pub(crate) fn tokens(what: &str, held: usize, total: usize) -> Progress {
        let bar = ProgressBar::new(total as u64);
        let style = ProgressStyle::with_template("{msg} [{bar:30}] {prefix}")
            .expect("the template has only keys that indicatif knows");
        bar.set_style(style.progress_chars("=> "));
        bar.set_message(match held {
            0 => what.to_owned(),
            held => format!("{what} ({} taken over)", human_count(held)),
        });
        bar.set_position(held as u64);
        Progress { bar, held, total }
    }

    /// A spinner for work whose end is not known.
    pub(crate) fn spinner(what: String) -> Progress {
        let bar = ProgressBar::new_spinner();
        bar.set_message(what);
        bar.enable_steady_tick(Duration::from_millis(120));
        Progress {
            bar,
            held: 0,
            total: 0,
        }
    }

    /// Shows that `read` tokens were read in `seconds` so far.
    pub(crate) fn update(&self, read: usize, seconds: f64) {
        self.bar
            .set_prefix(line(self.held, read, self.total, seconds));
        self.bar.set_position((self.held + read) as u64);
    }

    /// Replaces the words before the bar.
    pub(crate) fn say(&self, what: String) {
        self.bar.set_message(what);
    }

    /// Removes the bar.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

fn line(held: usize, read: usize, total: usize, seconds: f64) -> String {
    let done = held + read;
    let counts = format!("{}/{} tokens", human_count(done), human_count(total));
    if read == 0 || seconds <= 0.0 {
        return counts;
    }
    let speed = read as f64 / seconds;
    let left = Duration::from_secs_f64(total.saturating_sub(done) as f64 / speed).as_secs();
    format!(
        "{counts}, {speed:.0} tokens/s, {}:{:02} left",
        left / 60,
        left % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_has_tokens_speed_and_time_left() {
        assert_eq!(line(0, 0, 150_000, 0.0), "0/150,000 tokens");
        assert_eq!(
            line(0, 1_000, 16_000, 2.0),
            "1,000/16,000 tokens, 500 tokens/s, 0:30 left"
        );
        assert_eq!(
            line(0, 10, 2_410, 5.0),
            "10/2,410 tokens, 2 tokens/s, 20:00 left"
        );
        // What was taken over took no time.
        assert_eq!(
            line(14_000, 1_000, 16_000, 2.0),
            "15,000/16,000 tokens, 500 tokens/s, 0:02 left"
        );
    }
}
