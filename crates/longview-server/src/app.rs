//! What all handlers share.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use longview::schedule::Priority;
use longview::text::Moment;
use longview::tier::StoreFolder;
use longview::{Engine, Tenant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::api::responses::Responses;
use crate::clock::{Times, seconds_since_1970};
use crate::contexts::Contexts;
use crate::error::{ApiError, ServerError};
use crate::folder::Folder;
use crate::grammar::Vocabulary;
use crate::metrics::Metrics;
use crate::offline::Offline;
use crate::options::ServerOptions;
use crate::prompt;
use crate::queue::{Permit, Queue};
use crate::specials::SpecialTexts;
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
    specials: SpecialTexts,
    /// Whether the chat template shows tools to the model.
    takes_tools: bool,
    is_dated: bool,
    times: Times,
    stopping: AtomicBool,
    /// How many texts may be turned into tokens at once.
    preparing: Arc<Semaphore>,
    /// Room for bodies of requests that are being understood, in pieces of [`BODY_PIECE`].
    bodies: Arc<Semaphore>,
    /// What went wrong meanwhile without stopping the work.
    warnings: Mutex<Vec<String>>,
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

/// Texts that are turned into tokens at once: the cores are for the model, and many at once would take
/// them away from it for longer than answers being written may wait.
const MOST_PREPARING: usize = 2;

/// The largest bodies that there is room for at once, of requests that are not begun.
const BODIES: usize = 4;

/// The fewest bodies that there is room for at once, however small they must be.
const LEAST_BODIES: usize = 4096;

/// What room for bodies is counted in, in bytes.
const BODY_PIECE: usize = 64 << 10;

/// The most warnings that wait to be told.
const MOST_WARNINGS: usize = 64;

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
        let times = Times::new(Arc::clone(&options.clock));
        let mut notices: Vec<String> = Vec::new();
        let mut tenants = HashMap::new();
        for salt in salts {
            let tenant = Arc::new(engine.tenant(&salt));
            let contexts = Arc::new(Contexts::new(Arc::clone(&tenant), folder.as_ref(), &salt));
            let (folder, notice) = Folder::open(requests.as_deref(), &salt);
            notices.extend(notice.filter(|notice| !notices.contains(notice)));
            let (responses, trouble) = Responses::open(&folder);
            notices.extend(
                trouble.map(|error| {
                    format!("stored responses end with the server: {}", error.message)
                }),
            );
            let tenancy = Tenancy {
                tenant,
                contexts,
                offline: Offline::open(Arc::new(folder), times.clone()),
                responses,
            };
            tenants.insert(salt, Arc::new(tenancy));
        }
        let bodies = (body_pieces(options.max_body_bytes) as usize * BODIES).max(LEAST_BODIES);
        Ok(App(Arc::new(Inner {
            notices,
            tenants,
            queue: Arc::new(Queue::new(options.queue)),
            specials: SpecialTexts::of(&engine),
            takes_tools: prompt::template_takes_tools(&engine),
            // One that cannot show a question at all says so when it is asked to.
            is_dated: longview::dates::is_dated(engine.text()).unwrap_or(false),
            worker,
            engine,
            options,
            names,
            times,
            stopping: AtomicBool::new(false),
            preparing: Arc::new(Semaphore::new(MOST_PREPARING)),
            bodies: Arc::new(Semaphore::new(bodies)),
            warnings: Mutex::default(),
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

    /// Finds the texts of the vocabulary's special tokens.
    pub(crate) fn specials(&self) -> &SpecialTexts {
        &self.0.specials
    }

    /// Whether the chat template shows tools to the model.
    pub(crate) fn takes_tools(&self) -> bool {
        self.0.takes_tools
    }

    /// Whether the chat template writes the date.
    pub(crate) fn is_dated(&self) -> bool {
        self.0.is_dated
    }

    /// What a prompt that is begun now has for a date: the day alone, so that what was read an hour ago is
    /// found also under a template that writes the time.
    pub(crate) fn today(&self) -> Moment {
        let now = seconds_since_1970(self.options().clock.wall());
        Moment::from_unix(i64::try_from(now).unwrap_or(i64::MAX)).days_before(0)
    }

    /// The vocabulary as grammars need it.
    pub(crate) fn vocabulary(&self) -> &Vocabulary {
        &self.0.vocabulary
    }

    /// What time it is.
    pub(crate) fn times(&self) -> &Times {
        &self.0.times
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

    /// Does what takes a core for a while, such as turning a text into tokens, when it is its turn.
    pub(crate) async fn prepare<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let coming = self.worker().expect();
        let turn = Arc::clone(&self.0.preparing).acquire_owned().await;
        blocking(move || {
            // They end with the work, which nothing stops, and not with whoever waits for it.
            let _held = (turn, coming);
            work()
        })
        .await
    }

    /// Room for a body of `bytes` bytes, as soon as there is some.
    pub(crate) async fn room_for_body(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let pieces = body_pieces(bytes.min(self.0.options.max_body_bytes));
        let room = Arc::clone(&self.0.bodies).acquire_many_owned(pieces).await;
        // The semaphore is never closed.
        room.ok()
    }

    /// Notes that something went wrong without stopping the work.
    pub(crate) fn warn(&self, warning: String) {
        let mut warnings = self
            .0
            .warnings
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // Whoever hears of so many need not hear of more.
        if warnings.len() < MOST_WARNINGS && !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }

    /// What went wrong since it was asked last.
    pub(crate) fn take_warnings(&self) -> Vec<String> {
        let mut warnings = self
            .0
            .warnings
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *warnings)
    }

    /// All tenancies.
    pub(crate) fn tenancies(&self) -> impl Iterator<Item = &Arc<Tenancy>> {
        self.0.tenants.values()
    }

    /// A place in the line for a request with prompts of `tokens` tokens, given back when all that share it
    /// have let go of it.
    pub(crate) fn enter(&self, tokens: usize, priority: Priority) -> Result<Arc<Permit>, ApiError> {
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
        let permit = queue.enter(tokens).ok_or_else(|| self.full())?;
        Ok(Arc::new(permit))
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

/// How much of the room for bodies one of `bytes` bytes takes.
pub(crate) fn body_pieces(bytes: usize) -> u32 {
    u32::try_from(bytes / BODY_PIECE + 1).unwrap_or(u32::MAX >> 4)
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
