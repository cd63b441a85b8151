//! The worker threads that share every kernel's work.

use std::sync::atomic::{AtomicUsize, Ordering};

/// A fixed set of threads that run numbered tasks together; the caller is one of them.
pub struct Pool {
    threads: usize,
}

impl Pool {
    /// A pool of `threads` threads, the caller's included; 0 is taken as 1.
    pub fn new(threads: usize) -> Pool {
        Pool { threads: threads.max(1) }
    }

    /// Threads that share the work, the caller's included.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Calls `work(task, worker)` once for every task in `0..tasks`, in no particular order, and
    /// returns when all are done. `worker` is below [`Pool::threads`]; no two calls that run at
    /// the same time share a worker number, so it may index per-thread scratch.
    pub fn run(&self, tasks: usize, work: &(dyn Fn(usize, usize) + Sync)) {
        let next = AtomicUsize::new(0);
        let drain = |worker: usize| {
            loop {
                let task = next.fetch_add(1, Ordering::Relaxed);
                if task >= tasks {
                    break;
                }
                work(task, worker);
            }
        };
        if self.threads == 1 || tasks <= 1 {
            return drain(0);
        }
        std::thread::scope(|scope| {
            for worker in 1..self.threads.min(tasks) {
                let drain = &drain;
                scope.spawn(move || drain(worker));
            }
            drain(0);
        });
    }
}
