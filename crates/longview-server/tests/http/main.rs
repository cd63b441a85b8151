//! A real server on the reference model, asked over real sockets. One program, because linking it takes longer
//! than running it.

mod access;
mod anthropic;
mod clock;
mod contexts;
mod documents;
mod faults;
mod fuzz;
mod methods;
mod offline;
mod openai;
mod refusals;
mod responses;
mod scores;
mod sharing;
mod support;
#[cfg(feature = "tls")]
mod tls;
mod tools;
