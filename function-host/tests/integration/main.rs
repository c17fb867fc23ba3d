//! Tests of a function as a process: its responses, its log, its exit codes.
//!
//! The process is this test binary itself, run again with only the test `function::serve_as_child_process`, which
//! serves. Each test starts its own process, and uses its ports, signals and log.

#![expect(
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests may end a test"
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
