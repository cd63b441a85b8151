//! How much of the prompts one pass reads while answers are being written.

use std::time::Duration;

/// The fewest tokens that a pass reads when something is to be read, whatever it takes.
pub(super) const LEAST_SLICE: usize = 16;

/// The weight of a measurement that is above the past: a pass that took long is not to be followed by
/// another.
const SLOWER: f64 = 0.7;

/// The weight of one below: the machine may be slow again in a moment.
const FASTER: f64 = 0.1;

/// Chooses the size of the slice of prompts that a pass reads, so that answers being written wait no
/// longer than a chosen time for it.
///
/// Between two tokens of a running answer lies exactly one pass. Its time is that of the answers'
/// rows and of the slice; both are measured as they happen.
pub(super) struct Pace {
    gap: f64,
    /// Seconds of a pass without a slice.
    step: Option<f64>,
    /// Seconds a token of a slice takes.
    token: Option<f64>,
}

impl Pace {
    /// Answers are to wait `gap` at most.
    pub(super) fn new(gap: Duration) -> Pace {
        Pace {
            gap: gap.as_secs_f64(),
            step: None,
            token: None,
        }
    }

    /// Tokens of prompts to read in a pass that also writes, at most `most`.
    pub(super) fn slice(&self, most: usize) -> usize {
        // Nothing was measured yet: begin small.
        let Some(token) = self.token else {
            return LEAST_SLICE.min(most);
        };
        let room = (self.gap - self.step.unwrap_or(0.0)).max(0.0);
        let fits = room / token.max(1e-9);
        (fits as usize)
            .clamp(LEAST_SLICE, most.max(LEAST_SLICE))
            .min(most.max(1))
    }

    /// Takes in what a pass took that read `read` tokens of prompts and wrote `written` tokens.
    pub(super) fn learn(&mut self, read: usize, written: usize, took: Duration) {
        let seconds = took.as_secs_f64();
        if read == 0 {
            average(&mut self.step, seconds);
            return;
        }
        let of_slice = match written {
            0 => seconds,
            _ => seconds - self.step.unwrap_or(0.0).min(seconds),
        };
        average(&mut self.token, of_slice / read as f64);
    }

    /// Tokens of prompts read a second, as measured last.
    pub(super) fn tokens_per_second(&self) -> Option<f64> {
        self.token.map(|seconds| 1.0 / seconds.max(1e-9))
    }
}

fn average(held: &mut Option<f64>, newest: f64) {
    *held = Some(match *held {
        None => newest,
        Some(held) if newest > held => held + SLOWER * (newest - held),
        Some(held) => held + FASTER * (newest - held),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_fills_what_the_answers_leave_of_the_gap() {
        let mut pace = Pace::new(Duration::from_millis(100));
        assert_eq!(pace.slice(512), LEAST_SLICE);
        for _ in 0..40 {
            pace.learn(0, 4, Duration::from_millis(20));
            // 20 ms of answers and 1 ms a token read.
            pace.learn(30, 4, Duration::from_millis(50));
        }
        let slice = pace.slice(512);
        assert!((79..=81).contains(&slice), "{slice}");
        assert_eq!(pace.slice(50), 50);
        assert!((pace.tokens_per_second().unwrap() - 1000.0).abs() < 20.0);
        // One slow pass makes the next slice small at once.
        pace.learn(80, 4, Duration::from_millis(420));
        assert!(pace.slice(512) < 24, "{}", pace.slice(512));
    }

    #[test]
    fn something_is_read_even_when_answers_fill_the_gap() {
        let mut pace = Pace::new(Duration::from_millis(10));
        for _ in 0..40 {
            pace.learn(0, 4, Duration::from_millis(500));
            pace.learn(16, 0, Duration::from_millis(160));
        }
        assert_eq!(pace.slice(512), LEAST_SLICE);
        assert_eq!(pace.slice(3), 3);
    }
}
