//! What is counted, and how Prometheus reads it.

use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use longview::schedule::Summary;

use crate::app::App;

/// Bounds of the histograms, in seconds.
const BOUNDS: [f64; 11] = [0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0];

/// What the server counts beside the scheduler.
#[derive(Default)]
pub(crate) struct Metrics {
    refused: AtomicU64,
    by_status: [AtomicU64; 6],
    cancelled: AtomicU64,
    warnings: AtomicU64,
    first_token: Histogram,
    queued: Histogram,
    gap: Histogram,
}

#[derive(Default)]
struct Histogram(Mutex<Counts>);

#[derive(Clone, Copy, Default)]
struct Counts {
    buckets: [u64; BOUNDS.len()],
    count: u64,
    sum: f64,
}

impl Metrics {
    /// A request was told to come back.
    pub(crate) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// A response was given.
    pub(crate) fn answered(&self, status: u16) {
        let class = usize::from(status / 100).min(5);
        self.by_status[class].fetch_add(1, Ordering::Relaxed);
    }

    /// A client has left before its answer was complete.
    pub(crate) fn cancelled(&self) {
        self.cancelled.fetch_add(1, Ordering::Relaxed);
    }

    /// The store has warned of something.
    pub(crate) fn warned(&self) {
        self.warnings.fetch_add(1, Ordering::Relaxed);
    }

    /// A request has ended.
    pub(crate) fn ended(&self, summary: &Summary) {
        self.queued.add(summary.queued.as_secs_f64());
        if let Some(first) = summary.to_first_token {
            self.first_token.add(first.as_secs_f64());
        }
        if summary.generated_tokens > 1 {
            self.gap.add(summary.longest_gap.as_secs_f64());
        }
    }
}

