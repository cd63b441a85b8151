//! Connections: accepted, served, and let go.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use longview::Engine;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, watch};

use crate::api;
use crate::app::App;
use crate::error::ServerError;
use crate::offline;
use crate::options::ServerOptions;
#[cfg(feature = "tls")]
use crate::tls::Tls;

/// Connections at once; more wait to be accepted.
const MOST_CONNECTIONS: usize = 16_384;

/// Connections that may wait to be accepted, as far as the system allows.
const WAITING_CONNECTIONS: u32 = 4096;

/// Files that may be open beside connections: the store's, those being sent and taken in.
const OTHER_FILES: u64 = 512;

/// How long the head of a request may take to arrive, and a connection may idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);

/// How often contexts are looked through whose time may be over.
const SWEEP: Duration = Duration::from_secs(30);

/// How long contexts that were being read may take to be saved at the end.
const SETTLE: Duration = Duration::from_secs(20);

/// Pause after the system has refused a connection, usually for want of file descriptors.
const BREATH: Duration = Duration::from_millis(50);

/// A server that listens and does not answer yet.
pub struct Server {
    app: App,
    runtime: Runtime,
    listeners: Vec<TcpListener>,
    stop: watch::Sender<Stage>,
}

/// Tells a running server to stop.
#[derive(Clone)]
pub struct Stopper(watch::Sender<Stage>);

/// How far a server is on its way to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Runs,
    /// Running requests finish, nothing new begins.
    Drains,
    /// Running requests end now.
    Ends,
}

impl Server {
    /// Listens on every address of `options`.
    ///
    /// # Errors
    /// When an address cannot be listened on, or a setting makes no sense.
    pub fn bind(
        engine: impl Into<Arc<Engine>>,
        options: ServerOptions,
    ) -> Result<Server, ServerError> {
        let system = |what| move |source| ServerError::System { what, source };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            // Its work is translation; the machine's cores are for the model.
            .worker_threads(2)
            .thread_name("http")
            .enable_all()
            .build()
            .map_err(system("the server's threads cannot be started"))?;
        let mut listeners = Vec::new();
        for address in &options.addresses {
            let listener = runtime.block_on(async { listen(*address) });
            listeners.push(listener.map_err(|source| ServerError::Bind {
                address: address.to_string(),
                source,
            })?);
        }
        Ok(Server {
            app: App::new(engine.into(), options)?,
            runtime,
            listeners,
            stop: watch::channel(Stage::Runs).0,
        })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn addresses(&self) -> Result<Vec<SocketAddr>, ServerError> {
        let addresses = self.listeners.iter().map(TcpListener::local_addr);
        addresses
            .collect::<Result<_, _>>()
            .map_err(|source| ServerError::System {
                what: "the system does not say where the server listens",
                source,
            })
    }

    /// What whoever has started it should know.
    pub fn notices(&self) -> &[String] {
        self.app.notices()
    }

    /// What stops it, from any thread.
    pub fn stopper(&self) -> Stopper {
        Stopper(self.stop.clone())
    }

    /// Stops it, once for each time that the process is told to end (SIGTERM, Ctrl-C).
    ///
    /// # Errors
    /// When the system does not let it listen for signals.
    pub fn stop_on_signals(&self) -> Result<(), ServerError> {
        let stopper = self.stopper();
        let system = |source| ServerError::System {
            what: "the server cannot listen for signals",
            source,
        };
        let _runtime = self.runtime.enter();
        #[cfg(unix)]
        {
            use tokio::signal::unix::{SignalKind, signal};
            for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
                let (mut signals, stopper) = (signal(kind).map_err(system)?, stopper.clone());
                self.runtime.spawn(async move {
                    while signals.recv().await.is_some() {
                        stopper.stop();
                    }
                });
            }
        }
        #[cfg(not(unix))]
        {
            let _ = system;
            self.runtime.spawn(async move {
                while tokio::signal::ctrl_c().await.is_ok() {
                    stopper.stop();
                }
            });
        }
        Ok(())
    }

