//! What all handlers share.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use longview::schedule::Priority;
use longview::tier::StoreFolder;
use longview::{Engine, Tenant};

use crate::api::batches::Offline;
use crate::contexts::Contexts;
use crate::error::{ApiError, ServerError};
use crate::grammar::Vocabulary;
use crate::metrics::Metrics;
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
    /// Texts of the vocabulary's special tokens, the longest first.
    specials: Vec<String>,
    /// Whether the chat template shows tools to the model.
    takes_tools: bool,
    started: Instant,
    created: u64,
    stopping: AtomicBool,
    metrics: Metrics,
    vocabulary: Vocabulary,
}

/// One tenant's part of the server.
pub(crate) struct Tenancy {
    pub(crate) tenant: Arc<Tenant>,
    pub(crate) contexts: Arc<Contexts>,
    pub(crate) offline: Offline,
}

/// A request that was let in, and for whom.
#[derive(Clone)]
pub(crate) struct Guest(pub(crate) Arc<Tenancy>);

/// The name that every server answers to.
const OWN_NAME: &str = "longview";

impl App {
    pub(crate) fn new(engine: Engine, options: ServerOptions) -> Result<App, ServerError> {
        let engine = Arc::new(engine);
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
        let tenants = salts.into_iter().map(|salt| {
            let tenant = Arc::new(engine.tenant(&salt));
            let contexts = Arc::new(Contexts::new(Arc::clone(&tenant), folder.as_ref(), &salt));
            let tenancy = Tenancy {
                tenant,
                contexts,
                offline: Offline::default(),
            };
            (salt, Arc::new(tenancy))
        });
        Ok(App(Arc::new(Inner {
            tenants: tenants.collect(),
            queue: Arc::new(Queue::new(options.queue)),
            specials: prompt::special_texts(&engine),
            takes_tools: prompt::template_takes_tools(&engine),
            worker,
            engine,
            options,
            names,
            started: Instant::now(),
            created: unix_seconds(),
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
        self.0.created
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
        let queue = self.queue();
        // The last eighth of the line is kept from those that can come back any time.
        if priority == Priority::Low && queue.waiting() >= queue.limit() - queue.limit() / 8 {
            return Err(self.full());
        }
        queue.enter(tokens).ok_or_else(|| self.full())
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
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
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
