//! The worker threads that share every kernel's work.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::affinity;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use crate::memory::prefetch_farther;

/// How long a worker that has just worked waits for more before it sleeps.
const SPIN: Duration = Duration::from_micros(80);

/// A fixed set of threads that run numbered tasks together; the caller is one of them.
///
/// The workers live as long as the pool. After a run they watch for the next one for some
/// microseconds, so that the many small products of a decode step do not each pay for waking
/// threads, and then sleep.
pub struct Pool {
    threads: usize,
    /// Held for the length of a run: runs from several threads take turns.
    turn: Mutex<()>,
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Where they are bound.
    taken: Vec<usize>,
}

impl Pool {
    /// A pool of `threads` threads, the caller's included; 0 is taken as 1.
    ///
    /// Each worker is bound to a core of its own where the system allows, which callers leave as they find that
    /// they run there. Should the system refuse
    /// more threads, the pool makes do with those it got.
    pub fn new(threads: usize) -> Pool {
        let wanted = threads.max(1);
        let mut cores = affinity::other_cores();
        // With fewer cores than threads, watching would only take time from those at work.
        let crowded = cores.len() + 1 < wanted;
        cores.truncate(if crowded { 0 } else { wanted - 1 });
        let shared = Arc::new(Shared {
            gate: AtomicU64::new(0),
            next: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            panic: Mutex::new(None),
            sleepers: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
            closing: AtomicBool::new(false),
            counts_waiting: AtomicBool::new(false),
            expected: (0..wanted).map(|_| Expected::default()).collect(),
            waited_ns: AtomicU64::new(0),
            spin: if crowded { Duration::ZERO } else { SPIN },
        });
        let mut workers = Vec::with_capacity(wanted - 1);
        for worker in 1..wanted {
            let core = cores.get(worker - 1).copied();
            let shared = Arc::clone(&shared);
            let spawned = std::thread::Builder::new()
                .name(format!("longview-{worker}"))
                .spawn(move || {
                    if let Some(core) = core {
                        affinity::bind(core);
                    }
                    shared.serve(worker);
                });
            match spawned {
                Ok(handle) => workers.push(handle),
                Err(_) => break,
            }
        }
        Pool {
            threads: workers.len() + 1,
            turn: Mutex::new(()),
            shared,
            workers,
            taken: cores,
        }
    }

    /// Threads that share the work, the caller's included.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Counts from now on how long callers wait for the other threads at the end of runs.
    pub fn count_waiting(&self) {
        self.shared.waited_ns.store(0, Ordering::Relaxed);
        self.shared.counts_waiting.store(true, Ordering::Relaxed);
    }

    /// What was waited since [`Pool::count_waiting`]; nothing is counted from now on.
    pub fn take_waiting(&self) -> Duration {
        self.shared.counts_waiting.store(false, Ordering::Relaxed);
        Duration::from_nanos(self.shared.waited_ns.load(Ordering::Relaxed))
    }

    /// Calls `work(task, worker)` once for every task in `0..tasks`, in no particular order, and
    /// returns when all are done. `worker` is below [`Pool::threads`]; no two calls that run at
    /// the same time share a worker number, so it may index per-thread scratch.
    ///
    /// A run from inside a task of the same pool is done by that thread alone. Nothing is
    /// allocated.
    ///
    /// # Panics
    /// When a task panics: its payload is handed on once every thread has left the run; tasks not
    /// yet begun are skipped.
    pub fn run(&self, tasks: usize, work: &(dyn Fn(usize, usize) + Sync)) {
        if let Some(worker) = self.shared.worker_here() {
            (0..tasks).for_each(|task| work(task, worker));
            return;
        }
        let _turn = lock(&self.turn);
        let _here = Here::enter(&self.shared, 0);
        if self.threads == 1 || tasks <= 1 {
            (0..tasks).for_each(|task| work(task, 0));
            return;
        }
        affinity::leave(&self.taken);
        self.shared.open(tasks, work);
        self.shared.drain(tasks, work, 0);
        if self.shared.counts_waiting.load(Ordering::Relaxed) {
            let begun = Instant::now();
            self.shared.close();
            let waited = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.shared.waited_ns.fetch_add(waited, Ordering::Relaxed);
        } else {
            self.shared.close();
        }
        let panic = lock(&self.shared.panic).take();
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }
}

