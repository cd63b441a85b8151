//! Prefill as a resumable job, the decode loop, sampling, events

pub mod sampling;
