//! A real server, asked over real sockets. One program, because linking it takes longer than running it.
//!
//! Where an answer has to be the right one it runs on the reference model, with short texts; where requests are
//! counted, compared or timed, on the stand-in that costs next to nothing a token.

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