impl Pool {
    /// Tells worker `worker` what it will read first in a run to come, in place of what it was told before.
    pub(crate) fn announce(&self, worker: usize, bytes: &[u8]) {
        let expected = &self.shared.expected[worker];
        expected.bytes.store(bytes.len(), Ordering::Relaxed);
        let start = bytes.as_ptr().cast_mut();
        expected.start.store(start, Ordering::Relaxed);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::SeqCst);
        self.shared.wake_all();
        for worker in self.workers.drain(..) {
            // Workers catch the panics of tasks, so joining cannot fail for a reason to report.
            let _ = worker.join();
        }
    }
}

/// What a worker is to read first in a run to come, which it may ask for while it waits and memory is idle:
/// an address and a number of bytes. Nothing is read there, so it need not stay.
#[derive(Default)]
struct Expected {
    start: AtomicPtr<u8>,
    bytes: AtomicUsize,
}

/// How far a waiting worker has asked for what it expects.
struct Asked {
    start: *const u8,
    bytes: usize,
}

impl Asked {
    fn nothing() -> Asked {
        Asked {
            start: std::ptr::null(),
            bytes: 0,
        }
    }

    /// Asks for the next lines of `expected`, or lets some time pass when there are none.
    fn go_on(&mut self, expected: &Expected) {
        let start = expected.start.load(Ordering::Relaxed).cast_const();
        if start != self.start {
            *self = Asked { start, bytes: 0 };
        }
        if self.bytes >= expected.bytes.load(Ordering::Relaxed) {
            return std::hint::spin_loop();
        }
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        for line in 0..4 {
            prefetch_farther(self.start.wrapping_add(self.bytes + 64 * line));
        }
        self.bytes += 4 * 64;
    }
}

/// The work of one run; the lifetime of `work` is that of the run, which outlives every use.
#[derive(Clone, Copy)]
struct Job {
    tasks: usize,
    work: *const (dyn Fn(usize, usize) + Sync),
}

/// What the threads of a pool share.
///
/// `gate` tells workers of runs: its upper half counts runs, bit 31 says that the run is open, and
/// the bits below count the workers inside. Workers enter only an open run, and the caller, once
/// it has closed the gate, waits only for those inside: one that wakes too late costs nothing.
struct Shared {
    gate: AtomicU64,
    next: AtomicUsize,
    job: UnsafeCell<Option<Job>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
    closing: AtomicBool,
    counts_waiting: AtomicBool,
    /// Of each worker.
    expected: Vec<Expected>,
    /// Nanoseconds that callers have waited in [`Shared::close`] while that is counted.
    waited_ns: AtomicU64,
    spin: Duration,
}

// SAFETY: `job` is written only by the caller of a run while the gate is closed and nobody inside,
// and read only by workers inside an open run; the gate's acquire and release order the two. The
// pointer in it leads to a `Sync` closure.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

const OPEN: u64 = 1 << 31;
const INSIDE: u64 = OPEN - 1;
const RUN: u64 = 1 << 32;

impl Shared {
    /// Publishes a run and wakes those asleep.
    fn open(&self, tasks: usize, work: &(dyn Fn(usize, usize) + Sync)) {
        // SAFETY: only the lifetime changes; `close` returns before the borrow ends.
        let work: *const (dyn Fn(usize, usize) + Sync) =
            unsafe { std::mem::transmute::<&(dyn Fn(usize, usize) + Sync), _>(work) };
        // SAFETY: the gate is closed and nobody is inside, so nobody else looks at `job`.
        unsafe { *self.job.get() = Some(Job { tasks, work }) };
        self.next.store(0, Ordering::Relaxed);
        let run = (self.gate.load(Ordering::Relaxed) & !INSIDE & !OPEN).wrapping_add(RUN);
        self.gate.store(run | OPEN, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            self.wake_all();
        }
    }

