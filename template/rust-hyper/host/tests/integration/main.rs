//! A function as a process: what it answers, what it logs, how it ends.
//!
//! The process is this test binary, run again for one test that serves (`function::serve`). Each test below talks to a
//! process of its own, over its ports, its signals and its log.

#![expect(
    clippy::panic,
    clippy::unwrap_used,
    reason = "what helps the tests is theirs, and may end them"
)]

mod draining;
mod function;
mod handlers;
mod limits;
mod logs;
mod panics;
mod probes;
mod settings;
#[cfg(feature = "traces")]
mod traces;
