//! Signs of life on standard error while a long text is read; silent when it is no terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::size::human_count;

/// A bar with tokens done, speed and time left.
pub(crate) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A bar for `total` tokens; `what` says what is done with them.
    pub(crate) fn tokens(what: &'static str, total: usize) -> Progress {
        let bar = ProgressBar::new(total as u64);
        let style = ProgressStyle::with_template("{msg} [{bar:30}] {prefix}")
            .expect("the template has only keys that indicatif knows");
        bar.set_style(style.progress_chars("=> "));
        bar.set_message(what);
        Progress { bar }
    }

    /// A spinner for work whose end is not known.
    pub(crate) fn spinner(what: String) -> Progress {
        let bar = ProgressBar::new_spinner();
        bar.set_message(what);
        bar.enable_steady_tick(Duration::from_millis(120));
        Progress { bar }
    }

    /// Shows that `done` of `total` tokens took `seconds` so far.
    pub(crate) fn update(&self, done: usize, total: usize, seconds: f64) {
        self.bar.set_prefix(line(done, total, seconds));
        self.bar.set_position(done as u64);
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

fn line(done: usize, total: usize, seconds: f64) -> String {
    let counts = format!("{}/{} tokens", human_count(done), human_count(total));
    if done == 0 || seconds <= 0.0 {
        return counts;
    }
    let speed = done as f64 / seconds;
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
        assert_eq!(line(0, 150_000, 0.0), "0/150,000 tokens");
        assert_eq!(
            line(1_000, 16_000, 2.0),
            "1,000/16,000 tokens, 500 tokens/s, 0:30 left"
        );
        assert_eq!(
            line(10, 2_410, 5.0),
            "10/2,410 tokens, 2 tokens/s, 20:00 left"
        );
    }
}