impl Histogram {
    fn add(&self, seconds: f64) {
        let mut counts = self.lock();
        for (bucket, bound) in counts.buckets.iter_mut().zip(BOUNDS) {
            *bucket += u64::from(seconds <= bound);
        }
        counts.count += 1;
        counts.sum += seconds;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Counts> {
        // Numbers, whole at every unlock.
        self.0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn write(&self, out: &mut String, name: &str, help: &str) {
        let counts = *self.lock();
        head(out, name, help, "histogram");
        for (bucket, bound) in counts.buckets.iter().zip(BOUNDS) {
            let _ = writeln!(out, "longview_{name}_bucket{{le=\"{bound}\"}} {bucket}");
        }
        let Counts { count, sum, .. } = counts;
        let _ = writeln!(out, "longview_{name}_bucket{{le=\"+Inf\"}} {count}");
        let _ = writeln!(
            out,
            "longview_{name}_sum {sum}\nlongview_{name}_count {count}"
        );
    }
}

fn head(out: &mut String, name: &str, help: &str, kind: &str) {
    let _ = writeln!(
        out,
        "# HELP longview_{name} {help}\n# TYPE longview_{name} {kind}"
    );
}

/// Everything, in Prometheus's text format.
pub(crate) fn text(app: &App) -> String {
    let mut out = String::new();
    let counts = app.worker().counts();
    let usage = app.engine().ledger().usage();
    let mut number = |name: &str, kind: &str, help: &str, value: f64| {
        head(&mut out, name, help, kind);
        let _ = writeln!(out, "longview_{name} {value}");
    };
    let (counter, gauge) = ("counter", "gauge");
    number(
        "uptime_seconds",
        gauge,
        "Seconds since the start.",
        app.times().running().as_secs_f64(),
    );
    number(
        "requests_waiting",
        gauge,
        "Requests in the queue.",
        app.queue().waiting() as f64,
    );
    number(
        "sequences_running",
        gauge,
        "Prompts being read and texts being written.",
        counts.running as f64,
    );
    number(
        "sequences_waiting",
        gauge,
        "Sequences that the scheduler holds back for want of room.",
        counts.waiting as f64,
    );
    number(
        "passes_total",
        counter,
        "Forward passes.",
        counts.passes as f64,
    );
    number(
        "prompt_tokens_total",
        counter,
        "Tokens of prompts computed.",
        counts.prompt_tokens as f64,
    );
    number(
        "reused_tokens_total",
        counter,
        "Tokens of prompts taken over from work done before.",
        counts.reused_tokens as f64,
    );
    number(
        "moved_tokens_total",
        counter,
        "Those of them moved from another place in a text, under reuse shift.",
        counts.moved_tokens as f64,
    );
    number(
        "generated_tokens_total",
        counter,
        "Tokens generated.",
        counts.generated_tokens as f64,
    );
    number(
        "preemptions_total",
        counter,
        "Times that a request gave its memory to others.",
        counts.preemptions as f64,
    );
    number(
        "requests_ended_total",
        counter,
        "Requests that ended, well or otherwise.",
        counts.ended as f64,
    );
    number(
        "requests_refused_total",
        counter,
        "Requests told to come back because the queue was full.",
        app.metrics().refused.load(Ordering::Relaxed) as f64,
    );
    number(
        "requests_cancelled_total",
        counter,
        "Requests whose client left.",
        app.metrics().cancelled.load(Ordering::Relaxed) as f64,
    );
    number(
        "store_warnings_total",
        counter,
        "Times that something could not be written to the store or read from it.",
        app.metrics().warnings.load(Ordering::Relaxed) as f64,
    );
    number(
        "longest_pass_seconds",
        gauge,
        "The longest pass that wrote tokens so far.",
        counts.longest_gap,
    );
    number(
        "prompt_tokens_per_second",
        gauge,
        "Tokens of prompts read a second, as measured last.",
        counts.prompt_tokens_per_second,
    );
    let limit = app.engine().ledger().limit();
    number(
        "memory_limit_bytes",
        gauge,
        "Bytes allowed.",
        if limit == u64::MAX {
            f64::INFINITY
        } else {
            limit as f64
        },
    );
    head(&mut out, "memory_bytes", "Bytes in use, by purpose.", gauge);
    for (purpose, bytes) in [
        ("program", usage.program),
        ("index", usage.index),
        ("weights", usage.weights),
        ("kv", usage.kv),
        ("scratch", usage.scratch),
    ] {
        let _ = writeln!(
            out,
            "longview_memory_bytes{{purpose=\"{purpose}\"}} {bytes}"
        );
    }
    head(
        &mut out,
        "memory_peak_bytes",
        "The most bytes in use so far.",
        gauge,
    );
    let _ = writeln!(out, "longview_memory_peak_bytes {}", usage.peak);
    if let Some(store) = app.engine().store() {
        let counts = store.counts();
        for (name, help, value) in [
            (
                "store_sealed_blocks_total",
                "Blocks sealed.",
                counts.sealed_blocks,
            ),
            (
                "store_read_bytes_total",
                "Bytes read back from tiers.",
                counts.read_bytes,
            ),
            (
                "store_demoted_bytes_total",
                "Bytes of memory freed by letting go of blocks that a tier holds.",
                counts.demoted_bytes,
            ),
        ] {
            head(&mut out, name, help, counter);
            let _ = writeln!(out, "longview_{name} {value}");
        }
    }
    head(
        &mut out,
        "http_responses_total",
        "Responses, by class of status.",
        counter,
    );
    for (class, count) in app.metrics().by_status.iter().enumerate().skip(1) {
        let count = count.load(Ordering::Relaxed);
        let _ = writeln!(
            out,
            "longview_http_responses_total{{class=\"{class}xx\"}} {count}"
        );
    }
    let metrics = app.metrics();
    metrics.first_token.write(
        &mut out,
        "time_to_first_token_seconds",
        "From arrival to the first token.",
    );
    metrics
        .queued
        .write(&mut out, "queue_seconds", "Time in the queue.");
    metrics.gap.write(
        &mut out,
        "longest_gap_seconds",
        "The longest time between two tokens of an answer.",
    );
    out
}
