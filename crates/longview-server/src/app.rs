//! What all handlers share.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use longview::schedule::Priority;
use longview::tier::StoreFolder;
use longview::{Engine, Tenant};

use crate::api::responses::Responses;
use crate::contexts::Contexts;
use crate::error::{ApiError, ServerError};
use crate::grammar::Vocabulary;
use crate::metrics::Metrics;
use crate::offline::Offline;
use crate::options::ServerOptions;
use crate::prompt;
use crate::queue::{Permit, Queue};
use crate::worker::Worker;

/// What all handlers share; cloning gives another handle.
#[derive(Clone)]
pub(crate) struct App(Arc<Inner>);

struct Inner {
    engine: Arc<Engine>,
    worker: Worker,
    queue: Arc<Queue>,
    options: ServerOptions,
    tenants: HashMap<String, Arc<Tenancy>>,
    names: Vec<String>,
    /// What whoever has started it should know.
    notices: Vec<String>,
    /// Texts of the vocabulary's special tokens, the longest first.
    specials: Vec<String>,
    /// Whether the chat template shows tools to the model.
    takes_tools: bool,
    started: Instant,
    /// When that was, by the system's clock.
    started_at: SystemTime,
    stopping: AtomicBool,
    metrics: Metrics,
    vocabulary: Vocabulary,
}

/// One tenant's part of the server.
pub(crate) struct Tenancy {
    pub(crate) tenant: Arc<Tenant>,
    pub(crate) contexts: Arc<Contexts>,
    pub(crate) offline: Offline,
    pub(crate) responses: Responses,
}

/// A request that was let in, and for whom.
#[derive(Clone)]
pub(crate) struct Guest(pub(crate) Arc<Tenancy>);

/// The name that every server answers to.
const OWN_NAME: &str = "longview";

impl App {
    pub(crate) fn new(engine: Arc<Engine>, options: ServerOptions) -> Result<App, ServerError> {
        let worker = Worker::start(Arc::clone(&engine), options.schedule)?;
        let own = engine.describe().name;
        let mut names = match options.names.is_empty() {
            true => vec![own],
            false => options.names.clone(),
        };
        names.push(OWN_NAME.to_owned());
        let folder = match &options.contexts_folder {
            Some(folder) => Some(
                StoreFolder::open(folder)
                    .map_err(|error| ServerError::Setting(error.to_string()))?,
            ),
            None => None,
        };
        let salts: Vec<String> = match options.keys.is_empty() {
            true => vec![options.salt.clone()],
            false => options
                .keys
                .tenants()
                .into_iter()
                .map(str::to_owned)
                .collect(),
        };
        let requests = folder.as_ref().filter(|folder| !folder.read_only());
        let requests = requests.map(StoreFolder::requests);
        let mut notices: Vec<String> = Vec::new();
        let mut tenants = HashMap::new();
        for salt in salts {
            let tenant = Arc::new(engine.tenant(&salt));
            let contexts = Arc::new(Contexts::new(Arc::clone(&tenant), folder.as_ref(), &salt));
            let (offline, notice) = Offline::open(requests.as_deref(), &salt);
            notices.extend(notice.filter(|notice| !notices.contains(notice)));
            let tenancy = Tenancy {
                tenant,
                contexts,
                offline,
                responses: Responses::default(),
            };
            tenants.insert(salt, Arc::new(tenancy));
        }
        Ok(App(Arc::new(Inner {
            notices,
            tenants,
            queue: Arc::new(Queue::new(options.queue)),
            specials: prompt::special_texts(&engine),
            takes_tools: prompt::template_takes_tools(&engine),
            worker,
            engine,
            options,
            names,
            started: Instant::now(),
            started_at: SystemTime::now(),
            stopping: AtomicBool::new(false),
            metrics: Metrics::default(),
            vocabulary: Vocabulary::default(),
        })))
    }

    pub(crate) fn engine(&self) -> &Arc<Engine> {
        &self.0.engine
    }

    pub(crate) fn worker(&self) -> &Worker {
        &self.0.worker
    }

    pub(crate) fn queue(&self) -> &Arc<Queue> {
        &self.0.queue
    }

