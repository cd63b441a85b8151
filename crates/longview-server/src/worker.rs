//! The thread that computes.
//!
//! It owns the scheduler and with it every context at work. Requests come through a channel; what
//! becomes of them goes to their listeners.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use longview::Engine;
use longview::schedule::{Request, ScheduleCounts, ScheduleOptions, Scheduler, Step};

use tokio::sync::oneshot;

use crate::error::{ApiError, ServerError};

/// How long an idle engine waits for requests that are being prepared beside the first, so that they are
/// read together.
const GATHER: Duration = Duration::from_millis(25);

/// How often it looks meanwhile whether there are any.
const GLANCE: Duration = Duration::from_micros(100);

/// A handle on the thread.
pub(crate) struct Worker {
    sender: Mutex<Sender<Command>>,
    preparing: Arc<AtomicUsize>,
    counts: Arc<Mutex<ScheduleCounts>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What the thread is asked to do between two passes.
enum Command {
    Submit(Box<Request>),
    /// End every request.
    CancelAll,
    /// Let go of what no request needs, and say when that is done.
    Forget(oneshot::Sender<()>),
    Stop,
}

impl Worker {
    /// Starts the thread.
    pub(crate) fn start(
        engine: Arc<Engine>,
        options: ScheduleOptions,
    ) -> Result<Worker, ServerError> {
        let (sender, receiver) = channel();
        let counts = Arc::new(Mutex::new(ScheduleCounts::default()));
        let shown = Arc::clone(&counts);
        let preparing = Arc::new(AtomicUsize::new(0));
        let coming = Arc::clone(&preparing);
        let thread = std::thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || run(&engine, options, &receiver, &shown, &coming))
            .map_err(|source| ServerError::System {
                what: "the thread that computes cannot be started",
                source,
            })?;
        Ok(Worker {
            sender: Mutex::new(sender),
            preparing,
            counts,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Hands a request over; its listener hears the rest.
    pub(crate) fn submit(&self, request: Request) -> Result<(), ApiError> {
        self.send(Command::Submit(Box::new(request)))
    }

    /// Says that a request is being prepared, until what is returned is dropped.
    pub(crate) fn expect(&self) -> Coming {
        self.preparing.fetch_add(1, Ordering::Relaxed);
        Coming(Arc::clone(&self.preparing))
    }

    /// What the scheduler has done.
    pub(crate) fn counts(&self) -> ScheduleCounts {
        *lock(&self.counts)
    }

    /// Ends every request; what they have read stays.
    pub(crate) fn cancel_all(&self) {
        // When the thread has ended, so have they.
        let _ = self.send(Command::CancelAll);
    }

    /// Lets go of contexts that no request owns.
    pub(crate) async fn forget(&self) -> Result<(), ApiError> {
        let (tell, told) = oneshot::channel();
        self.send(Command::Forget(tell))?;
        told.await.map_err(|_| gone())
    }

    /// Ends the thread and waits for it.
    pub(crate) fn stop(&self) {
        let _ = self.send(Command::Stop);
        if let Some(thread) = lock(&self.thread).take() {
            // A panic was told of when it happened.
            let _ = thread.join();
        }
    }

    fn send(&self, command: Command) -> Result<(), ApiError> {
        lock(&self.sender).send(command).map_err(|_| gone())
    }
}

/// A request that is being prepared.
pub(crate) struct Coming(Arc<AtomicUsize>);

impl Drop for Coming {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn gone() -> ApiError {
    ApiError::unavailable("the server is shutting down")
}

fn run(
    engine: &Arc<Engine>,
    options: ScheduleOptions,
    commands: &Receiver<Command>,
    shown: &Mutex<ScheduleCounts>,
    preparing: &AtomicUsize,
) {
    let mut scheduler = Scheduler::new(Arc::clone(engine), options);
    let mut step = Step::Idle;
    loop {
        // With nothing to do it sleeps until it is asked for something.
        let mut next = match step {
            Step::Idle => commands.recv().map_err(|_| TryRecvError::Disconnected),
            Step::Worked => commands.try_recv(),
        };
        let gathers_until = match step {
            Step::Idle => Some(Instant::now() + GATHER),
            Step::Worked => None,
        };
        loop {
            match next {
                Ok(Command::Submit(request)) => {
                    scheduler.submit(*request);
                }
                Ok(Command::CancelAll) => scheduler.cancel_all(),
                Ok(Command::Forget(tell)) => {
                    scheduler.forget();
                    // Whoever asked may have gone.
                    let _ = tell.send(());
                }
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => {
                    scheduler.cancel_all();
                    *lock(shown) = scheduler.counts();
                    return;
                }
                Err(TryRecvError::Empty) => {
                    let more = |until: Instant| {
                        preparing.load(Ordering::Relaxed) > 0 && Instant::now() < until
                    };
                    if !gathers_until.is_some_and(more) {
                        break;
                    }
                    next = commands.recv_timeout(GLANCE).map_err(|error| match error {
                        RecvTimeoutError::Timeout => TryRecvError::Empty,
                        RecvTimeoutError::Disconnected => TryRecvError::Disconnected,
                    });
                    continue;
                }
            }
            next = commands.try_recv();
        }
        step = catch_unwind(AssertUnwindSafe(|| scheduler.step())).unwrap_or_else(|_| {
            // A bug, which the panic has told of. Its requests are lost, the server is not.
            scheduler = Scheduler::new(Arc::clone(engine), options);
            Step::Idle
        });
        *lock(shown) = scheduler.counts();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing here is left half done.
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}
