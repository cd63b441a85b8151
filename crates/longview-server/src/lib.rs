//! Longview behind the protocols that clients speak.
//!
//! [`Server::bind`] takes an engine and [`ServerOptions`]; [`Server::run`] serves until it is told to
//! stop, then lets running requests finish, keeps what was read, and returns.
//!
//! One thread computes: it owns the [`Scheduler`](longview::schedule::Scheduler) and runs pass after
//! pass. Everything in front of it only translates: handlers check a request, make its tokens, hand it
//! over, and write what they hear to the client. News wait in an outbox of the request's own, so a slow
//! reader waits for itself alone.

mod api;
mod app;
mod batch;
mod clock;
mod contexts;
mod conversation;
mod dates;
mod edges;
mod error;
mod folder;
mod grammar;
mod guard;
mod input;
mod keys;
mod listen;
mod metrics;
mod offline;
mod openapi;
mod options;
mod outbox;
mod page;
mod prompt;
mod queue;
mod reading;
mod report;
mod run;
mod settings;
mod specials;
mod sse;
#[cfg(feature = "tls")]
mod tls;
mod tools;
mod worker;

pub use batch::{BatchSummary, run_batch};
pub use clock::{Clock, SystemClock};
pub use error::ServerError;
pub use keys::ApiKeys;
pub use listen::{Server, Stopper};
pub use openapi::document as openapi_document;
pub use options::ServerOptions;
#[cfg(feature = "tls")]
pub use tls::Tls;
