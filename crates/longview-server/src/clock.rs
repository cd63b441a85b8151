//! What time it is, for whatever has an end.
//!
//! The clock on the wall is set by people and by networks and may jump at any moment, both ways. Nothing
//! ends early for that, and nothing goes on for ever: within a process what has an end is measured by a
//! clock that cannot be set, and only what was written by another process is compared with the wall.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Where a server reads the time.
pub trait Clock: Debug + Send + Sync {
    /// What the system's clock shows now; it may have been set.
    fn wall(&self) -> SystemTime;

    /// Time since a moment of the clock's own, which neither goes back nor jumps.
    fn steady(&self) -> Duration;
}

/// The system's clocks.
#[derive(Debug)]
pub struct SystemClock {
    begun: Instant,
}

impl SystemClock {
    /// One that counts from now.
    #[allow(clippy::new_without_default, reason = "it depends on when it is made")]
    pub fn new() -> SystemClock {
        SystemClock {
            begun: Instant::now(),
        }
    }
}

impl Clock for SystemClock {
    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }

    fn steady(&self) -> Duration {
        self.begun.elapsed()
    }
}

/// A clock, read from a server's start on.
#[derive(Clone, Debug)]
pub(crate) struct Times {
    clock: Arc<dyn Clock>,
    started: Duration,
    started_at: SystemTime,
}

impl Times {
    /// From now on.
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Times {
        Times {
            started: clock.steady(),
            started_at: clock.wall(),
            clock,
        }
    }

    /// Time since the start.
    pub(crate) fn running(&self) -> Duration {
        self.clock.steady().saturating_sub(self.started)
    }

    /// When it was started, in seconds since 1970.
    pub(crate) fn started(&self) -> u64 {
        seconds_since_1970(self.started_at)
    }

    /// What the wall shows, in seconds since 1970.
    pub(crate) fn seconds(&self) -> u64 {
        seconds_since_1970(self.clock.wall())
    }

    /// What it surely is later than, however the wall was set meanwhile: what another process has written
    /// does not end early because the wall was set ahead.
    pub(crate) fn surely_past(&self) -> SystemTime {
        let wall = self.clock.wall();
        wall.min(self.counted().unwrap_or(wall))
    }

    /// What it surely is not later than: what is noted as used now does not seem old to another process
    /// because the wall was set back.
    pub(crate) fn surely_reached(&self) -> SystemTime {
        let wall = self.clock.wall();
        wall.max(self.counted().unwrap_or(wall))
    }

    /// The start and what has passed since.
    fn counted(&self) -> Option<SystemTime> {
        self.started_at.checked_add(self.running())
    }
}

/// Seconds from 1970 to `time`; 0 before.
pub(crate) fn seconds_since_1970(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Debug)]
    struct Set(Mutex<(SystemTime, Duration)>);

    impl Clock for Set {
        fn wall(&self) -> SystemTime {
            self.0.lock().unwrap().0
        }

        fn steady(&self) -> Duration {
            self.0.lock().unwrap().1
        }
    }

    #[test]
    fn the_wall_may_jump_and_what_is_sure_stays_sure() {
        let day = Duration::from_secs(86_400);
        let start = UNIX_EPOCH + day * 20_000;
        let clock = Arc::new(Set(Mutex::new((start, day * 3))));
        let times = Times::new(clock.clone());
        let at = |wall, steady| {
            *clock.0.lock().unwrap() = (wall, steady);
            (times.surely_past(), times.surely_reached())
        };
        let (later, passed) = (start + Duration::from_secs(600), Duration::from_secs(600));
        assert_eq!(at(later, day * 3 + passed), (later, later));
        // Set ahead by a year, and back by one.
        let (ahead, back) = (start + day * 365, start - day * 365);
        assert_eq!(at(ahead, day * 3 + passed), (later, ahead));
        assert_eq!(at(back, day * 3 + passed), (back, later));
        // A machine that slept for a day has seen less pass than the wall.
        assert_eq!(at(start + day, day * 3 + passed), (later, start + day));
        assert_eq!(times.running(), passed);
        // The wall as it is before networks have set it.
        at(UNIX_EPOCH - day, day * 3);
        assert_eq!((times.seconds(), times.started()), (0, 20_000 * 86_400));
    }
}
