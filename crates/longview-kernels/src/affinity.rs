//! Which cores threads run on.

#[cfg(target_os = "linux")]
pub(crate) use linux::{bind, leave, other_cores};

#[cfg(target_os = "linux")]
mod linux {
    use libc::cpu_set_t;

    /// The cores this process may use, without the one this thread runs on.
    pub(crate) fn other_cores() -> Vec<usize> {
        let Some(set) = allowed() else {
            return Vec::new();
        };
        let here = here().unwrap_or(0);
        let mut cores: Vec<usize> = cores_of(&set).collect();
        match cores.iter().position(|&core| core == here) {
            Some(at) => cores.remove(at),
            None => return Vec::new(),
        };
        cores
    }

    /// Binds this thread to `core`. Where the system refuses, the thread stays free to move.
    pub(crate) fn bind(core: usize) {
        allow(&set_of([core]));
    }

    /// Moves this thread away from the cores `taken`, on which others are bound, if it runs on one of them and may
    /// run elsewhere. Afterwards it may run where it might before, unless somebody else changed that meanwhile. The
    /// system would move it too, some milliseconds later.
    pub(crate) fn leave(taken: &[usize]) {
        if !here().is_some_and(|here| taken.contains(&here)) {
            return;
        }
        let Some(own) = allowed() else {
            return;
        };
        let free = || cores_of(&own).filter(|core| !taken.contains(core));
        if free().next().is_some() && allow(&set_of(free())) {
            allow(&own);
        }
    }

    /// The core this thread runs on.
    fn here() -> Option<usize> {
        // SAFETY: no arguments; returns −1 where it is not supported.
        usize::try_from(unsafe { libc::sched_getcpu() }).ok()
    }

    /// The cores this thread may run on.
    fn allowed() -> Option<cpu_set_t> {
        let mut set = set_of([]);
        // SAFETY: the call writes at most the set's size.
        let got = unsafe { libc::sched_getaffinity(0, size_of::<cpu_set_t>(), &mut set) };
        (got == 0).then_some(set)
    }

    /// Lets this thread run on the cores of `set` alone; whether the system did.
    fn allow(set: &cpu_set_t) -> bool {
        // SAFETY: the set is only read.
        unsafe { libc::sched_setaffinity(0, size_of::<cpu_set_t>(), set) == 0 }
    }

    fn set_of(cores: impl IntoIterator<Item = usize>) -> cpu_set_t {
        // SAFETY: all zeros are an empty set.
        let mut set: cpu_set_t = unsafe { std::mem::zeroed() };
        for core in cores {
            // SAFETY: cores come out of such a set, so they are in range.
            unsafe { libc::CPU_SET(core, &mut set) };
        }
        set
    }

    fn cores_of(set: &cpu_set_t) -> impl Iterator<Item = usize> {
        let limit = 8 * size_of::<cpu_set_t>();
        // SAFETY: `core` is below the set's number of bits.
        (0..limit).filter(|&core| unsafe { libc::CPU_ISSET(core, set) })
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_thread_leaves_a_core_that_is_taken_and_may_come_back() {
            // A thread of its own: others keep what they may use.
            let moved = std::thread::spawn(|| {
                let before: Vec<usize> = cores_of(&allowed().unwrap()).collect();
                let [taken, _, ..] = before[..] else {
                    return;
                };
                bind(taken);
                assert_eq!(here(), Some(taken));
                // Nowhere else to go.
                leave(&[taken]);
                assert_eq!(here(), Some(taken));

                // A busy system may move it back, but not often right away.
                let leaves = |_: &usize| {
                    bind(taken);
                    allow(&set_of(before.clone()));
                    leave(&[taken]);
                    assert!(cores_of(&allowed().unwrap()).eq(before.clone()));
                    here() != Some(taken)
                };
                assert!((0..100).filter(leaves).count() > 50);
            });
            moved.join().unwrap();
        }
    }
}

/// Systems without thread affinity leave placement to their scheduler.
#[cfg(not(target_os = "linux"))]
pub(crate) fn other_cores() -> Vec<usize> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (1..cores).collect()
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn bind(_core: usize) {}

#[cfg(not(target_os = "linux"))]
pub(crate) fn leave(_taken: &[usize]) {}