    /// Answers requests until it is stopped; then lets those that run finish within the time of
    /// [`ServerOptions::drain`], keeps what was read, and returns.
    ///
    /// `tell` hears what the store has to say meanwhile: what cannot be written or read, and why.
    ///
    /// # Errors
    /// When what was read could not be kept.
    pub fn run(self, tell: impl Fn(&str) + Send + Sync + 'static) -> Result<(), ServerError> {
        let tell: Arc<Tell> = Arc::new(tell);
        let Server {
            app,
            runtime,
            listeners,
            stop,
        } = self;
        let router = api::router(&app);
        runtime.block_on(async {
            let graceful = Arc::new(GracefulShutdown::new());
            let permits = Arc::new(Semaphore::new(most_connections()));
            let accepting: Vec<_> = listeners
                .into_iter()
                .map(|listener| {
                    tokio::spawn(accept(
                        listener,
                        #[cfg(feature = "tls")]
                        app.options().tls.clone(),
                        router.clone(),
                        Arc::clone(&graceful),
                        Arc::clone(&permits),
                        stop.subscribe(),
                    ))
                })
                .collect();
            let sweeping = tokio::spawn(sweep(app.clone(), Arc::clone(&tell)));
            offline::resume_all(&app);
            let mut stage = stop.subscribe();
            // It is only an error when nobody can stop it any more; then it goes on.
            let stopped = stage.wait_for(|stage| *stage >= Stage::Drains).await;
            drop(stopped);
            app.begin_to_stop();
            for task in accepting {
                let _ = task.await;
            }
            sweeping.abort();
            let drained = async {
                match Arc::into_inner(graceful) {
                    Some(graceful) => graceful.shutdown().await,
                    None => std::future::pending().await,
                }
            };
            let ended = async {
                let _ = stage.wait_for(|stage| *stage >= Stage::Ends).await;
            };
            tokio::select! {
                () = drained => {}
                () = tokio::time::sleep(app.options().drain) => {
                    app.worker().cancel_all();
                    // Streams say why they end.
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                () = ended => app.worker().cancel_all(),
            }
        });
        app.worker().stop();
        // The engine has handed back what it had of contexts that were being read.
        runtime.block_on(async {
            let settled = async {
                for tenancy in app.tenancies() {
                    tenancy.contexts.settle().await;
                }
            };
            // Their records are there, from before they were read; what is late costs reading again.
            let _ = tokio::time::timeout(SETTLE, settled).await;
        });
        runtime.shutdown_timeout(Duration::from_secs(2));
        for tenancy in app.tenancies() {
            tenancy.contexts.save_all(&app);
        }
        let synced = match app.engine().store() {
            Some(store) => store.sync().map_err(longview::EngineError::from),
            None => Ok(()),
        };
        tell_of_store(&app, &*tell);
        Ok(synced?)
    }
}

impl Stopper {
    /// Lets running requests finish and begins nothing new; the second time ends them as well.
    pub fn stop(&self) {
        self.0.send_modify(|stage| {
            *stage = match stage {
                Stage::Runs => Stage::Drains,
                Stage::Drains | Stage::Ends => Stage::Ends,
            };
        });
    }
}

/// Listens as [`TcpListener::bind`] does, but for the connections that may wait: it lets 128, and a burst of
/// more would be told to try again in a second.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // On Windows it means something else.
    #[cfg(not(windows))]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(WAITING_CONNECTIONS)
}

async fn accept(
    listener: TcpListener,
    #[cfg(feature = "tls")] tls: Option<Tls>,
    router: Router,
    graceful: Arc<GracefulShutdown>,
    permits: Arc<Semaphore>,
    mut stage: watch::Receiver<Stage>,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stage.wait_for(|stage| *stage >= Stage::Drains) => return,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(BREATH).await;
            continue;
        };
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
            return;
        };
        let (router, watcher) = (router.clone(), graceful.watcher());
        #[cfg(feature = "tls")]
        let (tls, mut stopping) = (tls.clone(), stage.clone());
        tokio::spawn(async move {
            let _permit = permit;
            // Tokens are small and must not wait for one another.
            let _ = stream.set_nodelay(true);
            #[cfg(feature = "tls")]
            if let Some(tls) = tls {
                // Whoever has not said anything yet is not waited for.
                let shaken = tokio::select! {
                    shaken = tls.accept(stream) => shaken,
                    _ = stopping.wait_for(|stage| *stage >= Stage::Drains) => return,
                };
                if let Ok(stream) = shaken {
                    serve(stream, router, watcher).await;
                }
                return;
            }
            serve(stream, router, watcher).await;
        });
    }
}

/// Connections at once, of the files that the process may have open.
fn most_connections() -> usize {
    #[cfg(unix)]
    if let Some(limit) = rustix::process::getrlimit(rustix::process::Resource::Nofile).current {
        let left = limit.saturating_sub(OTHER_FILES).max(limit / 2);
        return usize::try_from(left)
            .unwrap_or(usize::MAX)
            .clamp(1, MOST_CONNECTIONS);
    }
    MOST_CONNECTIONS
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    router: Router,
    watcher: Watcher,
) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(100)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    // A connection that breaks is the client's affair.
    let _ = watcher.watch(connection).await;
}

/// Hears what whoever has started the server should know.
type Tell = dyn Fn(&str) + Send + Sync;

/// Lets go of contexts whose time is over, and tells what the store has to say.
async fn sweep(app: App, tell: Arc<Tell>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        let (app, tell) = (app.clone(), Arc::clone(&tell));
        let swept = tokio::task::spawn_blocking(move || {
            for tenancy in app.tenancies() {
                tenancy.contexts.expire(app.times());
            }
            tell_of_store(&app, &*tell);
        });
        let _ = swept.await;
    }
}

fn tell_of_store(app: &App, tell: &Tell) {
    let mut warnings = app.take_warnings();
    if let Some(store) = app.engine().store() {
        warnings.extend(store.take_warnings());
    }
    for warning in warnings {
        app.metrics().warned();
        tell(&warning);
    }
}
