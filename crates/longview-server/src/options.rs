//! How a server is run.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use longview::methods::{Methods, Sampling};
use longview::schedule::ScheduleOptions;

use crate::clock::{Clock, SystemClock};
use crate::keys::ApiKeys;
#[cfg(feature = "tls")]
use crate::tls::Tls;

/// How a server is run.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Where it listens.
    pub addresses: Vec<SocketAddr>,
    /// What it shows to clients that connect by TLS; without it plain HTTP is spoken.
    #[cfg(feature = "tls")]
    pub tls: Option<Tls>,
    /// Further names of hosts that it may be asked for under, when there are no keys.
    pub hosts: Vec<String>,
    /// Who may come in.
    pub keys: ApiKeys,
    /// Origins whose pages may ask, such as `https://chat.example`; `*` for all.
    pub cors: Vec<String>,
    /// Names that requests may call the model by, the first being the one it is listed under. Without
    /// any, its own.
    pub names: Vec<String>,
    /// The methods of every stage that requests do not choose.
    pub methods: Methods,
    /// How tokens are chosen where a request does not say; `None` for the usual settings.
    pub sampling: Option<Sampling>,
    /// How requests share the machine.
    pub schedule: ScheduleOptions,
    /// The most requests that wait; more are told to come back.
    pub queue: usize,
    /// The most bytes of a request's body.
    pub max_body_bytes: usize,
    /// The most tokens of a prompt, if fewer than the model reads.
    pub max_prompt_tokens: Option<usize>,
    /// The most tokens of an answer where a request does not say.
    pub usual_answer_tokens: usize,
    /// How long a request may take in all; `None` for as long as it takes.
    pub request_timeout: Option<Duration>,
    /// How often a stream says that it is alive while there is nothing to say.
    pub keep_alive: Duration,
    /// How long requests may go on after the server was told to stop.
    pub drain: Duration,
    /// Folders whose files may be read into contexts, and nothing outside them.
    pub folders: Vec<PathBuf>,
    /// The folder in which contexts are kept, if they are.
    pub contexts_folder: Option<PathBuf>,
    /// The salt of contexts where there are no keys.
    pub salt: String,
    /// Where it reads the time.
    pub clock: Arc<dyn Clock>,
}

impl Default for ServerOptions {
    fn default() -> ServerOptions {
        ServerOptions {
            addresses: vec![SocketAddr::from(([127, 0, 0, 1], 8080))],
            #[cfg(feature = "tls")]
            tls: None,
            hosts: Vec::new(),
            keys: ApiKeys::none(),
            cors: Vec::new(),
            names: Vec::new(),
            methods: Methods::new(),
            sampling: None,
            schedule: ScheduleOptions::default(),
            queue: 128,
            max_body_bytes: 64 << 20,
            max_prompt_tokens: None,
            usual_answer_tokens: 8192,
            request_timeout: None,
            keep_alive: Duration::from_secs(10),
            drain: Duration::from_secs(30),
            folders: Vec::new(),
            contexts_folder: None,
            salt: String::new(),
            clock: Arc::new(SystemClock::new()),
        }
    }
}