    pub(crate) fn options(&self) -> &ServerOptions {
        &self.0.options
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Texts of the vocabulary's special tokens, the longest first.
    pub(crate) fn specials(&self) -> &[String] {
        &self.0.specials
    }

    /// Whether the chat template shows tools to the model.
    pub(crate) fn takes_tools(&self) -> bool {
        self.0.takes_tools
    }

    /// The vocabulary as grammars need it.
    pub(crate) fn vocabulary(&self) -> &Vocabulary {
        &self.0.vocabulary
    }

    /// Seconds that it is running.
    pub(crate) fn uptime(&self) -> f64 {
        self.0.started.elapsed().as_secs_f64()
    }

    /// When it was started, in seconds since 1970.
    pub(crate) fn created(&self) -> u64 {
        seconds_since_1970(self.0.started_at)
    }

    /// What it surely is later than, however the system's clock is set meanwhile: what has an end is not
    /// ended because the clock was set ahead.
    pub(crate) fn surely_now(&self) -> SystemTime {
        surely_now(
            SystemTime::now(),
            self.0.started_at,
            self.0.started.elapsed(),
        )
    }

    /// The name the model is listed under.
    pub(crate) fn model(&self) -> &str {
        &self.0.names[0]
    }

    /// All names the model goes by.
    pub(crate) fn names(&self) -> &[String] {
        &self.0.names
    }

    /// Refuses a model that is not this one.
    pub(crate) fn check_model(&self, wanted: Option<&str>) -> Result<(), ApiError> {
        match wanted {
            Some(name) if !self.0.names.iter().any(|known| known == name) => {
                let mut error = ApiError::not_found(format!(
                    "there is no model {name:?} here; this server runs {:?}",
                    self.model()
                ))
                .code("model_not_found");
                error.param = Some("model".to_owned());
                Err(error)
            }
            _ => Ok(()),
        }
    }

    /// The tenancy of a salt.
    pub(crate) fn tenancy(&self, salt: &str) -> Option<&Arc<Tenancy>> {
        self.0.tenants.get(salt)
    }

    /// What whoever has started it should know.
    pub(crate) fn notices(&self) -> &[String] {
        &self.0.notices
    }

    /// All tenancies.
    pub(crate) fn tenancies(&self) -> impl Iterator<Item = &Arc<Tenancy>> {
        self.0.tenants.values()
    }

    /// A place in the line for a prompt of `tokens` tokens.
    pub(crate) fn enter(&self, tokens: usize, priority: Priority) -> Result<Permit, ApiError> {
        if self.is_stopping() {
            return Err(ApiError::unavailable(
                "the server is shutting down; ask again in a moment",
            ));
        }
        self.check_weights()?;
        let queue = self.queue();
        // The last eighth of the line is kept from those that can come back any time.
        if priority == Priority::Low && queue.waiting() >= queue.limit() - queue.limit() / 8 {
            return Err(self.full());
        }
        queue.enter(tokens).ok_or_else(|| self.full())
    }

    /// Refuses to go on with weights that somebody has overwritten.
    pub(crate) fn check_weights(&self) -> Result<(), ApiError> {
        let file = self.engine().model().file().weight_file();
        file.check_unchanged()
            .map_err(|error| ApiError::unavailable(error.to_string()).code("model_changed"))
    }

    fn full(&self) -> ApiError {
        self.metrics().refused();
        let rate = self.worker().counts().prompt_tokens_per_second;
        let seconds = self.queue().seconds_to_wait(rate);
        ApiError::busy(
            format!(
                "{} requests are waiting, and no more than {} may; ask again in {seconds} s",
                self.queue().waiting(),
                self.queue().limit()
            ),
            seconds,
        )
    }

    /// Lets nothing new begin.
    pub(crate) fn begin_to_stop(&self) {
        self.0.stopping.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.0.stopping.load(Ordering::Relaxed)
    }
}

/// Now, in seconds since 1970.
pub(crate) fn unix_seconds() -> u64 {
    seconds_since_1970(SystemTime::now())
}

/// Seconds from 1970 to `time`; 0 before.
pub(crate) fn seconds_since_1970(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// The earlier of what the system's clock says and what has passed since the start: clocks are set, and
/// machines sleep.
fn surely_now(now: SystemTime, started_at: SystemTime, passed: Duration) -> SystemTime {
    now.min(started_at.checked_add(passed).unwrap_or(now))
}

/// An id that no other answer of this server has.
pub(crate) fn new_id(prefix: &str) -> String {
    use std::hash::{BuildHasher, RandomState};
    let (a, b) = (RandomState::new(), RandomState::new());
    format!(
        "{prefix}{:016x}{:08x}",
        a.hash_one(prefix),
        b.hash_one(1) as u32
    )
}

/// Does what may take a while beside the tasks that serve connections.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| ApiError::failed("the server has met a bug, which its log tells of"))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_jumps_ends_nothing_early() {
        let day = Duration::from_secs(86_400);
        let started = UNIX_EPOCH + day * 20_000;
        let passed = Duration::from_secs(600);
        assert_eq!(
            surely_now(started + passed, started, passed),
            started + passed
        );
        // Set ahead by a year, and back by one.
        assert_eq!(
            surely_now(started + day * 365, started, passed),
            started + passed
        );
        assert_eq!(
            surely_now(started - day * 365, started, passed),
            started - day * 365
        );
        // A machine that slept for a day has seen less pass than the clock.
        assert_eq!(surely_now(started + day, started, passed), started + passed);
        assert_eq!(seconds_since_1970(UNIX_EPOCH - day), 0);
    }
}