    /// Ends a run: lets nobody in any more and waits for those inside.
    fn close(&self) {
        let mut gate = self.gate.fetch_and(!OPEN, Ordering::AcqRel);
        let (mut looks, mut asked) = (0u32, Asked::nothing());
        while gate & INSIDE != 0 {
            looks += 1;
            if looks < 10_000 {
                asked.go_on(&self.expected[0]);
            } else {
                std::thread::yield_now()
            }
            gate = self.gate.load(Ordering::Acquire);
        }
    }

    /// Takes tasks until none is left. A panic is kept for the caller and ends the run.
    fn drain(&self, tasks: usize, work: &(dyn Fn(usize, usize) + Sync), worker: usize) {
        let result = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let task = self.next.fetch_add(1, Ordering::Relaxed);
                if task >= tasks {
                    break;
                }
                work(task, worker);
            }
        }));
        if let Err(payload) = result {
            self.next.store(tasks, Ordering::Relaxed);
            lock(&self.panic).get_or_insert(payload);
        }
    }

    /// A worker's life.
    fn serve(self: &Arc<Shared>, worker: usize) {
        let _here = Here::enter(self, worker);
        let mut done = 0;
        while let Some(run) = self.await_run(done, worker) {
            done = run;
            if !self.enter(run) {
                continue;
            }
            // SAFETY: inside an open run, so `job` is this run's and its closure is alive until
            // this worker has left.
            let job = unsafe { *self.job.get() };
            if let Some(Job { tasks, work }) = job {
                // SAFETY: as above.
                self.drain(tasks, unsafe { &*work }, worker);
            }
            self.gate.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits for an open run other than `done`; `None` when the pool is dropped.
    fn await_run(&self, done: u64, worker: usize) -> Option<u64> {
        let fresh = || {
            let gate = self.gate.load(Ordering::SeqCst);
            (gate & OPEN != 0 && gate >> 32 != done).then_some(gate >> 32)
        };
        let closing = || self.closing.load(Ordering::SeqCst);
        if !self.spin.is_zero() {
            let (start, mut asked) = (Instant::now(), Asked::nothing());
            while start.elapsed() < self.spin {
                for _ in 0..64 {
                    if let Some(run) = fresh() {
                        return Some(run);
                    }
                    asked.go_on(&self.expected[worker]);
                }
                if closing() {
                    return None;
                }
            }
        }
        let mut guard = lock(&self.sleep);
        // Counted before the last look: a caller that opens a run after it sees a sleeper.
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let found = loop {
            if closing() {
                break None;
            }
            if let Some(run) = fresh() {
                break Some(run);
            }
            guard = self
                .wake
                .wait(guard)
                .unwrap_or_else(PoisonError::into_inner);
        };
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        found
    }

    /// Joins `run` if it is still open.
    fn enter(&self, run: u64) -> bool {
        self.gate
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, |gate| {
                (gate >> 32 == run && gate & OPEN != 0).then_some(gate + 1)
            })
            .is_ok()
    }

    fn wake_all(&self) {
        let _guard = lock(&self.sleep);
        self.wake.notify_all();
    }

    /// The worker number of this thread if it is in a run of this pool.
    fn worker_here(&self) -> Option<usize> {
        let (pool, worker) = HERE.get();
        std::ptr::eq(pool, self).then_some(worker)
    }
}

thread_local! {
    /// The pool this thread works for right now, and as which worker.
    static HERE: Cell<(*const Shared, usize)> = const { Cell::new((std::ptr::null(), 0)) };
}

/// Marks this thread as a worker of a pool until dropped.
struct Here(*const Shared, usize);

impl Here {
    fn enter(shared: &Arc<Shared>, worker: usize) -> Here {
        let (pool, before) = HERE.replace((Arc::as_ptr(shared), worker));
        Here(pool, before)
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        HERE.set((self.0, self.1));
    }
}

