//! Ctrl-C: the first asks the work to stop, the second ends the program.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::failure::Failure;
use crate::output::note;

static PRESSED: AtomicUsize = AtomicUsize::new(0);

/// Whether the program waits for a line from the user: then there is no work that could stop.
static WAITING: AtomicBool = AtomicBool::new(false);

/// Installs the handler; call once.
pub(crate) fn install() -> Result<(), Failure> {
    ctrlc::set_handler(|| {
        let before = PRESSED.fetch_add(1, Ordering::SeqCst);
        if before > 0 || WAITING.load(Ordering::SeqCst) {
            // The shell's prompt should not follow the line that was begun.
            note("");
            leave();
        }
    })
    .map_err(|error| Failure::failed(format!("cannot watch for Ctrl-C: {error}")))
}

/// Whether Ctrl-C was pressed.
pub(crate) fn pressed() -> bool {
    PRESSED.load(Ordering::SeqCst) > 0
}

/// An error when Ctrl-C was pressed; for loops that would otherwise go on.
pub(crate) fn check() -> Result<(), Failure> {
    if pressed() {
        Err(Failure::Stopped)
    } else {
        Ok(())
    }
}

/// Ends the program at once, as [`Failure::Stopped`] would.
pub(crate) fn leave() -> ! {
    std::process::exit(i32::from(Failure::Stopped.code()))
}

/// Forgets a Ctrl-C that stopped one answer, so that a conversation can go on.
pub(crate) fn forget() {
    PRESSED.store(0, Ordering::SeqCst);
}

/// Runs `read`, during which one Ctrl-C ends the program.
pub(crate) fn while_waiting<T>(read: impl FnOnce() -> T) -> T {
    WAITING.store(true, Ordering::SeqCst);
    if pressed() {
        // After the prompt was shown and before the line was waited for.
        note("");
        leave();
    }
    let result = read();
    WAITING.store(false, Ordering::SeqCst);
    result
}