/// Locks also after a panic: what the pool's locks guard is whole at any time.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    fn counts(pool: &Pool, tasks: usize) -> Vec<u32> {
        let seen: Vec<AtomicU32> = (0..tasks).map(|_| AtomicU32::new(0)).collect();
        let busy: Vec<AtomicU32> = (0..pool.threads()).map(|_| AtomicU32::new(0)).collect();
        pool.run(tasks, &|task, worker| {
            assert_eq!(
                busy[worker].fetch_add(1, Ordering::SeqCst),
                0,
                "worker shared"
            );
            seen[task].fetch_add(1, Ordering::SeqCst);
            busy[worker].fetch_sub(1, Ordering::SeqCst);
        });
        seen.into_iter().map(AtomicU32::into_inner).collect()
    }

    #[test]
    fn what_is_announced_need_not_be_there_any_more() {
        let pool = Pool::new(3);
        for round in 0..50 {
            for worker in 0..3 {
                let bytes = vec![0; 1 << (10 + round % 10)];
                pool.announce(worker, &bytes);
            }
            assert!(counts(&pool, 7).iter().all(|&count| count == 1));
        }
        pool.announce(0, &[]);
        assert!(counts(&pool, 7).iter().all(|&count| count == 1));
    }

    #[test]
    fn every_task_runs_once() {
        for threads in [0, 1, 2, 3, 9] {
            let pool = Pool::new(threads);
            assert_eq!(pool.threads(), threads.max(1));
            for round in 0..200 {
                assert!(counts(&pool, round % 17).iter().all(|&count| count == 1));
            }
        }
    }

    #[test]
    fn waiting_is_counted_when_asked_for() {
        let pool = Pool::new(2);
        // The caller's task ends when the other thread has begun its own, which takes longer.
        let begun = AtomicBool::new(false);
        let uneven = |_: usize, worker: usize| {
            if worker == 0 {
                while !begun.load(Ordering::SeqCst) {
                    std::thread::yield_now();
                }
            } else {
                begun.store(true, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(30));
            }
        };
        let mut waited = Duration::ZERO;
        // On a machine that stands still for a while the waiting may be over unnoticed.
        for _ in 0..5 {
            pool.count_waiting();
            begun.store(false, Ordering::SeqCst);
            pool.run(2, &uneven);
            waited = pool.take_waiting();
            if waited > Duration::from_millis(5) {
                break;
            }
        }
        assert!(waited > Duration::from_millis(5), "{waited:?}");
        begun.store(false, Ordering::SeqCst);
        pool.run(2, &uneven);
        assert_eq!(pool.take_waiting(), waited, "nothing is counted any more");
    }

    #[test]
    fn more_threads_than_cores_do_not_collapse() {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let work = |pool: &Pool| {
            let start = Instant::now();
            for _ in 0..50 {
                let sums = |task: usize, _: usize| {
                    let sum = (0..20_000u64).fold(task as u64, |a, b| a.wrapping_mul(31) ^ b);
                    std::hint::black_box(sum);
                };
                pool.run(64, &sums);
            }
            start.elapsed()
        };
        let fitting = work(&Pool::new(cores));
        let crowded = work(&Pool::new(8 * cores));
        assert!(crowded < 20 * fitting, "{crowded:?} instead of {fitting:?}");
    }

    #[test]
    fn sleeping_workers_wake() {
        let pool = Pool::new(2);
        for _ in 0..5 {
            std::thread::sleep(3 * SPIN);
            assert!(counts(&pool, 8).iter().all(|&count| count == 1));
        }
    }

    #[test]
    fn runs_from_several_threads_take_turns() {
        let pool = Pool::new(3);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        assert!(counts(&pool, 5).iter().all(|&count| count == 1));
                    }
                });
            }
        });
    }

    #[test]
    fn a_run_inside_a_task_is_done_by_its_thread() {
        let pool = Pool::new(2);
        let total = AtomicU32::new(0);
        pool.run(4, &|_, worker| {
            pool.run(3, &|_, inner| {
                assert_eq!(inner, worker);
                total.fetch_add(1, Ordering::SeqCst);
            });
        });
        assert_eq!(total.into_inner(), 12);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        for threads in [1, 2, 4] {
            let pool = Pool::new(threads);
            for bad in 0..6 {
                let run = || pool.run(6, &|task, _| assert!(task != bad, "task {task} broke"));
                let payload = catch_unwind(AssertUnwindSafe(run)).unwrap_err();
                let text = payload.downcast_ref::<String>().unwrap();
                assert_eq!(*text, format!("task {bad} broke"));
                assert!(counts(&pool, 9).iter().all(|&count| count == 1));
            }
        }
    }
}
